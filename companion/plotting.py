"""Plotting: arrays to matplotlib figures. Nothing here runs a model."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

_BLUE, _ORANGE, _GREY = "#2a5caa", "#c8641e", "#667085"


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
        A figure with one map a head, on one colour scale from 0 to the largest weight.

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
    figure = Figure(figsize=(heads * size + 0.8, size + 0.3), layout="constrained", facecolor="white")
    axes = figure.subplots(1, heads, squeeze=False)[0]
    colours = ScalarMappable(Normalize(0, float(values.max())), cmap="Blues")
    for head, ax in enumerate(axes):
        ax.imshow(values[head], norm=colours.norm, cmap=colours.cmap)
        ax.set_title(f"head {head + 1}", fontsize=10)
        ax.set_xticks(range(keys), key_tokens, rotation=90, fontsize=8)
        ax.set_yticks(range(queries), query_tokens if head == 0 else [""] * queries, fontsize=8)
        ax.set_xlabel("key", color=_GREY)
        ax.tick_params(length=0)
    axes[0].set_ylabel("query", color=_GREY)
    figure.colorbar(colours, ax=axes, label="weight", shrink=0.8)
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
    for split, colour in (("train", _BLUE), ("dev", _ORANGE)):
        if split in history[0]:
            values = [entry[split][metric] for entry in history]
            ax.plot(epochs, values, marker="o", color=colour, label=split)
    ax.set_xlabel("epoch")
    ax.set_ylabel(metric)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
