import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.image import imread

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
        assert [text.get_text() for text in ax.get_legend().get_texts()] == ["train", "dev"]


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


FIGURES = [
    plot_attention(WEIGHTS, QUERIES, KEYS),
    plot_history(HISTORY),
    plot_masks(MASKS),
    plot_tensors(TENSORS),
    plot_positions(torch.eye(4)),
    plot_lines(LINES, x_label="n", y_label="t"),
    plot_sums(SUMS, x_label="n"),
]


@pytest.mark.parametrize("figure", FIGURES)
def test_a_figure_is_drawn_on_an_opaque_white_card_and_left_out_of_pyplot(figure):
    file = io.BytesIO()
    figure.savefig(file)
    file.seek(0)
    corner = imread(file)[0, 0]
    assert corner.tolist() == [1, 1, 1, 1]
    assert plt.get_fignums() == []
