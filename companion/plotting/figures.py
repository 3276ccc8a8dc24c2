"""Figures: arrays to matplotlib figures, all in the style of ``book.mplstyle``, whatever style the caller has set."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from jaxtyping import Bool, Float
from matplotlib import rcParams, style
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from torch import Tensor

from companion.checks import printable

in_book_style = style.context("companion.plotting.book", after_reset=True)

_MARKERS = "osD^vPX"  # a marker for each colour of the style tells the lines apart in print
_WIDTH = 7.0  # inches, the most that a page shows at full size
_SMALLEST_CELL, _LARGEST_CELL = 0.17, 0.28  # inches: a line of text, and what looks like a map
_MANY_POINTS = 16  # past them, markers stand at some of the points only
_SIGNED = "RdBu_r"

Scale = Literal["linear", "log"]
Line = tuple[Sequence[int | float], Sequence[int | float]]


class BookFigure(Figure):
    """A figure that measures, draws and saves itself in the book's style too: some settings count as late as that."""

    draw = in_book_style(Figure.draw)
    get_tightbbox = in_book_style(Figure.get_tightbbox)
    savefig = in_book_style(Figure.savefig)


@in_book_style
def plot_attention(
    weights: Float[Tensor, "heads query key"],
    query_tokens: Sequence[str],
    key_tokens: Sequence[str] | None = None,
) -> Figure:
    """Draw the attention weights of each head as a map: a row for each query, a column for each key.

    Args:
        weights: ``(heads, query, key)``, each row summing to 1.
        query_tokens: The labels of the rows.
        key_tokens: The labels of the columns; left out, those of the rows.

    Returns:
        A figure with one map a head, titled where there are several, on one colour scale from 0 to the largest weight.

    Raises:
        ValueError: If the numbers of tokens are not those of the weights.

    Example:
        >>> weights = torch.randn(2, 3, 3).softmax(dim=-1)
        >>> figure = plot_attention(weights, ["not", "bad", "."])
        >>> [ax.get_title() for ax in figure.axes[:2]]
        ['head 1', 'head 2']
        >>> figure.savefig("attention.png")
    """
    key_tokens = query_tokens if key_tokens is None else key_tokens
    heads, queries, keys = weights.shape
    if (len(query_tokens), len(key_tokens)) != (queries, keys):
        raise ValueError(
            f"got {len(query_tokens)} query tokens and {len(key_tokens)} key tokens; "
            f"expected {queries} and {keys}, as the weights have"
        )
    values = weights.detach().cpu().float().numpy()
    scale = Normalize(0, float(values.max()))
    figure, axes = _maps([(queries, keys)] * heads, query_tokens, key_tokens)
    for head, ax in enumerate(axes):
        ax.imshow(values[head], norm=scale)
        if heads > 1:
            ax.set_title(f"head {head + 1}")
        ax.set_xticks(range(keys), map(printable, key_tokens), rotation=90, parse_math=False)
        ax.set_yticks(range(queries), map(printable, query_tokens if head == 0 else [""] * queries), parse_math=False)
        ax.set_xlabel("key")
    axes[0].set_ylabel("query")
    _colour_bar(figure, ScalarMappable(scale), axes, "weight")
    return figure


@in_book_style
def plot_masks(masks: Mapping[str, Bool[Tensor, "query key"]]) -> Figure:
    """Draw boolean masks, a panel each: dark where the entry is ``True``.

    Args:
        masks: A title and a mask ``(query, key)`` for each panel.

    Returns:
        A figure with a row for each query and a column for each key, ``True`` in blue with a dot, ``False`` in white.

    Raises:
        ValueError: If there is no mask.

    Example:
        >>> figure = plot_masks({"causal": causal_mask(4), "window": sliding_window_mask(4, 2)})
        >>> [ax.get_title() for ax in figure.axes]
        ['causal', 'window']
    """
    if not masks:
        raise ValueError("masks is empty; there is nothing to draw")
    figure, axes = _maps([mask.shape for mask in masks.values()])
    for ax, (title, mask) in zip(axes, masks.items(), strict=True):
        values = mask.detach().cpu().numpy()
        queries, keys = values.shape
        colours = ListedColormap([rcParams["axes.facecolor"], "C0"])
        ax.pcolormesh(values, cmap=colours, vmin=0, vmax=1, edgecolor=rcParams["axes.edgecolor"], linewidth=0.5)
        rows, columns = values.nonzero()
        ax.scatter(columns + 0.5, rows + 0.5, s=5, color=rcParams["axes.facecolor"])
        ax.set_title(title)
        ax.set_xticks([key + 0.5 for key in range(keys)], map(str, range(keys)))
        ax.set_yticks([query + 0.5 for query in range(queries)], map(str, range(queries)))
        ax.set_aspect("equal")
        ax.invert_yaxis()
        ax.set_xlabel("key")
    axes[0].set_ylabel("query")
    return figure


@in_book_style
def plot_tensors(tensors: Mapping[str, Float[Tensor, "row column"]], row_labels: Sequence[str] | None = None) -> Figure:
    r"""Draw matrices side by side, a panel each, on one colour scale around 0.

    Args:
        tensors: A title and a matrix for each panel; its shape is written under the title.
        row_labels: The labels of the rows of the first panel, such as the tokens.

    Returns:
        A figure in which blue is negative, white 0 and red positive.

    Raises:
        ValueError: If there is no matrix, or the first one has another number of rows than ``row_labels``.

    Example:
        >>> figure = plot_tensors({"query": torch.randn(3, 8), "scores": torch.randn(3, 3)}, ["not", "bad", "."])
        >>> [ax.get_title() for ax in figure.axes[:2]]
        ['query\n(3, 8)', 'scores\n(3, 3)']
    """
    if not tensors:
        raise ValueError("tensors is empty; there is nothing to draw")
    arrays = {title: tensor.detach().cpu().float().numpy() for title, tensor in tensors.items()}
    rows = len(next(iter(arrays.values())))
    if row_labels is not None and len(row_labels) != rows:
        raise ValueError(f"got {len(row_labels)} row labels; expected {rows}, as the first matrix has rows")
    limit = max(float(abs(array).max()) for array in arrays.values()) or 1.0
    scale = Normalize(-limit, limit)
    width, height = 1.2 + 1.9 * len(tensors), 1.1 + min(max(0.17 * rows, 1.2), 2.4)
    figure = BookFigure(figsize=(min(width, _WIDTH), height))
    axes = list(figure.subplots(1, len(tensors), squeeze=False)[0])
    for ax, (title, array) in zip(axes, arrays.items(), strict=True):
        ax.imshow(array, norm=scale, cmap=_SIGNED, aspect="auto")
        ax.set_title(f"{title}\n{array.shape}")
        ax.set_xticks(sorted({0, array.shape[1] - 1}))
        ax.set_yticks([])
        ax.set_xlabel("column")
        _frame(ax)
    axes[0].set_yticks(range(rows), row_labels or map(str, range(rows)))
    axes[0].set_ylabel("row" if row_labels is None else "token")
    _colour_bar(figure, ScalarMappable(scale, cmap=_SIGNED), axes, "value")
    return figure


@in_book_style
def plot_positions(table: Float[Tensor, "length d_model"]) -> Figure:
    """Draw a table of position vectors: a row for each position, a column for each dimension.

    Args:
        table: ``(length, d_model)``, such as `sinusoidal_encoding` makes.

    Returns:
        A figure with one map, in which blue is negative, white 0 and red positive.

    Example:
        >>> figure = plot_positions(sinusoidal_encoding(50, 64))
        >>> figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()
        ('dimension', 'position')
    """
    values = table.detach().cpu().float().numpy()
    limit = float(abs(values).max()) or 1.0
    figure = BookFigure()
    ax = figure.subplots()
    image = ax.imshow(values, cmap=_SIGNED, vmin=-limit, vmax=limit, aspect="auto")
    ax.set_xlabel("dimension")
    ax.set_ylabel("position")
    _frame(ax)
    _colour_bar(figure, image, [ax], "value")
    return figure


@in_book_style
def plot_lines(
    lines: Mapping[str, Line],
    *,
    x_label: str,
    y_label: str,
    x_scale: Scale = "linear",
    y_scale: Scale = "linear",
    x_marks: Mapping[str, int | float] | None = None,
    y_marks: Mapping[str, int | float] | None = None,
) -> Figure:
    """Draw lines, told apart by colour and marker.

    Args:
        lines: A label, and the x and y values, for each line; at most 7.
        x_label: What the horizontal axis shows, with its unit.
        y_label: What the vertical axis shows, with its unit.
        x_scale: ``"linear"``, or ``"log"`` to base 2: doublings are what a length or a width is varied by.
        y_scale: ``"linear"``, or ``"log"``.
        x_marks: Labelled places on the horizontal axis, such as the length trained at, each a dotted line.
        y_marks: Labelled places on the vertical axis, such as the level of chance.

    Returns:
        A figure with one panel.

    Raises:
        ValueError: If there is no line, or there are more than can be told apart.

    Example:
        >>> squares = ([1, 2, 3], [1, 4, 9])
        >>> figure = plot_lines({"squares": squares}, x_label="n", y_label="n squared", y_marks={"five": 5})
        >>> figure.axes[0].get_legend_handles_labels()[1]
        ['squares']
    """
    if not 1 <= len(lines) <= len(_MARKERS):
        raise ValueError(f"got {len(lines)} lines; choose 1 to {len(_MARKERS)}, which colours can tell apart")
    figure = BookFigure()
    ax = figure.subplots()
    ax.set_yscale(y_scale)
    if x_scale == "log":
        ax.set_xscale("log", base=2)
    for (label, (x, y)), marker in zip(lines.items(), _MARKERS, strict=False):
        few = len(x) <= _MANY_POINTS
        ax.plot(x, y, marker=marker if few or len(lines) > 1 else "", markevery=1 if few else 0.1, label=label)
    for label, place in (x_marks or {}).items():
        ax.axvline(place, color=rcParams["axes.labelcolor"], linestyle=":", linewidth=1)
        _note(ax, label, (place, 1), ("data", "axes fraction"), above=True)
    for label, place in (y_marks or {}).items():
        ax.axhline(place, color=rcParams["axes.labelcolor"], linestyle=":", linewidth=1)
        _note(ax, label, (1, place), ("axes fraction", "data"))
    ax.set_xlabel(x_label)
    ax.set_ylabel(y_label)
    ax.xaxis.set_major_formatter("{x:,.10g}")
    if y_scale == "log":
        _label_few_decades(ax)
    _legend(figure)
    return figure


@in_book_style
def plot_sums(sums: Mapping[str, Mapping[str, int | float]], *, x_label: str) -> Figure:
    """Draw sums as bars, term beside term, with the total at the end of each.

    Args:
        sums: The terms of each sum, by its label; the same terms in each, at most 7, none below 0.
        x_label: What is added up, with its unit.

    Returns:
        A figure with one panel, the first sum on top.

    Raises:
        ValueError: If there is no sum, no term or more terms than can be told apart, or the sums differ in their terms.

    Example:
        >>> figure = plot_sums({"plain": {"words": 4, "layers": 8}, "shared": {"words": 4, "layers": 1}}, x_label="n")
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['12.0', '5.0']
    """
    terms = list(next(iter(sums.values()), ()))
    if not 1 <= len(terms) <= len(_MARKERS):
        raise ValueError(f"got {len(terms)} terms; choose 1 to {len(_MARKERS)}, which colours can tell apart")
    if any(list(values) != terms for values in sums.values()):
        raise ValueError(f"the sums differ in their terms; give each {terms}, in this order")
    figure = BookFigure(figsize=(rcParams["figure.figsize"][0], 1.2 + 0.45 * len(sums)))
    ax = figure.subplots()
    totals = [0.0] * len(sums)
    for term in terms:
        values = [entries[term] for entries in sums.values()]
        ax.barh(list(sums), values, left=totals, height=0.65, label=term)
        totals = [total + value for total, value in zip(totals, values, strict=True)]
    for name, total in zip(sums, totals, strict=True):
        _note(ax, f"{total:.1f}", (total, name), "data")
    ax.invert_yaxis()
    ax.margins(x=0.1)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(x_label)
    _legend(figure)
    return figure


@in_book_style
def plot_history(history: Sequence[Mapping[str, Any]], metrics: Sequence[str] = ("loss", "accuracy")) -> Figure:
    """Draw the training and dev curves of a record's history.

    Args:
        history: The ``history`` of a `TrainingRecord`.
        metrics: What to draw, a panel each.

    Returns:
        A figure with one panel a metric.

    Raises:
        ValueError: If the history is empty.

    Example:
        >>> figure = plot_history(load_result("imdb").history)
        >>> [(ax.get_ylabel(), len(ax.lines)) for ax in figure.axes]
        [('loss', 2), ('accuracy', 2)]
    """
    if not history:
        raise ValueError("the history is empty; there is nothing to draw")
    figure = BookFigure(figsize=(min(3.6 * len(metrics), _WIDTH), 3.0))
    for metric, ax in zip(metrics, figure.subplots(1, len(metrics), squeeze=False)[0], strict=True):
        _plot_metric(ax, history, metric)
    _legend(figure)
    return figure


def _plot_metric(ax: Axes, history: Sequence[Mapping[str, Any]], metric: str) -> None:
    epochs = [entry["epoch"] for entry in history]
    for split, marker in zip(("train", "dev"), _MARKERS, strict=False):
        if split in history[0]:
            ax.plot(epochs, [entry[split][metric] for entry in history], marker=marker, label=split)
    ax.set_xlabel("epoch")
    ax.set_ylabel(metric)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def _maps(
    shapes: Sequence[tuple[int, ...]], row_labels: Sequence[str] = ("",), column_labels: Sequence[str] = ("",)
) -> tuple[Figure, list[Axes]]:
    """Make a figure with a map of square cells for each shape, as large as the page's width and their labels allow."""
    row_label, column_label = (0.5 + 0.09 * max(map(len, labels)) for labels in (row_labels, column_labels))
    rows, columns = max(shape[0] for shape in shapes), sum(shape[1] for shape in shapes)
    margin = row_label + 0.25 * len(shapes) + 0.8
    cell = min(max((_WIDTH - margin) / columns, _SMALLEST_CELL), _LARGEST_CELL)
    figure = BookFigure(figsize=(columns * cell + margin, rows * cell + column_label + 0.4), layout="compressed")
    axes = list(figure.subplots(1, len(shapes), squeeze=False)[0])
    for ax in axes:
        _frame(ax)
    return figure, axes


def _frame(ax: Axes) -> None:
    """Give a map a thin frame in place of the grid and the two axes of a line chart."""
    ax.grid(False)
    ax.spines[:].set_visible(True)


def _colour_bar(figure: Figure, colours: ScalarMappable, axes: list[Axes], label: str) -> None:
    bar = figure.colorbar(colours, ax=axes, label=label, aspect=25, pad=0.02, ticks=MaxNLocator(5, steps=[1, 2, 5, 10]))
    bar.outline.set_visible(False)


def _note(ax: Axes, text: str, place: tuple[Any, Any], coordinates: Any, *, above: bool = False) -> None:
    """Write a small text above a place, or to the right of it."""
    ax.annotate(
        text,
        place,
        xycoords=coordinates,
        xytext=(0, 3) if above else (4, 0),
        textcoords="offset points",
        ha="center" if above else "left",
        va="bottom" if above else "center",
        fontsize="small",
        color=rcParams["axes.labelcolor"],
    )


def _label_few_decades(ax: Axes) -> None:
    """Label a logarithmic axis with plain numbers, where powers of ten alone would leave it bare."""
    low, high = ax.get_ylim()
    if high < 1000 * low:
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:,.10g}")
        ax.yaxis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure) -> None:
    """Put the first panel's legend above all panels, in as few rows as fit."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    for columns in range(len(labels), 0, -1):
        legend = figure.legend(handles, labels, loc="outside upper left", ncols=columns)
        if columns == 1 or legend.get_window_extent().width < 0.95 * figure.bbox.width:
            return
        legend.remove()
