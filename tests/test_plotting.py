import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.image import imread

from companion.plotting import plot_attention, plot_history

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
    assert labels(ax.xaxis) == labels(ax.yaxis) == KEYS


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


@pytest.mark.parametrize("figure", [plot_attention(WEIGHTS, QUERIES, KEYS), plot_history(HISTORY)])
def test_a_figure_is_drawn_on_an_opaque_white_card_and_left_out_of_pyplot(figure):
    file = io.BytesIO()
    figure.savefig(file)
    file.seek(0)
    corner = imread(file)[0, 0]
    assert corner.tolist() == [1, 1, 1, 1]
    assert plt.get_fignums() == []
