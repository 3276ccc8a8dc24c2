"""Draw the cover, the banner of the first page, the social card, the logo and the favicon.

    python book/_tools/artwork.py

All show one thing, the sinusoidal encoding as clocks: a row for each position, a hand for each of its fastest pairs of
dimensions.
"""

import io
from collections.abc import Callable
from pathlib import Path

from matplotlib import rc_context, style
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from PIL import Image

from companion import sinusoidal_encoding

BOOK = Path(__file__).parents[1]
NAVY, IVORY, ORANGE, BLUE = "#0f2238", "#f3efe6", "#f0a13c", "#0072b2"
DPI = 100
TITLE, BODY = "STIXGeneral", "DejaVu Sans"  # both come with matplotlib


def draw_hands(ax: Axes, positions: int, pairs: int, *, d_model: int, marked: int, width: float) -> None:
    """Draw the encodings of the first positions as hands, those of one position in orange.

    Args:
        ax: Where to draw; its cells should be square.
        positions: The number of rows.
        pairs: The number of hands in each: the fastest of the encoding's.
        d_model: The dimensions of the encoding, twice as many as it has hands.
        marked: The position in orange.
        width: The thickness of a hand in points.
    """
    table = sinusoidal_encoding(positions, d_model)[:, : 2 * pairs]
    for position, row in enumerate(table.reshape(positions, pairs, 2).tolist()):
        tails = [(pair - 0.38 * sine, position + 0.38 * cosine) for pair, (sine, cosine) in enumerate(row)]
        heads = [(pair + 0.38 * sine, position - 0.38 * cosine) for pair, (sine, cosine) in enumerate(row)]
        colour = ORANGE if position == marked else IVORY
        hands = LineCollection(list(zip(tails, heads, strict=True)), color=colour, linewidth=width, capstyle="round")
        ax.add_collection(hands)
        ax.scatter(*zip(*heads, strict=True), s=(2.2 * width) ** 2, color=colour, linewidth=0)
    ax.set(xlim=(-0.5, pairs - 0.5), ylim=(positions - 0.5, -0.5))
    ax.axis("off")


def sheet(width: int, height: int) -> Figure:
    """Return an empty navy figure of this size in pixels."""
    return Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor=NAVY, layout="none")


def panel(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Add axes at a place given in pixels from the upper left corner."""
    whole, full = figure.get_size_inches() * DPI
    return figure.add_axes((left / whole, 1 - (top + height) / full, width / whole, height / full))


def write(figure: Figure, left: float, base: float, text: str, pixels: float, **options: str) -> None:
    """Write a line at a place given in pixels from the upper left corner, of letters of this size."""
    whole, full = figure.get_size_inches() * DPI
    options = {"color": IVORY, "family": BODY, **options}
    figure.text(left / whole, 1 - base / full, text, fontsize=pixels * 72 / DPI, va="baseline", **options)


def cover() -> Figure:
    """Draw the cover of the book, 1600 by 2560 pixels."""
    figure = sheet(1600, 2560)
    write(figure, 160, 400, "The Measured", 216, family=TITLE)
    write(figure, 160, 624, "Transformer", 216, family=TITLE)
    write(figure, 168, 750, "Every claim is executed", 50, color=ORANGE)
    draw_hands(panel(figure, 160, 900, 1280, 1360), 17, 16, d_model=64, marked=8, width=5)
    write(figure, 168, 2380, "The sinusoidal encoding of the positions 0 to 16: a row for each position, a hand", 27)
    write(figure, 168, 2424, "for each of its 16 fastest pairs of dimensions, of 32. In orange, position 8.", 27)
    return figure


def banner() -> Figure:
    """Draw the banner of the first page, 1480 by 360 pixels."""
    figure = sheet(1480, 360)
    draw_hands(panel(figure, 40, 40, 1400, 280), 7, 35, d_model=128, marked=3, width=2.2)
    return figure


def card() -> Figure:
    """Draw the social card, 1200 by 630 pixels, which is often seen at a quarter of that."""
    figure = sheet(1200, 630)
    write(figure, 72, 280, "The Measured", 124, family=TITLE)
    write(figure, 72, 408, "Transformer", 124, family=TITLE)
    write(figure, 77, 490, "Every claim is executed", 40, color=ORANGE)
    draw_hands(panel(figure, 864, 72, 270, 486), 9, 5, d_model=16, marked=4, width=3.8)
    return figure


def logo() -> Figure:
    """Draw the logo: the two fastest hands of position 5, in 8 dimensions."""
    figure = Figure(figsize=(0.64, 0.64), dpi=DPI, facecolor="none", layout="none")
    ax = figure.add_axes((0, 0, 1, 1))
    ax.add_patch(Circle((0, 0), 1, facecolor=BLUE, linewidth=0))
    for sine, cosine in sinusoidal_encoding(6, 8)[5, :4].reshape(2, 2).tolist():
        ax.plot([0, 0.66 * sine], [0, 0.66 * cosine], color="white", linewidth=6.2, solid_capstyle="round")
    ax.set(xlim=(-1, 1), ylim=(-1, 1))
    ax.axis("off")
    return figure


PICTURES: dict[str, Callable[[], Figure]] = {
    "_static/cover.png": cover,
    "images/banner.png": banner,
    "_static/card.png": card,
    "_static/logo.svg": logo,
    "_static/favicon.ico": logo,
}
ICON_SIZES = [(size, size) for size in (16, 32, 48)]


def save(name: str, path: Path) -> None:
    """Draw a picture and save it as its name's ending says.

    Args:
        name: One of `PICTURES`.
        path: Where to save it.
    """
    with style.context("default", after_reset=True), rc_context({"svg.hashsalt": name}):
        figure = PICTURES[name]()
        if path.suffix == ".svg":
            figure.savefig(path, metadata={"Date": None, "Creator": None})
        elif path.suffix == ".ico":
            pixels(figure, scale=4).save(path, sizes=ICON_SIZES)
        else:
            pixels(figure).quantize(64).save(path, optimize=True)


def pixels(figure: Figure, scale: float = 1) -> Image.Image:
    """Return a figure as an image, so many times as large."""
    file = io.BytesIO()
    figure.savefig(file, dpi=scale * DPI)
    return Image.open(file)


if __name__ == "__main__":
    for name in PICTURES:
        print(BOOK / name)
        save(name, BOOK / name)
