import dataclasses
import math
import os
import re
import subprocess
import sys
from collections import Counter
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.svm import LinearSVC

from companion import toy
from companion.baselines import (
    NBSVM,
    LinearClassifier,
    TfidfLogisticRegression,
    interpolate,
    log_count_ratio,
    run_baseline,
)
from companion.records import TrainingRecord, git_commit
from companion.text import Review, WordTokenizer, hold_out, load_imdb

DATA = Path(os.environ.get("COMPANION_DATA") or Path(__file__).parents[2] / "shared" / "data")

BASELINES = [NBSVM, TfidfLogisticRegression]

close = partial(np.testing.assert_allclose, rtol=0, atol=1e-12)

TEXTS = [
    ["good", "good", "film"],
    ["not", "bad", "film"],
    ["not", "good", "at", "all"],
    ["bad", "film"],
]
LABELS = [1, 1, 0, 0]


def ngrams(tokens, max_n):
    """List a text's n-grams, one length after the other."""
    return [" ".join(tokens[i : i + n]) for n in range(1, max_n + 1) for i in range(len(tokens) - n + 1)]


def weights_of(model):
    return dict(zip(model.vectorizer.get_feature_names_out().tolist(), model.weights.tolist(), strict=True))


def texts_and_labels(reviews):
    return [review.text.split() for review in reviews], [review.label for review in reviews]


def ratios(texts, labels, max_n, alpha):
    """Compute the log-count ratio of each n-gram from sets and counters."""
    have = {label: Counter() for label in (0, 1)}
    for tokens, label in zip(texts, labels, strict=True):
        have[label].update(set(ngrams(tokens, max_n)))
    names = sorted(have[0] | have[1])
    total = {label: sum(have[label][name] + alpha for name in names) for label in (0, 1)}
    return {
        name: math.log((have[1][name] + alpha) / total[1]) - math.log((have[0][name] + alpha) / total[0])
        for name in names
    }


def test_the_ratio_of_a_small_example_by_hand():
    # With alpha = 1: p = (good 2, film 3, bad 2, not 2, at 1, all 1), q = (2, 2, 2, 2, 2, 2), of 11 and of 12.
    p, q = np.array([2.0, 3, 2, 2, 1, 1]), np.array([2.0, 2, 2, 2, 2, 2])
    expected = [math.log(x) for x in (12 / 11, 18 / 11, 12 / 11, 12 / 11, 6 / 11, 6 / 11)]
    close(log_count_ratio(p, q), expected)
    by_hand = dict(zip(["good", "film", "bad", "not", "at", "all"], expected, strict=True))
    naive_bayes = weights_of(NBSVM(max_n=1, beta=0).fit(TEXTS, LABELS))
    scale = naive_bayes["good"] / by_hand["good"]
    assert scale > 0
    assert naive_bayes == pytest.approx({name: scale * ratio for name, ratio in by_hand.items()}, abs=1e-12)


def test_the_ratio_of_four_counts_in_closed_form():
    close(log_count_ratio(np.array([3.0, 1.0]), np.array([2.0, 6.0])), [math.log(3), math.log(1 / 3)])


def test_the_defaults_are_the_paper_s_and_what_the_dev_split_chose():
    assert NBSVM() == NBSVM(max_n=2, alpha=1.0, beta=0.25, C=1.0, seed=0)  # the values in the authors' code
    assert TfidfLogisticRegression() == TfidfLogisticRegression(max_n=2, C=10.0)


def test_interpolation_by_hand():
    close(interpolate(np.array([2.0, -4.0, 0.0]), 0.25), [1.5 + 0.5, 1.5 - 1.0, 1.5])
    close(interpolate(np.array([2.0, -4.0, 0.0]), 1), [2.0, -4.0, 0.0])
    close(interpolate(np.array([2.0, -4.0, 0.0]), 0), [2.0, 2.0, 2.0])


@pytest.mark.parametrize("max_n", [1, 2, 3])
@pytest.mark.parametrize("alpha", [1, 0.5])
def test_without_the_svm_every_weight_is_its_ratio_on_one_scale(max_n, alpha):
    texts, labels = texts_and_labels(toy.reviews(200))
    found = weights_of(NBSVM(max_n=max_n, alpha=alpha, beta=0).fit(texts, labels))
    expected = ratios(texts, labels, max_n, alpha)
    assert list(found) == list(expected)
    scale = sum(map(abs, found.values())) / sum(map(abs, expected.values()))
    assert found == pytest.approx({name: scale * ratio for name, ratio in expected.items()}, abs=1e-12)


@pytest.mark.parametrize("max_n", [1, 2])
@pytest.mark.parametrize("C", [1, 0.1])
def test_the_svm_minimises_the_squared_hinge_loss_of_texts_without_a_bias(max_n, C):
    """The gradient of w @ w / 2 + C * sum(max(0, 1 - y * (w @ x)) ** 2), summed text by text, is next to 0.

    The objective minus w @ w / 2 is convex, so that w is no farther from the minimum than the gradient is long.
    """
    texts, labels = texts_and_labels(toy.reviews(200))
    ratio = ratios(texts, labels, max_n, 1)
    found = weights_of(NBSVM(max_n=max_n, beta=1, C=C).fit(texts, labels))
    w = {name: found[name] / ratio[name] for name in ratio if ratio[name] != 0}
    gradient = dict(w)
    for tokens, label in zip(texts, labels, strict=True):
        y = 2 * label - 1
        x = {name: ratio[name] for name in ngrams(tokens, max_n) if name in w}
        slack = max(0.0, 1 - y * sum(w[name] * x[name] for name in x))
        for name in x:
            gradient[name] -= 2 * C * slack * y * x[name]
    assert math.hypot(*gradient.values()) < 0.05 * math.hypot(*w.values())


@pytest.mark.parametrize(("max_n", "beta"), [(1, 0.25), (2, 0.25), (2, 0.7), (3, 1.0)])
def test_decisions_are_those_of_a_pipeline_built_by_hand(max_n, beta):
    reviews = toy.reviews(400, seed=3)
    texts, labels = texts_and_labels(reviews)
    vectorizer = CountVectorizer(binary=True, analyzer=partial(ngrams, max_n=max_n))
    x = vectorizer.fit_transform(texts[:300]).toarray()
    y = np.array(labels[:300])
    p, q = 1 + x[y == 1].sum(axis=0), 1 + x[y == 0].sum(axis=0)
    r = np.log((p / p.sum()) / (q / q.sum()))
    svm = LinearSVC(fit_intercept=False, tol=1e-8, max_iter=1_000_000, random_state=1).fit(x * r, 2 * y - 1)
    w = svm.coef_.ravel()
    w = (1 - beta) * np.abs(w).sum() / len(w) + beta * w
    expected = (vectorizer.transform(texts[300:]).toarray() * r) @ w
    model = NBSVM(max_n=max_n, beta=beta).fit(texts[:300], labels[:300])
    # The package's solver stops a thousand times earlier.
    np.testing.assert_allclose(model.decision(texts[300:]), expected, rtol=0, atol=0.03 * np.abs(expected).max())
    sure = np.abs(expected) > 0.03 * np.abs(expected).max()
    assert sure.sum() > 90
    assert model.predict(texts[300:])[sure].tolist() == (expected[sure] > 0).astype(int).tolist()


def test_tfidf_by_hand():
    """Rows: (1 + log count) * (1 + log((1 + texts) / (1 + texts that have it))), at unit length."""
    model = TfidfLogisticRegression(max_n=2).fit(TEXTS, LABELS)
    names = model.vectorizer.get_feature_names_out().tolist()
    frequency = Counter(name for tokens in TEXTS for name in set(ngrams(tokens, 2)))
    assert names == sorted(frequency)
    for row, tokens in zip(model.vectorizer.transform(TEXTS).toarray(), TEXTS, strict=True):
        counts = Counter(ngrams(tokens, 2))
        value = {n: (1 + math.log(c)) * (1 + math.log(5 / (1 + frequency[n]))) for n, c in counts.items()}
        length = math.sqrt(sum(v * v for v in value.values()))
        close(row, [value.get(name, 0.0) / length for name in names])


@pytest.mark.parametrize("C", [10, 0.5])
def test_the_regression_minimises_the_log_loss(C):
    """The gradient of w @ w / 2 + C * (sum of the log-losses), in weights and bias, is next to 0, and so is the error.

    The slack is that of the solver's stop: a gradient of 1e-4 of the mean loss, which divides the objective by C * n.
    """
    texts, labels = texts_and_labels(toy.reviews(300))
    model = TfidfLogisticRegression(max_n=1, C=C).fit(texts, labels)
    x, y = model.vectorizer.transform(texts).toarray(), np.array(labels)
    excess = 1 / (1 + np.exp(-(x @ model.weights + model.bias))) - y
    tolerance = 2e-4 * C * len(y)
    assert np.abs(model.weights + C * x.T @ excess).max() < tolerance
    assert abs(C * excess.sum()) < tolerance
    close(model.decision(texts), x @ model.weights + model.bias)


words = st.lists(st.sampled_from("abcd"), min_size=1, max_size=6)


@settings(max_examples=30)
@given(st.lists(words, min_size=1, max_size=5), st.lists(words, min_size=1, max_size=5), words)
def test_swapped_labels_swap_the_ratio_and_repeated_words_change_nothing(positive, negative, text):
    texts = positive + negative
    labels = [1] * len(positive) + [0] * len(negative)
    one = NBSVM(max_n=1).fit(texts, labels)
    repeated = NBSVM(max_n=1).fit([tokens * 2 for tokens in texts], labels)
    close(repeated.weights, one.weights)
    close(one.decision([text * 3]), one.decision([text]))
    # Naive Bayes is exactly odd in the labels; the SVM up to where its solver stops.
    there, back = (NBSVM(max_n=1, beta=0).fit(texts, y) for y in (labels, [1 - label for label in labels]))
    there_r, back_r = (np.sign(np.round(model.weights, 9)) for model in (there, back))
    if np.abs(there.weights).max() > 1e-9:
        assert there_r.tolist() == (-back_r).tolist()


def test_a_decision_is_the_sum_of_the_weights_and_the_bias():
    vectorizer = CountVectorizer(analyzer=list).fit([["a", "b", "c"]])
    model = LinearClassifier(vectorizer, np.array([1.0, -2.0, 0.5]), 0.25)
    texts = [["a"], ["b", "c"], ["a", "a", "b"], [], ["unheard"]]
    close(model.decision(texts), [1.25, -1.25, 0.25, 0.25, 0.25])
    assert model.predict(texts).tolist() == [1, 0, 1, 1, 1]
    assert model._replace(bias=0.0).predict([[]]).tolist() == [0]


@pytest.mark.parametrize("make", BASELINES)
def test_bigrams_see_the_order_that_words_alone_do_not(make):
    texts, labels = texts_and_labels(toy.reviews(3_000))
    accuracy = {}
    for max_n in (1, 2):
        model = make(max_n=max_n).fit(texts[:2_000], labels[:2_000])
        accuracy[max_n] = (model.predict(texts[2_000:]) == labels[2_000:]).mean()
    assert accuracy[1] < toy.BAG_OF_WORDS_BOUND + 0.04  # 1,000 texts: three deviations
    assert accuracy[2] > 0.95


@pytest.mark.parametrize("make", BASELINES)
def test_the_same_settings_give_the_same_weights(make):
    texts, labels = texts_and_labels(toy.reviews(100))
    one, other = (make().fit(texts, labels) for _ in range(2))
    assert np.array_equal(one.weights, other.weights)


def test_the_seed_is_the_solver_s():
    texts, labels = texts_and_labels(toy.reviews(100))
    one, other = (NBSVM(max_n=3, seed=seed).fit(texts, labels) for seed in (0, 1))
    assert not np.array_equal(one.weights, other.weights)
    np.testing.assert_allclose(one.weights, other.weights, atol=0.03 * np.abs(one.weights).max())


# Capitals, and stops that stand at their words, so that the tokenizers differ.
REVIEWS = [Review(text.replace(" .", ".").title(), label) for text, label in toy.reviews(600)]
SPLITS = (REVIEWS[:400], REVIEWS[400:500], REVIEWS[500:])


@pytest.mark.parametrize(
    ("baseline", "tokenizer", "tokenize"),
    [
        (NBSVM(max_n=2, C=0.5), "basic_english", WordTokenizer()),
        (NBSVM(max_n=1), "spaces", lambda text: text.lower().split()),
        (TfidfLogisticRegression(max_n=1), "basic_english", WordTokenizer()),
    ],
    ids=str,
)
def test_a_run_gives_the_record_of_what_was_measured(baseline, tokenizer, tokenize, tmp_path):
    outputs = tmp_path / "outputs.safetensors"
    record = run_baseline(baseline, *SPLITS, tokenizer=tokenizer, data={"corpus": "toy"}, outputs=outputs)
    (texts, labels), *measured = [([tokenize(r.text) for r in part], [r.label for r in part]) for part in SPLITS]
    model = baseline.fit(texts, labels)
    dev, test = ({"accuracy": (model.predict(x) == np.array(y)).sum() / len(y)} for x, y in measured)
    assert dev != test
    assert (record.dev, record.test) == (dev, test)
    assert {name: values.tolist() for name, values in load_file(outputs).items()} == {
        name: model.decision(x).tolist() for name, (x, _) in zip(("dev", "test"), measured, strict=True)
    }
    assert record.parameters == len(set.union(*(set(ngrams(tokens, baseline.max_n)) for tokens in texts)))
    assert record.config == {
        "model": {"kind": type(baseline).__name__, "tokenizer": tokenizer, **dataclasses.asdict(baseline)},
        "training": {"reviews": 400},
        "data": {"corpus": "toy"},
    }
    assert record.versions["scikit-learn"] == version("scikit-learn")
    assert record.versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert (record.command, record.commit) == ("companion.run_baseline", git_commit())
    assert (record.hardware["device"], record.seed) == ("cpu", 0)
    assert (record.history, record.tokens_per_second) == ([], None)
    record.save(tmp_path / "record.json")
    assert TrainingRecord.load(tmp_path / "record.json") == record


def test_a_run_says_what_it_makes_of_reviews_without_labels_where_they_are_given(tmp_path):
    """They change nothing else, the labels of other reviews do not come into it, and none is none."""
    unlabelled = [Review(text, None) for text, _ in REVIEWS[:50]]
    files = [tmp_path / name for name in ("without", "with", "none")]
    records = [
        run_baseline(NBSVM(max_n=2), *SPLITS, *more, outputs=file)
        for file, more in zip(files, ([], [unlabelled], [[]]), strict=True)
    ]
    without, found, none = map(load_file, files)
    expected = NBSVM(max_n=2).fit([WordTokenizer()(text) for text, _ in SPLITS[0]], [label for _, label in SPLITS[0]])
    decisions = expected.decision([WordTokenizer()(text) for text, _ in unlabelled])
    assert found.pop("unsup").tolist() == decisions.tolist()
    assert none.pop("unsup").tolist() == []
    for outputs in (found, none):
        assert outputs.keys() == without.keys() == {"dev", "test"}
        assert all(torch.equal(values, without[name]) for name, values in outputs.items())
    assert len({(record.dev["accuracy"], record.test["accuracy"], record.parameters) for record in records}) == 1


def test_a_run_learns_from_any_part_of_the_training_split():
    small, large = (run_baseline(NBSVM(seed=7), REVIEWS[:n], *SPLITS[1:]) for n in (20, 400))
    assert (small.config["training"], large.config["training"]) == ({"reviews": 20}, {"reviews": 400})
    assert small.parameters < large.parameters
    assert small.dev["accuracy"] < large.dev["accuracy"]
    assert small.config["data"] == {}
    assert small.seed == 7


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize(("part", "counted"), [([], "0 labels for 0"), ([Review("seen", None)] * 2, "0 labels for 2")])
def test_a_run_refuses_a_split_without_labelled_reviews(number, part, counted):
    splits = [*SPLITS[:number], part, *SPLITS[number + 1 :]]
    name = ("training", "dev", "test")[number]
    with pytest.raises(ValueError, match=f"{name} has {counted} reviews; expected one for each"):
        run_baseline(NBSVM(), *splits)


@pytest.mark.unhooked
def test_an_unknown_tokenizer_is_refused():
    message = "tokenizer='words' is unknown; choose one of ('basic_english', 'spaces')"
    with pytest.raises(ValueError, match=re.escape(message)):
        run_baseline(NBSVM(), *SPLITS, tokenizer="words")


@pytest.mark.parametrize("make", BASELINES)
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1, 0, 1], "labels has length 3; expected 4, that of texts"),
        ([1, 1, 1, 1], "labels holds [1]; expected 0 and 1, both"),
        ([1, 0, 1, 2], "labels holds [0, 1, 2]; expected 0 and 1, both"),
        ([1, -1, 1, -1], "labels holds [-1, 1]; expected 0 and 1, both"),
    ],
)
def test_labels_that_do_not_fit_are_refused(make, labels, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make().fit(TEXTS, labels)


@pytest.mark.parametrize(
    ("make", "field", "bad", "good", "advice"),
    [
        *[(make, "max_n", (0, -1), (1, 5), "choose 1 or more") for make in BASELINES],
        *[(make, "C", (0.0, -1.0, math.nan), (1e-9,), "choose more than 0") for make in BASELINES],
        (NBSVM, "alpha", (0, -1.0, math.nan), (1e-9, 2), "choose more than 0"),
        (NBSVM, "beta", (-0.1, 1.1, math.nan), (0, 1, 0.5), "choose 0 <= beta <= 1"),
    ],
)
def test_settings_check_themselves(make, field, bad, good, advice):
    for value in bad:
        with pytest.raises(ValueError, match=re.escape(f"{field}={value}; {advice}")):
            make(**{field: value})
    for value in good:
        assert getattr(make(**{field: value}), field) == value


def test_scikit_learn_is_imported_when_it_is_used():
    code = """
import sys
from companion.baselines import NBSVM
model = NBSVM()
assert "sklearn" not in sys.modules
model.fit([["good"], ["bad"]], [1, 0])
assert "sklearn" in sys.modules
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.skipif(not DATA.exists(), reason="needs the IMDB reviews; COMPANION_DATA says where they are")
def test_nb_svm_on_the_real_dev_split():
    """Unigrams on the official training split come near the paper's 88.29 on the test split, here on the dev split."""
    training, dev = hold_out(load_imdb("train", DATA))
    tokenize = WordTokenizer()
    (texts, labels), (dev_texts, dev_labels) = (
        ([tokenize(review.text) for review in part], [review.label for review in part]) for part in (training, dev)
    )
    model = NBSVM(max_n=1).fit(texts, labels)
    accuracy = (model.predict(dev_texts) == dev_labels).mean()
    assert accuracy == pytest.approx(0.8829, abs=0.013)  # two deviations of 2,500 reviews
