"""Figures: arrays to matplotlib figures."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

_GREY = "#667085"
# Okabe & Ito's colours, told apart by colour-blind readers too; markers tell the lines apart in print.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_MARKERS = "osD^vPX"

Scale = Literal["linear", "log"]
Line = tuple[Sequence[int | float], Sequence[int | float]]


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
    size = 1.2 + 0.24 * max(queries, keys)
    wide, high = (max(0.0, 0.11 * max(map(len, tokens)) - 0.7) for tokens in (query_tokens, key_tokens))
    figure = Figure(figsize=(heads * size + wide + 0.8, size + high + 0.3), layout="constrained", facecolor="white")
    axes = figure.subplots(1, heads, squeeze=False)[0]
    colours = ScalarMappable(Normalize(0, float(values.max())), cmap="Blues")
    for head, ax in enumerate(axes):
        ax.imshow(values[head], norm=colours.norm, cmap=colours.cmap)
        if heads > 1:
            ax.set_title(f"head {head + 1}", fontsize=10)
        ax.set_xticks(range(keys), key_tokens, rotation=90, fontsize=8, parse_math=False)
        ax.set_yticks(range(queries), query_tokens if head == 0 else [""] * queries, fontsize=8, parse_math=False)
        ax.set_xlabel("key", color=_GREY)
        ax.tick_params(length=0)
    axes[0].set_ylabel("query", color=_GREY)
    figure.colorbar(colours, ax=axes, label="weight", shrink=0.8)
    return figure


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
    figure, axes = _panels(masks, "masks", width=2.1, height=2.8)
    for ax, (title, mask) in zip(axes, masks.items(), strict=True):
        values = mask.detach().cpu().numpy()
        queries, keys = values.shape
        ax.pcolormesh(values, cmap=ListedColormap(["white", _COLOURS[0]]), vmin=0, vmax=1, edgecolor=_GREY, lw=0.5)
        rows, columns = values.nonzero()
        ax.scatter(columns + 0.5, rows + 0.5, s=5, color="white")
        ax.set_title(title, fontsize=9)
        ax.set_xticks([key + 0.5 for key in range(keys)], map(str, range(keys)), fontsize=7)
        ax.set_yticks([query + 0.5 for query in range(queries)], map(str, range(queries)), fontsize=7)
        ax.set_aspect("equal")
        ax.invert_yaxis()
        ax.set_xlabel("key", color=_GREY)
        ax.tick_params(length=0)
    axes[0].set_ylabel("query", color=_GREY)
    return figure


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
    figure, axes = _panels(tensors, "tensors", width=2.2, height=2.2)
    arrays = {title: tensor.detach().cpu().float().numpy() for title, tensor in tensors.items()}
    rows = len(next(iter(arrays.values())))
    if row_labels is not None and len(row_labels) != rows:
        raise ValueError(f"got {len(row_labels)} row labels; expected {rows}, as the first matrix has rows")
    limit = max(float(abs(array).max()) for array in arrays.values()) or 1.0
    colours = ScalarMappable(Normalize(-limit, limit), cmap="RdBu_r")
    for ax, (title, array) in zip(axes, arrays.items(), strict=True):
        ax.imshow(array, vmin=-limit, vmax=limit, cmap=colours.cmap, aspect="auto", interpolation="nearest")
        ax.set_title(f"{title}\n{array.shape}", fontsize=9)
        ax.set_xticks([0, array.shape[1] - 1])
        ax.set_yticks([])
        ax.set_xlabel("column", color=_GREY)
        ax.tick_params(length=0, labelsize=8)
    axes[0].set_yticks(range(rows), row_labels or map(str, range(rows)))
    axes[0].set_ylabel("row" if row_labels is None else "token", color=_GREY)
    figure.colorbar(colours, ax=axes, label="value", shrink=0.9)
    return figure


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
    figure = Figure(figsize=(6.4, 3.4), layout="constrained", facecolor="white")
    ax = figure.subplots()
    image = ax.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    ax.set_xlabel("dimension")
    ax.set_ylabel("position")
    figure.colorbar(image, label="value")
    return figure


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
    if not 1 <= len(lines) <= len(_COLOURS):
        raise ValueError(f"got {len(lines)} lines; choose 1 to {len(_COLOURS)}, which colours can tell apart")
    figure = Figure(figsize=(6.0, 3.4), layout="constrained", facecolor="white")
    ax = figure.subplots()
    ax.set_yscale(y_scale)
    if x_scale == "log":
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter("{x:g}")
    for (label, (x, y)), colour, marker in zip(lines.items(), _COLOURS, _MARKERS, strict=False):
        ax.plot(x, y, color=colour, marker=marker, markersize=4 if len(x) < 40 else 0, label=label)
    for label, place in (x_marks or {}).items():
        ax.axvline(place, color=_GREY, linestyle=":", linewidth=1)
        ax.annotate(
            label, (place, 1), xycoords=("data", "axes fraction"), color=_GREY, fontsize=8, ha="center", va="bottom"
        )
    for label, place in (y_marks or {}).items():
        ax.axhline(place, color=_GREY, linestyle=":", linewidth=1)
        ax.annotate(
            label, (1, place), xycoords=("axes fraction", "data"), color=_GREY, fontsize=8, ha="right", va="bottom"
        )
    ax.set_xlabel(x_label)
    ax.set_ylabel(y_label)
    ax.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside right upper")
    return figure


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
    if not 1 <= len(terms) <= len(_COLOURS):
        raise ValueError(f"got {len(terms)} terms; choose 1 to {len(_COLOURS)}, which colours can tell apart")
    if any(list(values) != terms for values in sums.values()):
        raise ValueError(f"the sums differ in their terms; give each {terms}, in this order")
    figure = Figure(figsize=(6.0, 0.8 + 0.5 * len(sums)), layout="constrained", facecolor="white")
    ax = figure.subplots()
    totals = [0.0] * len(sums)
    for term, colour in zip(terms, _COLOURS, strict=False):
        values = [entries[term] for entries in sums.values()]
        ax.barh(list(sums), values, left=totals, height=0.6, color=colour, label=term)
        totals = [total + value for total, value in zip(totals, values, strict=True)]
    for name, total in zip(sums, totals, strict=True):
        ax.annotate(f"{total:.1f}", (total, name), xytext=(4, 0), textcoords="offset points", fontsize=8, va="center")
    ax.invert_yaxis()
    ax.margins(x=0.1)
    ax.set_xlabel(x_label)
    ax.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside right upper")
    return figure


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
    figure = Figure(figsize=(4.2 * len(metrics), 3.0), layout="constrained", facecolor="white")
    for metric, ax in zip(metrics, figure.subplots(1, len(metrics), squeeze=False)[0], strict=True):
        _plot_metric(ax, history, metric)
    return figure


def _plot_metric(ax: Axes, history: Sequence[Mapping[str, Any]], metric: str) -> None:
    epochs = [entry["epoch"] for entry in history]
    for split, colour in zip(("train", "dev"), _COLOURS, strict=False):
        if split in history[0]:
            values = [entry[split][metric] for entry in history]
            ax.plot(epochs, values, marker="o", color=colour, label=split)
    ax.set_xlabel("epoch")
    ax.set_ylabel(metric)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)


def _panels(shown: Mapping[str, Any], name: str, *, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Make a figure with a panel for each of what is shown, side by side."""
    if not shown:
        raise ValueError(f"{name} is empty; there is nothing to draw")
    figure = Figure(figsize=(width * len(shown) + 0.8, height), layout="constrained", facecolor="white")
    return figure, list(figure.subplots(1, len(shown), squeeze=False)[0])
