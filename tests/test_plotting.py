import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from IPython.core.pylabtools import retina_figure
from matplotlib import rc_context, rcParams, style
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from companion.plotting import (
    plot_attention,
    plot_history,
    plot_lines,
    plot_masks,
    plot_positions,
    plot_sums,
    plot_tensors,
)

QUERIES, KEYS = ["the", "film"], ["not", "bad", "at"]
WEIGHTS = torch.tensor([[[0.2, 0.3, 0.5], [0.0, 0.9, 0.1]], [[1.0, 0.0, 0.0], [0.25, 0.25, 0.5]]])
HISTORY = [
    {"epoch": 1, "train": {"loss": 0.7, "accuracy": 0.5}, "dev": {"loss": 0.6, "accuracy": 0.6}},
    {"epoch": 2, "train": {"loss": 0.4, "accuracy": 0.7}, "dev": {"loss": 0.5, "accuracy": 0.8}},
    {"epoch": 3, "train": {"loss": 0.2, "accuracy": 0.9}, "dev": {"loss": 0.55, "accuracy": 0.7}},
]


def labels(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def maps(figure):
    """Return the axes that hold a map, without the colour bar."""
    return [ax for ax in figure.axes if ax.images]


def test_each_head_is_a_map_of_its_weights_with_queries_as_rows():
    figure = plot_attention(WEIGHTS.requires_grad_(), QUERIES, KEYS)
    assert len(maps(figure)) == 2
    for number, (ax, weights) in enumerate(zip(maps(figure), WEIGHTS.detach(), strict=True), start=1):
        (image,) = ax.images
        np.testing.assert_array_equal(image.get_array(), weights.numpy())
        assert image.origin == "upper"
        assert ax.get_title() == f"head {number}"
        assert labels(ax.xaxis) == KEYS
        assert (ax.get_xlabel(), maps(figure)[0].get_ylabel()) == ("key", "query")
    assert labels(maps(figure)[0].yaxis) == QUERIES


def test_the_maps_share_one_scale_from_nothing_to_the_largest_weight():
    figure = plot_attention(WEIGHTS * 0.5, QUERIES, KEYS)
    assert {ax.images[0].get_clim() for ax in maps(figure)} == {(0.0, 0.5)}
    (bar,) = [ax for ax in figure.axes if not ax.images]
    assert bar.get_ylabel() == "weight"
    assert bar.get_ylim() == (0.0, 0.5)


def test_the_columns_are_named_as_the_rows_where_no_key_tokens_are_given():
    (ax,) = maps(plot_attention(torch.eye(3)[None], KEYS))
    assert ax.get_title() == ""
    assert labels(ax.xaxis) == labels(ax.yaxis) == KEYS


def test_a_token_with_dollars_is_no_formula():
    assert labels(maps(plot_attention(torch.eye(2)[None], ["\ud800", "a\nb"]))[0].xaxis) == [r"\ud800", r"a\nb"]
    figure = plot_attention(torch.eye(2)[None], ["$", r"$\nothing$"])
    figure.draw_without_rendering()
    assert labels(maps(figure)[0].xaxis) == ["$", r"$\nothing$"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_of_any_precision_can_be_drawn(dtype):
    (ax,) = maps(plot_attention(torch.full((1, 2, 2), 0.5, dtype=dtype), QUERIES))
    np.testing.assert_array_equal(ax.images[0].get_array(), np.full((2, 2), 0.5))


@pytest.mark.parametrize(
    ("queries", "keys", "message"),
    [
        (QUERIES, None, "got 2 query tokens and 2 key tokens; expected 2 and 3"),
        (KEYS, KEYS, "got 3 query tokens and 3 key tokens; expected 2 and 3"),
    ],
)
def test_tokens_that_are_not_those_of_the_weights_are_refused(queries, keys, message):
    with pytest.raises(ValueError, match=message):
        plot_attention(WEIGHTS, queries, keys)


@pytest.mark.parametrize("metrics", [("loss", "accuracy"), ("accuracy",)])
def test_a_history_is_a_panel_for_each_metric_with_a_curve_for_each_split(metrics):
    figure = plot_history(HISTORY, metrics)
    assert [ax.get_ylabel() for ax in figure.axes] == list(metrics)
    for ax, metric in zip(figure.axes, metrics, strict=True):
        assert ax.get_xlabel() == "epoch"
        assert [line.get_label() for line in ax.lines] == ["train", "dev"]
        for line in ax.lines:
            assert list(line.get_xdata()) == [1, 2, 3]
            assert list(line.get_ydata()) == [entry[line.get_label()][metric] for entry in HISTORY]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["train", "dev"]


def test_without_a_dev_split_there_is_one_curve():
    figure = plot_history([{"epoch": 1, "train": {"loss": 0.5}}], ["loss"])
    assert [line.get_label() for line in figure.axes[0].lines] == ["train"]


def test_epochs_are_whole_numbers_on_the_axis():
    (ax,) = plot_history(HISTORY[:2], ["loss"]).axes
    assert all(float(tick).is_integer() for tick in ax.get_xticks())


def test_an_empty_history_is_refused():
    with pytest.raises(ValueError, match="the history is empty"):
        plot_history([])


MASKS = {"all": torch.ones(2, 3, dtype=torch.bool), "some": torch.tensor([[True, False, False], [False, True, True]])}
TENSORS = {"query": torch.tensor([[1.0, -3.0], [0.0, 2.0]]), "scores": torch.tensor([[0.5, 0.25, 0.0]])}
LINES = {"squares": ([1, 2, 4], [1, 4, 16]), "cubes": ([1, 2, 4], [1.0, 8.0, 64.0])}


def test_each_mask_is_a_grid_with_a_dot_where_it_is_true():
    figure = plot_masks(MASKS)
    for ax, (title, mask) in zip(figure.axes, MASKS.items(), strict=True):
        grid, dots = ax.collections
        np.testing.assert_array_equal(grid.get_array(), mask.numpy())
        assert grid.get_clim() == (0, 1)
        assert grid.cmap(0.0) == (1, 1, 1, 1)
        assert [tuple(place) for place in dots.get_offsets()] == [
            (key + 0.5, query + 0.5) for query in range(2) for key in range(3) if mask[query, key]
        ]
        assert ax.yaxis_inverted()
        assert (ax.get_title(), ax.get_xlabel()) == (title, "key")
        assert (labels(ax.xaxis), labels(ax.yaxis)) == (["0", "1", "2"], ["0", "1"])
    assert figure.axes[0].get_ylabel() == "query"


def test_matrices_share_one_scale_around_zero_and_say_their_shapes():
    first, second = maps(plot_tensors(TENSORS, ["not", "bad"]))
    for ax, (title, tensor) in zip((first, second), TENSORS.items(), strict=True):
        np.testing.assert_array_equal(ax.images[0].get_array(), tensor.numpy())
        assert ax.images[0].get_clim() == (-3.0, 3.0)
        assert ax.get_title() == f"{title}\n{tuple(tensor.shape)}"
    assert labels(first.yaxis) == ["not", "bad"]
    assert (first.get_ylabel(), labels(second.yaxis)) == ("token", [])
    assert labels(maps(plot_tensors(TENSORS))[0].yaxis) == ["0", "1"]


def test_matrices_of_zeros_can_be_drawn():
    (ax,) = maps(plot_tensors({"nothing": torch.zeros(2, 2)}))
    assert ax.images[0].get_clim() == (-1.0, 1.0)


def test_row_labels_that_are_not_those_of_the_rows_are_refused():
    with pytest.raises(ValueError, match="got 1 row labels; expected 2"):
        plot_tensors(TENSORS, ["not"])


def test_a_table_of_positions_has_a_row_for_each_position():
    table = torch.tensor([[0.0, 1.0, -2.0], [0.5, 0.5, 0.0]])
    (ax,) = maps(plot_positions(table))
    np.testing.assert_array_equal(ax.images[0].get_array(), table.numpy())
    assert ax.images[0].get_clim() == (-2.0, 2.0)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("dimension", "position")


def test_lines_go_through_their_points_in_colours_and_markers_of_their_own():
    (ax,) = plot_lines(LINES, x_label="n (tokens)", y_label="time (ms)").axes
    for line, (label, (x, y)) in zip(ax.lines, LINES.items(), strict=True):
        assert (line.get_label(), list(line.get_xdata()), list(line.get_ydata())) == (label, x, y)
    assert len({line.get_color() for line in ax.lines}) == len({line.get_marker() for line in ax.lines}) == 2
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("n (tokens)", "time (ms)")
    assert (ax.get_xscale(), ax.get_yscale()) == ("linear", "linear")


def test_axes_of_lines_may_be_logarithmic_each_by_itself():
    figure = plot_lines(LINES, x_label="n", y_label="t", x_scale="log")
    figure.draw_without_rendering()
    (ax,) = figure.axes
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "linear")
    assert {"1", "2", "4"} <= set(labels(ax.xaxis))
    (ax,) = plot_lines(LINES, x_label="n", y_label="t", y_scale="log").axes
    assert (ax.get_xscale(), ax.get_yscale()) == ("linear", "log")


def test_marks_stand_at_their_places_with_their_labels():
    (ax,) = plot_lines(LINES, x_label="n", y_label="t", x_marks={"trained at": 2}, y_marks={"chance": 10}).axes
    vertical, horizontal = ax.lines[2:]
    assert list(vertical.get_xdata()) == [2, 2]
    assert list(horizontal.get_ydata()) == [10, 10]
    assert [text.get_text() for text in ax.texts] == ["trained at", "chance"]


@pytest.mark.parametrize("count", [0, 8])
def test_no_line_and_more_lines_than_colours_are_refused(count):
    with pytest.raises(ValueError, match=f"got {count} lines; choose 1 to 7"):
        plot_lines({str(number): ([1], [1]) for number in range(count)}, x_label="n", y_label="t")


SUMS = {"plain": {"words": 4.0, "layers": 8.25}, "shared": {"words": 4.0, "layers": 0.5}}


def test_the_terms_of_a_sum_lie_end_to_end_and_the_total_stands_behind_them():
    figure = plot_sums(SUMS, x_label="million parameters")
    figure.draw_without_rendering()
    (ax,) = figure.axes
    words, layers = ([(bar.get_x(), bar.get_width()) for bar in bars] for bars in ax.containers)
    assert (words, layers) == ([(0, 4), (0, 4)], [(4, 8.25), (4, 0.5)])
    assert labels(ax.yaxis) == ["plain", "shared"]
    assert [(text.get_text(), text.xy) for text in ax.texts] == [("12.2", (12.25, "plain")), ("4.5", (4.5, "shared"))]
    assert ax.yaxis_inverted()
    assert ax.get_xlabel() == "million parameters"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["words", "layers"]
    colours = [{bar.get_facecolor() for bar in bars} for bars in ax.containers]
    assert [len(colour) for colour in colours] == [1, 1]
    assert colours[0] != colours[1]


@pytest.mark.parametrize(
    ("sums", "message"),
    [
        ({}, "got 0 terms; choose 1 to 7"),
        ({"a": {}}, "got 0 terms; choose 1 to 7"),
        ({"a": dict.fromkeys("abcdefgh", 1)}, "got 8 terms; choose 1 to 7"),
        (
            {"a": {"x": 1, "y": 2}, "b": {"x": 1}},
            r"the sums differ in their terms; give each \['x', 'y'\], in this order",
        ),
    ],
)
def test_sums_without_terms_with_too_many_or_with_others_are_refused(sums, message):
    with pytest.raises(ValueError, match=message):
        plot_sums(sums, x_label="n")


@pytest.mark.parametrize(("plot", "name"), [(plot_masks, "masks"), (plot_tensors, "tensors")])
def test_nothing_to_draw_is_refused(plot, name):
    with pytest.raises(ValueError, match=f"{name} is empty"):
        plot({})


DRAWINGS = [
    lambda: plot_attention(WEIGHTS, QUERIES, KEYS),
    lambda: plot_history(HISTORY),
    lambda: plot_masks(MASKS),
    lambda: plot_tensors(TENSORS),
    lambda: plot_positions(torch.eye(4)),
    lambda: plot_lines(LINES, x_label="n", y_label="t", x_scale="log", y_scale="log", y_marks={"chance": 2}),
    lambda: plot_lines({"below 0": (range(50), range(-25, 25))}, x_label="n", y_label="t", x_marks={"here": 2}),
    lambda: plot_sums(SUMS, x_label="n"),
]
HOUSE_STYLE = "companion.plotting.book"
UGLY = {
    "figure.dpi": 33,
    "figure.figsize": (2, 9),
    "figure.facecolor": "black",
    "savefig.dpi": 40,
    "savefig.transparent": True,
    "savefig.pad_inches": 3,
    "font.family": "serif",
    "font.size": 30,
    "text.antialiased": False,
    "axes.grid": False,
    "axes.facecolor": "yellow",
    "axes.unicode_minus": False,
    "axes.prop_cycle": plt.cycler(color=["red"]),
    "axes.spines.left": False,
    "axes.titlelocation": "right",
    "xtick.labelsize": 3,
    "xtick.color": "red",
    "ytick.direction": "in",
    "ytick.major.size": 20,
    "lines.linewidth": 9,
    "lines.marker": "x",
    "legend.frameon": True,
    "legend.title_fontsize": 40,
    "hatch.linewidth": 5,
    "patch.force_edgecolor": True,
    "image.cmap": "jet",
    "image.interpolation": "bicubic",
    "image.origin": "lower",
    "path.sketch": (3, 100, 2),
}


def pixels(figure, **options):
    file = io.BytesIO()
    figure.savefig(file, **options)
    file.seek(0)
    return imread(file)


@pytest.mark.parametrize("figure", [draw() for draw in DRAWINGS])
def test_a_figure_is_drawn_on_an_opaque_white_card_and_left_out_of_pyplot(figure):
    image = pixels(figure)
    assert image[0, 0].tolist() == [1, 1, 1, 1]
    assert (image[..., 3] == 1).all()
    assert plt.get_fignums() == []


@pytest.mark.parametrize("draw", DRAWINGS)
def test_a_figure_looks_the_same_whatever_style_the_caller_has_set_and_leaves_that_style_alone(draw):
    plain = pixels(draw())
    with rc_context(UGLY):
        before = dict(rcParams)
        ugly = pixels(draw())
        assert dict(rcParams) == before
    np.testing.assert_array_equal(ugly, plain)


def test_a_figure_in_a_notebook_looks_the_same_whatever_style_the_caller_has_set():
    def shown():
        return retina_figure(DRAWINGS[6](), base64=False)[0]

    plain = shown()
    with rc_context({name: value for name, value in UGLY.items() if not name.startswith("savefig.")}):
        assert shown() == plain


@pytest.mark.parametrize("draw", DRAWINGS)
def test_a_figure_fits_the_page_and_its_texts_can_be_read_on_a_phone(draw):
    figure = draw()
    figure.draw_without_rendering()
    width, height = figure.bbox.size  # in pixels of the page
    assert width <= 700
    assert pixels(figure, bbox_inches=figure.bbox_inches).shape[:2] == (round(2 * height), round(2 * width))
    texts = [text for text in figure.findobj(Text) if text.get_text()]
    assert len(texts) > 5
    for text in texts:
        assert text.get_fontname() == "DejaVu Sans"
        assert text.get_fontsize() / 72 * figure.dpi * 350 / width >= 6


def test_lines_and_bars_take_their_colours_from_the_style_sheet():
    with style.context(HOUSE_STYLE):
        colours = rcParams["axes.prop_cycle"].by_key()["color"]
    assert colours == ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"]  # Okabe & Ito
    lines = {str(number): ([1, 2], [number, 1]) for number in range(7)}
    (ax,) = plot_lines(lines, x_label="n", y_label="t").axes
    assert [line.get_color() for line in ax.lines] == colours
    (ax,) = plot_sums({"a": dict.fromkeys("abcdefg", 1)}, x_label="n").axes
    assert [to_hex(bars[0].get_facecolor()) for bars in ax.containers] == colours
    (ax,) = plot_history(HISTORY, ["loss"]).axes
    assert [line.get_color() for line in ax.lines] == colours[:2]


def test_weights_have_one_colour_map_and_signed_values_another():
    assert {ax.images[0].cmap.name for ax in maps(plot_attention(WEIGHTS, QUERIES, KEYS))} == {"Blues"}
    signed = [*maps(plot_tensors(TENSORS)), *maps(plot_positions(torch.eye(4)))]
    assert {ax.images[0].cmap.name for ax in signed} == {"RdBu_r"}


def test_the_style_serves_figures_of_the_callers_own():
    with style.context(HOUSE_STYLE):
        figure = Figure()
        ax = figure.subplots()
        (line,) = ax.plot([1, 2])
    ours = plot_lines({"": ([0, 1], [1, 2])}, x_label="", y_label="")
    assert line.get_color() == ours.axes[0].lines[0].get_color()
    assert figure.get_size_inches().tolist() == ours.get_size_inches().tolist()
    assert [side for side, spine in ax.spines.items() if spine.get_visible()] == ["left", "bottom"]


@pytest.mark.parametrize("draw", [draw for draw in DRAWINGS if draw().legends])
def test_the_legend_stands_above_the_panels_and_within_the_figure(draw):
    figure = draw()
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert not legend.get_frame_on()
    assert all(box.y0 >= ax.get_window_extent().y1 for ax in figure.axes)
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1


def test_a_legend_takes_as_many_rows_as_it_needs():
    def rows(*labels):
        lines = {label: ([1, 2], [1, 2]) for label in labels}
        figure = plot_lines(lines, x_label="n", y_label="t")
        figure.draw_without_rendering()
        (legend,) = figure.legends
        return len({round(text.get_window_extent().y0) for text in legend.get_texts()})

    assert rows("a", "b", "c", "d") == 1
    assert rows(*(letter * 20 for letter in "abcd")) == 2
    assert rows("a" * 100, "b" * 100) == 2


@pytest.mark.parametrize(
    ("high", "shown"),
    [(20, ["1", "2", "5", "10", "20"]), (1e6, [f"$\\mathdefault{{10^{{{power}}}}}$" for power in range(7)])],
)
def test_a_logarithmic_axis_of_few_decades_has_plain_numbers(high, shown):
    figure = plot_lines({"": ([0, 1], [1, high])}, x_label="n", y_label="t", y_scale="log")
    figure.draw_without_rendering()
    (ax,) = figure.axes
    low, high = ax.get_ylim()
    seen = [text.get_text() for text in ax.get_yticklabels(which="both") if low <= text.get_position()[1] <= high]
    assert [text for text in seen if text] == shown


def test_thousands_are_set_apart_on_the_horizontal_axis():
    figure = plot_lines({"": ([-10_000, 10_000], [1, 2])}, x_label="n", y_label="t")
    figure.draw_without_rendering()
    assert {"−10,000", "0", "5,000"} <= set(labels(figure.axes[0].xaxis))


def test_past_sixteen_points_only_some_have_markers():
    def markers(points, count=2):
        values = {str(number): (range(points), range(points)) for number in range(count)}
        line = plot_lines(values, x_label="n", y_label="t").axes[0].lines[0]
        return line.get_marker(), line.get_markevery()

    assert (markers(16), markers(17)) == (("o", 1), ("o", 0.1))
    assert (markers(16, 1), markers(17, 1)[0]) == (("o", 1), "")


def test_a_map_is_no_higher_than_its_rows_and_its_colour_bar_than_the_map():
    figure = plot_attention(torch.full((1, 3, 20), 0.05), ["a", "b", "c"], ["word"] * 20)
    figure.draw_without_rendering()
    (ax,) = maps(figure)
    (bar,) = [ax for ax in figure.axes if not ax.images]
    box = ax.get_window_extent()
    assert box.height / box.width == pytest.approx(3 / 20)
    assert bar.get_window_extent().height == pytest.approx(box.height, rel=0.02)
