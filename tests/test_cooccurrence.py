"""Vectors of words by factorising their co-occurrence, against plain counts and numpy's decomposition."""

import re
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from companion.cooccurrence import _count_pairs, cooccurrence_vectors


def random_texts(seed, vocab_size=30, count=60):
    generator = np.random.default_rng(seed)
    shares = generator.dirichlet(np.full(vocab_size - 5, 0.5))
    return [(5 + generator.choice(vocab_size - 5, generator.integers(1, 12), p=shares)).tolist() for _ in range(count)]


def count_plainly(texts, window):
    counts = Counter()
    for text in texts:
        for place, token in enumerate(text):
            for other in range(max(0, place - window), min(len(text), place + window + 1)):
                if other != place:
                    counts[token, text[other]] += 1 / abs(other - place)
    return counts


@given(seed=st.integers(0, 2**31), window=st.integers(1, 7))
@settings(max_examples=20)
def test_pairs_count_by_their_distance_within_a_text_on_both_sides(seed, window):
    texts = random_texts(seed)
    expected = torch.zeros(30, 30)
    for pair, count in count_plainly(texts, window).items():
        expected[pair] = count
    torch.testing.assert_close(_count_pairs(texts, 30, window), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("window", [1, 5])
def test_the_vectors_are_those_of_the_matrix_of_information(window):
    texts, d = random_texts(0, count=400), 6
    counts = np.zeros((30, 30))
    for pair, count in count_plainly(texts, window).items():
        counts[pair] = count
    total = counts.sum(axis=1)
    smoothed = total**0.75 / (total**0.75).sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        information = np.nan_to_num(np.maximum(np.log(counts / total[:, None] / smoothed), 0))
    u, s, _ = np.linalg.svd(information)
    vectors = u[:, :d] * np.sqrt(s[:d])
    seen = total > 0
    vectors = (vectors - vectors[seen].mean(axis=0)) * seen[:, None]
    vectors /= vectors[seen].std(ddof=1)
    actual = cooccurrence_vectors(texts, 30, d, window=window).double().numpy()
    # A decomposition leaves the sign of each column open, which products of rows do not show.
    np.testing.assert_allclose(actual @ actual.T, vectors @ vectors.T, rtol=0, atol=2e-4)


def test_tokens_that_do_not_occur_get_zeros_and_the_others_a_deviation_of_1():
    vectors = cooccurrence_vectors(random_texts(1), 40, 4)
    assert not vectors[:5].any()
    assert not vectors[30:].any()
    seen = vectors[vectors.abs().sum(dim=1) > 0]
    torch.testing.assert_close(seen.std(), torch.tensor(1.0))
    torch.testing.assert_close(seen.mean(dim=0), torch.zeros(4), rtol=0, atol=1e-5)


def test_the_same_seed_gives_the_same_vectors_and_the_global_generator_is_left_alone():
    texts, state = random_texts(2), torch.get_rng_state()
    first = cooccurrence_vectors(texts, 30, 4, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    assert torch.equal(cooccurrence_vectors(texts, 30, 4, seed=3), first)


@pytest.mark.unhooked
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[5, 6]], 10, 11), "d=11; choose 1 to 10, the number of tokens"),
        (([[5, 6]], 10, 0), "d=0; choose 1 to 10, the number of tokens"),
        (([[5], [6]], 10, 2), "no two tokens stand side by side; give longer texts"),
        (([], 10, 2), "no two tokens stand side by side; give longer texts"),
    ],
)
def test_what_cannot_work_is_refused(arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        cooccurrence_vectors(*arguments)


@pytest.mark.unhooked
def test_a_window_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"^window=0; choose 1 or more$"):
        cooccurrence_vectors([[5, 6]], 10, 2, window=0)
