"""N-grams and the classifier that reads them, against sets, dicts and loops."""

import math
from collections import Counter
from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from companion import NGramClassifier, NGramConfig, NGrams, TextClassifier, ngram_keys, toy
from companion.configs import ClassifierConfig
from companion.models import masked_mean
from companion.text import Vocabulary

close = partial(torch.testing.assert_close, rtol=0, atol=1e-10)
texts = st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=9), min_size=2, max_size=8)


def grams(ids, n):
    return [tuple(ids[k : k + n]) for k in range(len(ids) - n + 1)]


def number(gram, vocab_size):
    return sum(token * vocab_size**place for place, token in enumerate(reversed(gram)))


@given(st.lists(st.integers(1, 99), min_size=1, max_size=12), st.integers(1, 5), st.integers(0, 3))
def test_keys_number_the_ngrams_that_end_at_each_position(ids, n, padding):
    keys = ngram_keys(torch.tensor([ids + [0] * padding]), n, vocab_size=100)
    expected = [0] * min(n - 1, len(ids)) + [number(gram, 100) for gram in grams(ids, n)] + [0] * padding
    assert keys.tolist() == [expected]


@given(texts, st.integers(1, 3), st.integers(1, 3), st.randoms(use_true_random=False))
def test_table_equals_sets_and_the_formula(sequences, max_n, min_count, random):
    labels = [random.randint(0, 1) for _ in sequences]
    documents = {label: Counter() for label in (0, 1)}
    for ids, label in zip(sequences, labels, strict=True):
        documents[label].update({gram for n in range(1, max_n + 1) for gram in grams(ids, n)})
    kept = [g for g in documents[0] | documents[1] if documents[0][g] + documents[1][g] >= min_count]

    def build():
        return NGrams.build(sequences, labels, vocab_size=7, max_n=max_n, min_count=min_count)

    if not kept:
        with pytest.raises(ValueError, match=rf"min_count={min_count}: no n-gram is in so many of the {len(labels)}"):
            build()
        return
    table = build()
    p, q = ({g: documents[label][g] + 1 for g in kept} for label in (1, 0))
    expected = {number(g, 7): math.log(p[g] / sum(p.values())) - math.log(q[g] / sum(q.values())) for g in kept}
    assert table.keys.tolist() == sorted(expected)
    close(table.log_ratios, torch.tensor([expected[key] for key in sorted(expected)]), atol=1e-6)  # float32 near 1


def make_model(max_n=3, **settings):
    reviews = toy.reviews(60)
    vocabulary = Vocabulary.build(review.text.split() for review in reviews)
    sequences = [vocabulary.encode(review.text.split()) for review in reviews]
    labels = [review.label for review in reviews]
    table = NGrams.build(sequences, labels, vocab_size=len(vocabulary), max_n=max_n, min_count=2)
    config = NGramConfig(
        vocab_size=len(vocabulary),
        max_n=max_n,
        num_ngrams=len(table.keys),
        max_length=64,
        d_model=16,
        d_ff=32,
        **settings,
    )
    torch.manual_seed(0)
    return NGramClassifier(config, table), sequences


def test_lookup_equals_a_dict():
    model, sequences = make_model()
    rows = {key: row for row, key in enumerate(model.keys.tolist(), start=1)}
    for ids in sequences[:10]:
        found = model.lookup(torch.tensor([[*ids, 0, 0]]))[0].tolist()
        for place, at_place in enumerate(found):
            for n, row in enumerate(at_place, start=1):
                begins = place - n + 1
                whole = begins >= 0 and place < len(ids)
                key = number(ids[begins : place + 1], model.config.vocab_size) if whole else 0
                assert row == rows.get(key, 0)
    assert any(row for *_, row in found)  # some trigrams are in the table


def test_embedding_is_the_sum_over_ngrams_each_times_its_ratio():
    model, sequences = make_model()
    model = model.eval().double()
    ids = torch.tensor([sequences[0]])
    x = model._embed(ids)
    rows = model.lookup(ids)[0].tolist()
    expected = torch.zeros_like(x)
    for place, at_place in enumerate(rows):
        for row in at_place:
            if row:
                expected[0, place] += abs(model.scales[row]) * model.embedding.weight[row]
    close(x, expected)
    assert torch.equal(model.scales[0], torch.zeros((), dtype=torch.float64))
    x.sum().backward()
    gradient = torch.zeros_like(model.embedding.weight)
    for row in (row for at_place in rows for row in at_place if row):
        gradient[row] += model.scales[row]
    close(model.embedding.weight.grad, gradient)


def test_with_unigrams_of_equal_weight_it_is_the_text_classifier():
    model, sequences = make_model(max_n=1, dropout=0.0, embedding_dropout=0.0, weighted=False)
    shape = {name: getattr(model.config, name) for name in ("vocab_size", "d_model", "d_ff", "max_length")}
    plain = TextClassifier(ClassifierConfig(**shape, dropout=0.0, embedding_dropout=0.0))
    state = {name: value for name, value in model.state_dict().items() if name not in ("keys", "scales")}
    weight = torch.zeros(shape["vocab_size"], 16)
    weight[model.keys] = state["embedding.weight"][1:]
    plain.load_state_dict({**state, "embedding.weight": weight})
    model, plain = model.double(), plain.double()
    ids = torch.tensor([[*sequences[0], 0, 0]])
    for training in (True, False):
        close(model.train(training)(ids), plain.train(training)(ids))


def test_forward_reads_the_embedding_through_the_encoder():
    model, sequences = make_model()
    model = model.eval().double()
    ids = torch.tensor([sequences[1]])
    x = model.encoder(model.positions(model._embed(ids)))
    close(model(ids), model.output(masked_mean(x, ids != 0))[:, 0])


def test_padding_and_batch_change_nothing():
    model, sequences = make_model()
    model = model.eval().double()
    longest = max(map(len, sequences[:8]))
    batch = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in sequences[:8]])
    close(model(batch), torch.cat([model(torch.tensor([ids])) for ids in sequences[:8]]))


def test_word_dropout_leaves_out_single_ngrams_in_training_alone():
    model, sequences = make_model(word_dropout=0.25)
    ids = torch.tensor(sequences[:1] * 500)
    rows = model.lookup(ids)
    torch.manual_seed(1)
    kept = nn.functional.dropout(torch.ones(rows.shape), 0.25) > 0
    torch.manual_seed(1)
    expected = (model.embedding(rows) * (kept * model.scales[rows] / 0.75).unsqueeze(-1)).sum(dim=-2)
    close(model.train()._embed(ids), expected, atol=1e-6)  # float32 near 1
    share = kept[rows > 0].float().mean().item()
    assert share == pytest.approx(0.75, abs=0.01)  # 500 x 3 x 20 draws: a deviation of 0.0025
    close(model.eval()._embed(ids)[0], model._embed(ids[:1])[0])


def test_order_of_words_reaches_it_through_the_ngrams():
    model, sequences = make_model(positions="none")
    model = model.eval()
    ids = next(ids for ids in sequences if any(a != b for a, b in pairwise(ids)))
    assert abs(model(torch.tensor([ids])) - model(torch.tensor([ids[::-1]]))) > 1e-4


def test_weights_bring_their_table(tmp_path):
    model, sequences = make_model()
    again = NGramClassifier(model.config)
    again.load_state_dict(model.state_dict())
    ids = torch.tensor(sequences[:1])
    assert torch.equal(again.eval()(ids), model.eval()(ids))


def test_a_table_of_another_size_is_refused():
    with pytest.raises(ValueError, match="ngrams has 1 n-grams; expected num_ngrams=2"):
        NGramClassifier(NGramConfig(num_ngrams=2), NGrams(torch.tensor([5]), torch.tensor([0.5])))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_ngrams": 0}, "num_ngrams=0; choose 1 or more"),
        ({"max_n": 0}, "max_n=0; choose 1 or more"),
        ({"pad_id": 2}, "pad_id=2; choose 0"),
        ({"vocab_size": 100_000, "max_n": 4}, "vocab_size=100000 to the power of max_n=4 is past 64 bits"),
        ({"d_model": 0}, "d_model=0; choose 1 or more"),
    ],
)
def test_bad_configs(settings, message):
    with pytest.raises(ValueError, match=message):
        NGramConfig(**settings)


def test_a_table_may_be_larger_than_any_other_size():
    assert NGramConfig(num_ngrams=2**30).num_ngrams == 2**30
    with pytest.raises(ValueError, match="max_length=1073741824; choose at most 1,048,576"):
        NGramConfig(max_length=2**30)


def test_without_layers_it_is_a_bag_of_ngrams():
    model, sequences = make_model(num_layers=0, positions="none")
    model = model.eval().double()
    ids = torch.tensor([sequences[0]])
    close(model(ids), model.output(model._embed(ids).mean(dim=1))[:, 0])
