"""Explorers: arrays to interactive pages, which need a browser alone and show a figure where scripts do not run."""

import base64
import html
import io
import json
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from companion.checks import printable
from companion.files import atomic_path
from companion.plotting.figures import BookFigure, in_book_style, plot_attention

_SHARPNESS = 2  # pixels of a figure to one of a page, as in a notebook's "retina" figures
_STEPS = 10_000  # to 1, in which weights are stored
_COLUMNS = 40  # of the maps in a figure that can be read on a page
_LABEL = 24  # characters of a token in the figure
_SLACK = 1e-3  # above 1, which sums in half precision come to


@dataclass(frozen=True)
class Explorer:
    """An interactive picture, made by `explore_attention` or `explore_positions`.

    The last expression of a notebook's cell, it shows itself. The page asks no other host for anything; where scripts
    do not run, it is the figure.

    Attributes:
        title: What the page is called.
        html: The fragment of a page, with its figure, style and script in it.
        png: The figure alone.
        description: What the figure shows, for those who cannot see it.

    Example:
        >>> explorer = explore_attention(torch.eye(3)[None, None], ["not", "bad", "."])
        >>> explorer
        Explorer('Attention: 1 layer, 1 head, 3 queries, 3 keys')
        >>> explorer.save("attention.html")
    """

    title: str
    html: str = field(repr=False)
    png: bytes = field(repr=False)
    description: str = field(repr=False)

    def __repr__(self) -> str:
        return f"Explorer({self.title!r})"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, str], dict[str, Any]]:
        width, height = _size(self.png)
        data = {
            "text/html": self.html,
            "image/png": base64.b64encode(self.png).decode(),
            "text/plain": repr(self),
        }
        return data, {"image/png": {"width": width, "height": height}}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the explorer as a page of its own, which a browser opens from the disk.

        Args:
            path: The file to write, such as ``attention.html``; it appears whole or not at all.
        """
        title = html.escape(self.title)
        page = (
            f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            "<style>:root { color-scheme: light dark; } body { font-family: system-ui, sans-serif; margin: 0; }\n"
            "main { margin: 0 auto; max-width: 46rem; padding: 16px; } h1 { font-size: 20px; }</style>\n"
            f"</head>\n<body>\n<main>\n<h1>{title}</h1>\n{self.html}\n</main>\n</body>\n</html>\n"
        )
        with atomic_path(path) as temporary:
            temporary.write_text(page, encoding="utf-8")


class PositionTable(NamedTuple):
    """A table of positions, with what its axes and entries are.

    Attributes:
        values: ``(row, column)``, such as `sinusoidal_encoding` makes.
        row: What a row stands for.
        column: What a column stands for.
        hand: What is drawn as the hand of a dial: ``"angle"``, where entries are angles in radians, the direction that
            each turns to; ``"clock"``, where columns ``2i`` and ``2i + 1`` are a sine and a cosine, the hand with the
            sine to the right and the cosine upwards; ``None`` for no dial.

    Example:
        >>> PositionTable(torch.zeros(8, 4), column="head").row
        'position'
    """

    values: Tensor
    row: str = "position"
    column: str = "dimension"
    hand: Literal["angle", "clock"] | None = None


def explore_attention(
    weights: Float[Tensor, "layers heads query key"],
    query_tokens: Sequence[str],
    key_tokens: Sequence[str] | None = None,
    *,
    layer: int = 0,
    head: int | None = None,
    query: int = 0,
) -> Explorer:
    """Show what each token attends to, head by head and layer by layer.

    Pointing at a query, or reaching it with Tab and the arrow keys, shades the keys by their weights and writes these
    out; a click, a tap or Enter keeps it, a second one or Escape lets it go. Weights are stored to four decimals, those
    above 0 as 0.0001 at least, and written to two; what is written as 0 is 0. Shades grow with the square root of a
    weight, bars with the weight, both up to the largest of all.

    Args:
        weights: ``(layers, heads, query, key)``, between 0 and 1; a query that attends nowhere has zeros. For one input
            `attention_weights` has them, a call at a time: ``torch.cat`` puts these together.
        query_tokens: The tokens that attend.
        key_tokens: The tokens attended to; left out, the same.
        layer: The layer to begin with, which is also the one in the figure.
        head: The head to begin with, alone in the figure; left out, the mean over the heads. The figure then has a map
            for each head, or that of the mean where they would be too wide for a page.
        query: The query to begin with.

    Returns:
        An explorer, whose figure is that of `plot_attention`.

    Raises:
        ValueError: If the numbers of tokens are not those of the weights, a weight is not between 0 and 1, or there is
            no such layer, head or query.

    Example:
        >>> weights = torch.randn(2, 4, 3, 3).softmax(dim=-1)
        >>> explore_attention(weights, ["not", "bad", "."], layer=1)
        Explorer('Attention: 2 layers, 4 heads, 3 queries, 3 keys')
    """
    key_tokens = query_tokens if key_tokens is None else key_tokens
    layers, heads, queries, keys = weights.shape
    for name, place, count in (("layer", layer, layers), ("head", head or 0, heads), ("query", query, queries)):
        if not 0 <= place < count:
            raise ValueError(f"{name}={place}; expected 0 to {count - 1}, as the weights have")
    maps, shown = weights[layer], "each head"
    if head is not None:
        maps, shown = maps[head : head + 1], f"head {head + 1}"
    elif heads * max(queries, keys) > _COLUMNS:
        maps, shown = maps.mean(dim=0, keepdim=True), "the mean over the heads"
    figure = plot_attention(
        maps,
        [_label(token) for token in query_tokens],
        [_label(token) for token in key_tokens],
    )
    values = weights.detach().cpu().double().numpy()
    if not (values.min() >= 0 and values.max() <= 1 + _SLACK):
        raise ValueError(f"weights run from {values.min():.3g} to {values.max():.3g}; expected 0 to 1")
    steps = np.where(values > 0, (values * _STEPS).round().clip(min=1), 0)
    content = {
        "layers": layers,
        "heads": heads,
        "queries": list(query_tokens),
        "keys": list(key_tokens),
        "layer": layer,
        "head": head,
        "query": query,
        "weights": base64.b64encode(steps.astype("<u2").tobytes()).decode(),
    }
    counts = ", ".join(
        _counted(count, *names)
        for count, *names in (
            (layers, "layer", "layers"),
            (heads, "head", "heads"),
            (queries, "query", "queries"),
            (keys, "key", "keys"),
        )
    )
    description = (
        f"Map of the attention weights of {shown} of layer {layer + 1}: "
        f"{_counted(queries, 'query', 'queries')} in rows, {_counted(keys, 'key', 'keys')} in columns."
    )
    return _explorer("attention", f"Attention: {counts}", description, content, figure)


def explore_positions(tables: Mapping[str, PositionTable], *, row: int = 0, column: int = 0) -> Explorer:
    """Show tables of positions: one slider goes through the rows, another through the columns.

    The table is a map; the row and the column that meet in the chosen entry are drawn as lines, and the entry is
    written out. Entries are stored to four significant digits and written to three.

    Args:
        tables: A name and a table for each encoding.
        row: The row to begin with, or the last one of a table with fewer.
        column: The column to begin with, or the last one of a table with fewer.

    Returns:
        An explorer, whose figure has a map for each table, each on a colour scale of its own.

    Raises:
        ValueError: If there is no table, or one has other than two dimensions, no entry, one that is not finite, or an
            odd number of columns where these are sines and cosines; or if ``row`` or ``column`` is below 0.

    Example:
        >>> rotary = torch.arange(8)[:, None] * torch.tensor([1.0, 0.1])
        >>> explore_positions(
        ...     {
        ...         "sinusoidal": PositionTable(sinusoidal_encoding(8, 4), hand="clock"),
        ...         "rotary": PositionTable(rotary, column="pair", hand="angle"),
        ...     }
        ... )
        Explorer('Positions: sinusoidal, rotary')
    """
    if not tables:
        raise ValueError("tables is empty; there is nothing to show")
    if min(row, column) < 0:
        raise ValueError(f"row={row}, column={column}; choose 0 or more")
    for name, table in tables.items():
        if table.values.dim() != 2:
            raise ValueError(f"the table {name!r} has shape {tuple(table.values.shape)}; expected (row, column)")
        if not table.values.numel() or not table.values.isfinite().all():
            raise ValueError(f"the table {name!r} has no entry, or one that is not finite")
        if table.hand == "clock" and table.values.size(1) % 2:
            raise ValueError(f"the table {name!r} has {table.values.size(1)} columns; sines and cosines come in pairs")
    content = {
        "row": row,
        "column": column,
        "tables": [
            {
                "name": name,
                "row": table.row,
                "column": table.column,
                "hand": table.hand,
                "values": [[float(f"{value:.4g}") for value in values] for values in table.values.tolist()],
            }
            for name, table in tables.items()
        ],
    }
    title = printable(f"Positions: {', '.join(tables)}")
    named = printable(", ".join(f"{name} ({table.row} by {table.column})" for name, table in tables.items()))
    description = f"A map for each table, rows by columns, blue below 0 and red above: {named}."
    return _explorer("positions", title, description, content, _draw_tables(tables))


@in_book_style
def _draw_tables(tables: Mapping[str, PositionTable]) -> Figure:
    figure = BookFigure(figsize=(1.6 * len(tables) + 0.6, 3.2))
    for ax, (name, table) in zip(figure.subplots(1, len(tables), squeeze=False)[0], tables.items(), strict=True):
        values = table.values.detach().cpu().float().numpy()
        limit = float(np.abs(values).max()) or 1.0
        image = ax.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
        ax.set_title(printable(name), parse_math=False)
        ax.set_xlabel(printable(table.column), parse_math=False)
        ax.set_ylabel(printable(table.row), parse_math=False)
        ax.grid(False)
        ends = {"ticks": [-limit, 0, limit], "format": "{x:.3g}"}
        figure.colorbar(image, ax=ax, location="bottom", **ends).outline.set_visible(False)
    return figure


def _size(png: bytes) -> tuple[int, int]:
    """Return the width and the height of a figure in pixels of a page, from the file's header."""
    width, height = struct.unpack(">II", png[16:24])
    return width // _SHARPNESS, height // _SHARPNESS


def _label(token: str) -> str:
    """Write a token as a figure can: signs without a shape as Python does, and long ones cut."""
    text = printable(token)
    return text if len(text) <= _LABEL else f"{text[: _LABEL - 1]}…"


def _counted(count: int, one: str, several: str) -> str:
    return f"{count} {one if count == 1 else several}"


def _explorer(kind: str, title: str, description: str, content: Mapping[str, Any], figure: Figure) -> Explorer:
    """Put a page's content, its figure, the style and the script together; the script finds the content beside it."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_SHARPNESS * figure.dpi, metadata={"Software": None})
    png = file.getvalue()
    assets = files("companion.plotting")
    style, script = (assets.joinpath(f"explorers.{suffix}").read_text(encoding="utf-8") for suffix in ("css", "js"))
    fragment = (
        f'<div class="companion-explorer tex2jax_ignore mathjax_ignore" data-explorer="{kind}"'
        f' data-content="{html.escape(json.dumps(content, separators=(",", ":")))}">\n'
        f'<img width="{_size(png)[0]}" alt="{html.escape(description)}"'
        f' src="data:image/png;base64,{base64.b64encode(png).decode()}">\n'
        f"<style>\n{style}</style>\n<script>\n{script}</script>\n</div>"
    )
    return Explorer(title, fragment, png, description)
