import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from companion.batching import LabelledBatch, Seq2SeqBatch
from companion.configs import Seq2SeqConfig
from companion.losses import LossOutput, LossSums, classification_loss, seq2seq_loss, span_loss, tagging_loss
from companion.models import Seq2SeqTransformer


def test_classification_loss_is_the_summed_cross_entropy():
    logits = torch.tensor([2.0, -1.0, 0.5])
    batch = LabelledBatch(torch.tensor([[4, 5], [6, 0], [7, 8]]), torch.tensor([1.0, 0.0, 0.0]))
    model = nn.Module()
    model.forward = lambda input_ids: logits
    loss, count, metrics = classification_loss(model, batch)
    expected = sum(
        math.log1p(math.exp(-z)) if y else math.log1p(math.exp(z)) for z, y in ((2.0, 1), (-1.0, 0), (0.5, 0))
    )
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert count == 3
    assert {name: value.item() for name, value in metrics.items()} == {"accuracy": 2, "tokens": 5}


def test_tagging_loss_is_the_summed_cross_entropy_of_the_labelled_tokens():
    logits = torch.tensor([[[0.5, 2.0, -1.0], [0.0, 0.0, 3.0]], [[1.0, 1.0, 1.0], [9.0, 0.0, 0.0]]])
    batch = LabelledBatch(torch.tensor([[4, 5], [6, 0]]), torch.tensor([[1, 1], [2, 0]]))
    model = nn.Module()
    model.forward = lambda input_ids: logits
    loss, count, metrics = tagging_loss(model, batch)
    rows = (((0.5, 2.0, -1.0), 1), ((0.0, 0.0, 3.0), 1), ((1.0, 1.0, 1.0), 2))
    expected = sum(math.log(sum(math.exp(z) for z in row)) - row[label] for row, label in rows)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert count == 3
    # Of the labelled tokens the first is right; the padding, whose largest logit is that of label 0, does not count.
    assert {name: value.item() for name, value in metrics.items()} == {"accuracy": 1, "tokens": 3}


@given(st.lists(st.tuples(st.floats(0, 1e6, width=32), st.integers(1, 500), st.integers(0, 500)), min_size=1))
def test_means_are_over_the_examples_of_all_batches(batches):
    sums = LossSums()
    for loss_sum, count, tokens in batches:
        sums.add(LossOutput(torch.tensor(loss_sum), count, {"accuracy": torch.tensor(1), "tokens": tokens}))
    means, tokens = sums.means()
    examples = sum(count for _, count, _ in batches)
    expected = {"loss": math.fsum(loss for loss, _, _ in batches) / examples, "accuracy": len(batches) / examples}
    assert means == pytest.approx(expected, rel=1e-12)
    assert tokens == sum(tokens for *_, tokens in batches)


def test_sums_go_on_where_others_stopped_to_the_last_bit():
    batches = [LossOutput(torch.rand(()) / 3, n, {"exact": torch.rand(())}) for n in range(1, 40)]
    whole, first = LossSums(), LossSums()
    for loss in batches:
        whole.add(loss)
    for loss in batches[:17]:
        first.add(loss)
    second = LossSums(first.sums)
    for loss in batches[17:]:
        second.add(loss)
    assert second.sums == whole.sums
    assert first.sums["count"] == 17 * 18 / 2
    assert whole.sums["loss"].dtype == torch.float64


def test_span_loss_is_half_the_cross_entropy_of_both_ends():
    inf = math.inf
    start = torch.tensor([[0.5, -inf, 2.0, -1.0], [3.0, -inf, 1.0, 0.0], [0.5, -inf, 2.0, -1.0]])
    end = torch.tensor([[0.0, -inf, 1.0, 1.5], [2.0, -inf, 9.0, 0.5], [0.0, -inf, 1.0, 1.5]])
    ids = torch.tensor([[2, 3, 6, 7], [2, 3, 8, 0], [2, 3, 6, 7]])
    batch = LabelledBatch(ids, torch.tensor([[2, 3], [0, 0], [2, 2]]))
    model = nn.Module()
    model.forward = lambda input_ids: (start, end)
    loss, count, metrics = span_loss(model, batch)
    rows = ((start[0], 2), (end[0], 3), (start[1], 0), (end[1], 0), (start[2], 2), (end[2], 2))
    expected = sum(math.log(sum(math.exp(z) for z in row.tolist())) - row[label].item() for row, label in rows) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert count == 3
    # The second row's best pair of ends is (2, 2), though its best start alone is 0; the third has one end right.
    assert {name: value.item() for name, value in metrics.items()} == {"accuracy": 1, "tokens": 11}


class Wrapper(nn.Module):
    """Hide a model as torch's wrapper for several processes does."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *inputs):
        return self.module(*inputs)


@pytest.mark.parametrize("wrap", [lambda model: model, Wrapper])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_seq2seq_loss_is_the_cross_entropy_of_the_tokens_after_the_first(wrap, smoothing):
    config = Seq2SeqConfig(
        source_vocab_size=9, target_vocab_size=11, d_model=8, num_heads=2, num_layers=1, label_smoothing=smoothing
    )
    model = Seq2SeqTransformer(config).eval()
    batch = Seq2SeqBatch(torch.tensor([[5, 6, 7], [8, 0, 0]]), torch.tensor([[2, 7, 9, 3], [2, 3, 0, 0]]))
    loss, count, metrics = seq2seq_loss(wrap(model), batch)
    logits = model(batch.source_ids, batch.target_ids[:, :-1])
    criterion = nn.CrossEntropyLoss(label_smoothing=smoothing, reduction="none")
    places = [(0, 0, 7), (0, 1, 9), (0, 2, 3), (1, 0, 3)]
    expected = sum(criterion(logits[row, place], torch.tensor(label)).item() for row, place, label in places)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert count == 4
    right = sum(int(logits[row, place].argmax() == label) for row, place, label in places)
    assert {name: value.item() for name, value in metrics.items()} == {"accuracy": right, "tokens": 10}


def test_seq2seq_loss_counts_no_padding_as_right():
    config = Seq2SeqConfig(source_vocab_size=9, target_vocab_size=5, d_model=8, num_heads=2, num_layers=1)
    model = Seq2SeqTransformer(config)
    model.forward = lambda source_ids, target_ids: torch.eye(5)[torch.tensor([[4, 3, 0]])]  # 4, 3, padding
    batch = Seq2SeqBatch(torch.tensor([[5]]), torch.tensor([[2, 4, 3, 0]]))
    assert seq2seq_loss(model, batch).metrics["accuracy"].item() == 2
