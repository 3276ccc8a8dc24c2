"""Baselines: what the models must beat, linear in the n-grams that a text has.

NB-SVM is written out; counting n-grams and fitting linear models is scikit-learn's work, imported when it is used.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float, Int

from companion.ngrams import log_count_ratio
from companion.records import TrainingRecord, git_commit, hardware, package_versions
from companion.runs import save_weights
from companion.text import Review, WordTokenizer

Texts = Sequence[Sequence[str]]
Tokenizer = Literal["basic_english", "spaces"]


class LinearClassifier(NamedTuple):
    """What a baseline has learned: a weight for each n-gram, and a bias.

    Attributes:
        vectorizer: The fitted scikit-learn vectorizer, from texts to a sparse matrix ``(texts, ngrams)``; its
            ``get_feature_names_out()`` names the n-grams.
        weights: The weight of each n-gram, ``(ngrams,)``.
        bias: What is added to their sum.

    Example:
        >>> model = NBSVM(max_n=1).fit([["a", "good", "film"], ["a", "bad", "film"]], [1, 0])
        >>> {name: weight > 0 for name, weight in zip(model.vectorizer.get_feature_names_out(), model.weights.tolist())}
        {'a': False, 'bad': False, 'film': False, 'good': True}
        >>> model.predict([["good"], ["bad", "film"], ["unheard", "of"]]).tolist()
        [1, 0, 0]
    """

    vectorizer: Any
    weights: Float[np.ndarray, "ngrams"]
    bias: float

    def decision(self, texts: Texts) -> Float[np.ndarray, "texts"]:
        """Return what the n-grams of each text sum to; more than 0 speaks for label 1.

        Args:
            texts: Texts, each as its tokens.

        Returns:
            The sums, ``(texts,)``.
        """
        return self.vectorizer.transform(texts) @ self.weights + self.bias

    def predict(self, texts: Texts) -> Int[np.ndarray, "texts"]:
        """Return the label of each text, 0 or 1.

        Args:
            texts: Texts, each as its tokens.

        Returns:
            The labels, ``(texts,)``.
        """
        return (self.decision(texts) > 0).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class NBSVM:
    """A support vector machine on naive Bayes features (Wang & Manning, 2012, ACL P12-2018).

    A text is the presence of its n-grams, each times its `log_count_ratio`. On that an SVM with the squared hinge loss
    finds weights, which `interpolate` pulls towards their mean magnitude, and so the whole towards naive Bayes.
    There is no bias, as in the authors' code.

    Attributes:
        max_n: The n-grams are those of 1 to ``max_n`` tokens.
        alpha: Added to each n-gram's counts.
        beta: The SVM's share: 0 is naive Bayes, 1 the SVM.
        C: The weight of the SVM's losses against the squared norm of its weights.
        seed: The seed of the SVM's solver.

    Raises:
        ValueError: If a value is out of range; the message names the field and what would do.

    Example:
        >>> texts, labels = zip(*((review.text.split(), review.label) for review in toy.reviews(1_000)))
        >>> model = NBSVM(max_n=2).fit(texts[:800], labels[:800])
        >>> float((model.predict(texts[800:]) == labels[800:]).mean()) > toy.BAG_OF_WORDS_BOUND
        True
    """

    max_n: int = 2
    alpha: int | float = 1.0
    beta: int | float = 0.25
    C: int | float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        _check_settings(self)
        if not self.alpha > 0:
            raise ValueError(f"alpha={self.alpha}; choose more than 0")
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta={self.beta}; choose 0 <= beta <= 1")

    def fit(self, texts: Texts, labels: Sequence[int]) -> LinearClassifier:
        """Learn from texts and their labels.

        Args:
            texts: Texts, each as its tokens.
            labels: The label of each, 0 or 1.

        Returns:
            What was learned.

        Raises:
            ValueError: If labels and texts are not as many, or the labels not 0 and 1, both.
        """
        from sklearn.feature_extraction.text import CountVectorizer
        from sklearn.svm import LinearSVC

        _check_labels(texts, labels)
        vectorizer = CountVectorizer(binary=True, **_ngrams(self.max_n))
        presence: Any = vectorizer.fit_transform(texts)
        positive = np.array(labels) == 1
        ratio = log_count_ratio(self.alpha + presence.T @ positive, self.alpha + presence.T @ ~positive)
        svm = LinearSVC(C=self.C, fit_intercept=False, tol=1e-2, random_state=self.seed)
        svm.fit(presence.multiply(ratio).tocsr(), positive)
        return LinearClassifier(vectorizer, ratio * interpolate(svm.coef_[0], self.beta), 0.0)


def interpolate(weights: Float[np.ndarray, "ngrams"], beta: int | float) -> Float[np.ndarray, "ngrams"]:
    """Compute ``(1 - beta) * mean(abs(weights)) + beta * weights``.

    Args:
        weights: The SVM's weights, ``(ngrams,)``.
        beta: Their share.

    Returns:
        The new weights, ``(ngrams,)``.

    Example:
        >>> import numpy as np
        >>> interpolate(np.array([3.0, -1.0]), 0.25).tolist()
        [2.25, 1.25]
    """
    return (1 - beta) * np.abs(weights).mean() + beta * weights


@dataclass(frozen=True, kw_only=True)
class TfidfLogisticRegression:
    """Logistic regression on TF-IDF: ``1 + log(count)`` of each n-gram, times how rare it is, scaled to unit length.

    Both parts are scikit-learn's: ``TfidfVectorizer(sublinear_tf=True)`` and ``LogisticRegression``.

    Attributes:
        max_n: The n-grams are those of 1 to ``max_n`` tokens.
        C: The weight of the log-losses against the squared norm of the weights.

    Raises:
        ValueError: If a value is out of range; the message names the field and what would do.

    Example:
        >>> texts, labels = [["a", "good", "film"], ["a", "bad", "film"]], [1, 0]
        >>> TfidfLogisticRegression(max_n=1).fit(texts, labels).predict([["good"], ["bad"]]).tolist()
        [1, 0]
    """

    max_n: int = 2
    C: int | float = 10.0

    def __post_init__(self) -> None:
        _check_settings(self)

    def fit(self, texts: Texts, labels: Sequence[int]) -> LinearClassifier:
        """Learn from texts and their labels.

        Args:
            texts: Texts, each as its tokens.
            labels: The label of each, 0 or 1.

        Returns:
            What was learned; its decisions are log-odds.

        Raises:
            ValueError: If labels and texts are not as many, or the labels not 0 and 1, both.
        """
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression

        _check_labels(texts, labels)
        vectorizer = TfidfVectorizer(sublinear_tf=True, **_ngrams(self.max_n))
        regression = LogisticRegression(C=self.C, max_iter=1_000).fit(vectorizer.fit_transform(texts), labels)
        return LinearClassifier(vectorizer, regression.coef_[0], float(regression.intercept_[0]))


def run_baseline(
    baseline: NBSVM | TfidfLogisticRegression,
    training: Sequence[Review],
    dev: Sequence[Review],
    test: Sequence[Review],
    unlabelled: Sequence[Review] | None = None,
    *,
    tokenizer: Tokenizer = "basic_english",
    data: Mapping[str, Any] | None = None,
    outputs: str | os.PathLike[str] | None = None,
) -> TrainingRecord:
    """Fit a baseline to reviews, and measure it on others.

    Args:
        baseline: What to fit.
        training: Labelled reviews to fit it to.
        dev: Those to choose settings by.
        test: Those to report.
        unlabelled: Those whose decisions are wanted too.
        tokenizer: ``"basic_english"`` is `WordTokenizer`; ``"spaces"`` splits lower-cased text at white space alone,
            as Wang & Manning did for unigrams.
        data: Which data this is, noted in the record.
        outputs: A safetensors file to write: the decisions on ``"dev"``, ``"test"`` and, where given, ``"unsup"``.

    Returns:
        The record; its ``wall_seconds`` count tokenizing, fitting and both measurements.

    Raises:
        ValueError: If ``training`` does not hold reviews of either label, ``dev`` or ``test`` none, or the tokenizer is
            unknown.

    Example:
        >>> reviews = toy.reviews(400)
        >>> record = run_baseline(NBSVM(max_n=1), reviews[:200], reviews[200:300], reviews[300:])
        >>> record.config["model"]
        {'kind': 'NBSVM', 'tokenizer': 'basic_english', 'max_n': 1, 'alpha': 1.0, 'beta': 0.25, 'C': 1.0, 'seed': 0}
    """
    start = time.perf_counter()
    if tokenizer not in get_args(Tokenizer):
        raise ValueError(f"tokenizer={tokenizer!r} is unknown; choose one of {get_args(Tokenizer)}")
    tokenize = WordTokenizer() if tokenizer == "basic_english" else _split_at_spaces
    named = {"training": training, "dev": dev, "test": test}
    splits = {name: _tokens_and_labels(name, reviews, tokenize) for name, reviews in named.items()}
    model = baseline.fit(*splits.pop("training"))
    texts = {name: tokens for name, (tokens, _) in splits.items()}
    if unlabelled is not None:
        texts["unsup"] = [tokenize(text) for text, _ in unlabelled]
    decisions = {name: model.decision(tokens) for name, tokens in texts.items()}
    dev_accuracy, test_accuracy = (
        float(((decisions[name] > 0) == labels).mean()) for name, (_, labels) in splits.items()
    )
    if outputs is not None:
        save_weights({name: torch.from_numpy(values) for name, values in decisions.items()}, outputs)
    return TrainingRecord(
        command="companion.run_baseline",
        config={
            "model": {"kind": type(baseline).__name__, "tokenizer": tokenizer, **asdict(baseline)},
            "training": {"reviews": len(training)},
            "data": dict(data or {}),
        },
        seed=getattr(baseline, "seed", 0),
        commit=git_commit(),
        versions={**package_versions(), "scikit-learn": version("scikit-learn")},
        hardware=hardware(torch.device("cpu"), 1),
        wall_seconds=round(time.perf_counter() - start, 1),
        tokens_per_second=None,
        parameters=model.weights.size,
        history=[],
        dev={"accuracy": dev_accuracy},
        test={"accuracy": test_accuracy},
    )


def _ngrams(max_n: int) -> dict[str, Any]:
    """Return what makes a scikit-learn vectorizer take tokens instead of a text."""
    return {
        "tokenizer": list,
        "token_pattern": None,
        "lowercase": False,
        "dtype": np.float64,
        "ngram_range": (1, max_n),
    }


def _split_at_spaces(text: str) -> list[str]:
    return text.lower().split()


def _tokens_and_labels(
    name: str, reviews: Sequence[Review], tokenize: Callable[[str], list[str]]
) -> tuple[list[list[str]], list[int]]:
    """Return the tokens and the label of each review of a split that has this name.

    Raises:
        ValueError: If there is no review, or one without a label.
    """
    labels = [label for _, label in reviews if label is not None]
    if not reviews or len(labels) < len(reviews):
        raise ValueError(f"{name} has {len(labels)} labels for {len(reviews)} reviews; expected one for each, and some")
    return [tokenize(text) for text, _ in reviews], labels


def _check_settings(baseline: NBSVM | TfidfLogisticRegression) -> None:
    if baseline.max_n < 1:
        raise ValueError(f"max_n={baseline.max_n}; choose 1 or more")
    if not baseline.C > 0:
        raise ValueError(f"C={baseline.C}; choose more than 0")


def _check_labels(texts: Texts, labels: Sequence[int]) -> None:
    if len(labels) != len(texts):
        raise ValueError(f"labels has length {len(labels)}; expected {len(texts)}, that of texts")
    if set(labels) != {0, 1}:
        raise ValueError(f"labels holds {sorted(set(labels))}; expected 0 and 1, both")
