"""The pictures that artwork.py draws: what they show, and that the stored ones are those that it draws."""

import importlib.util
import math
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from PIL import Image

ROOT = Path(__file__).parents[1]
SIZES = {"_static/cover.png": (1600, 2560), "images/banner.png": (1480, 360), "_static/card.png": (1200, 630)}
KILOBYTES = {"_static/cover.png": 400, "images/banner.png": 150, "_static/card.png": 150}


@pytest.fixture(scope="module")
def artwork():
    spec = importlib.util.spec_from_file_location("artwork", ROOT / "book" / "_tools" / "artwork.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(image, size):
    """Return the mean colour of each block of size by size pixels, which hardly knows how edges are smoothed."""
    values = np.asarray(image.convert("RGBA"), dtype=float)
    height, width = (length // size * size for length in values.shape[:2])
    return values[:height, :width].reshape(height // size, size, width // size, size, 4).mean(axis=(1, 3))


@pytest.mark.parametrize("name", SIZES)
def test_the_stored_picture_is_the_one_that_is_drawn(artwork, tmp_path, name):
    path = tmp_path / Path(name).name
    artwork.save(name, path)
    with Image.open(path) as drawn, Image.open(ROOT / "book" / name) as stored:
        assert drawn.size == stored.size == SIZES[name]
        # An edge that another version of FreeType moves by a pixel changes a block by 1/16 of its contrast, 14 here.
        assert np.abs(blocks(drawn, 16) - blocks(stored, 16)).max() < 20
    assert (ROOT / "book" / name).stat().st_size < 1000 * KILOBYTES[name]


def test_the_stored_favicon_is_the_one_that_is_drawn(artwork, tmp_path):
    path = tmp_path / "favicon.ico"
    artwork.save("_static/favicon.ico", path)
    assert [file.name for file in tmp_path.iterdir()] == ["favicon.ico"]
    with Image.open(path) as drawn, Image.open(ROOT / "book" / "_static" / "favicon.ico") as stored:
        assert drawn.info["sizes"] == stored.info["sizes"] == {(16, 16), (32, 32), (48, 48)}
        for size in drawn.info["sizes"]:
            drawn.size = stored.size = size
            assert np.abs(blocks(drawn, 4) - blocks(stored, 4)).max() < 16


def test_the_stored_logo_is_the_one_that_is_drawn(artwork, tmp_path):
    artwork.save("_static/logo.svg", tmp_path / "logo.svg")
    drawn, stored = (
        path.read_text(encoding="utf-8") for path in (tmp_path / "logo.svg", ROOT / "book" / "_static" / "logo.svg")
    )
    for pattern in (r"#[0-9a-f]{6}\b", r"stroke-width: ([\d.]+)", r"viewBox=\"(.*)\""):
        assert re.findall(pattern, drawn) == re.findall(pattern, stored) != []
    places = [
        [float(number) for path in re.findall(r'\bd="([^"]*)"', text) for number in re.findall(r"-?[\d.]+", path)]
        for text in (drawn, stored)
    ]
    np.testing.assert_allclose(*places, atol=0.01)


def test_a_hand_points_where_the_encoding_says(artwork):
    ax = Figure().subplots()
    artwork.draw_hands(ax, 6, 3, d_model=8, marked=4, width=1)
    rows = [collection for collection in ax.collections if isinstance(collection, LineCollection)]
    for position, row in enumerate(rows):
        for pair, ((x0, y0), (x1, y1)) in enumerate(row.get_segments()):
            angle = position / 10_000 ** (2 * pair / 8)  # clockwise from twelve; the rows' axis points down
            assert (x1 - x0, y0 - y1) == pytest.approx((0.76 * math.sin(angle), 0.76 * math.cos(angle)), abs=1e-6)
            assert ((x0 + x1) / 2, (y0 + y1) / 2) == pytest.approx((pair, position))
    assert len(rows) == 6
    colours = [tuple(row.get_color()[0]) for row in rows]
    assert [position for position, colour in enumerate(colours) if colour != colours[0]] == [4]
    assert ax.yaxis_inverted()


def test_the_logo_has_the_two_fastest_hands_of_position_5(artwork):
    lines = artwork.logo().axes[0].lines
    ends = [(line.get_xdata()[1], line.get_ydata()[1]) for line in lines]
    for (x, y), angle in zip(ends, (5, 5 / 10), strict=True):
        assert (x, y) == pytest.approx((0.66 * math.sin(angle), 0.66 * math.cos(angle)), abs=1e-6)


def test_no_text_leaves_its_picture(artwork):
    for name in SIZES:
        figure = artwork.PICTURES[name]()
        for text in figure.texts:
            box = text.get_window_extent()
            assert box.x0 >= 60
            assert box.x1 <= SIZES[name][0] - 60
            for ax in figure.axes:
                assert not box.overlaps(ax.get_window_extent())
