"""The comparison on IMDB: what is trained for each row of the results table, and the record of it.

All rows train on the same part of the official training split, are chosen on the same dev split, held out of it with
its films apart, and are measured on the official test split once.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from companion.article import ArticleClassifier, ArticleConfig
from companion.baselines import NBSVM, TfidfLogisticRegression, Tokenizer, run_baseline
from companion.batching import labelled_batches
from companion.configs import ClassifierConfig
from companion.corpus import TokenizedCorpus
from companion.imdb import Review, hold_out, load_imdb
from companion.losses import classification_loss
from companion.models import TextClassifier
from companion.ngrams import NGramClassifier, NGramConfig, NGrams
from companion.optimization import TrainingConfig
from companion.prediction import Classifier, Predictor, evaluation_batches, load_run
from companion.records import TrainingRecord, git_commit
from companion.runs import RunFolder, load_weights, save_weights
from companion.text import WordTokenizer
from companion.training import train

_AnyRow = TypeVar("_AnyRow")

MIN_COUNT = 4
"""In how many training reviews an n-gram must be for `NGramClassifier`."""

NEGATIONS = frozenset({"no", "not", "never", "nothing", "nobody", "none", "neither", "nor", "cannot", "without", "t"})
"""Tokens that negate; ``t`` is what the tokenizer leaves of ``n't``."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the table.

    Attributes:
        name: Its name; that of its records has the seed behind it.
        model: The shape of the model; ``vocab_size`` is the most that the vocabulary may hold.
        training: How to train it.
        max_tokens: Tokens a batch, padding included.
        seeds: How often it is trained.
        share: The share of the training reviews that it sees.

    Example:
        >>> from companion.comparison import ROWS
        >>> [row.name for row in ROWS if row.share == 0.1]
        ['base-10-percent', 'nbsvm-bigrams-10-percent']
    """

    name: str
    model: ClassifierConfig | ArticleConfig
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    max_tokens: int = 8_192
    seeds: int = 1
    share: float = 1.0


@dataclass(frozen=True, kw_only=True)
class BaselineRow:
    """A row of a baseline.

    Attributes:
        name: Its name.
        baseline: What to fit.
        tokenizer: As in `companion.run_baseline`.
        share: The share of the training reviews that it sees.

    Example:
        >>> from companion.comparison import BaselineRow
        >>> BaselineRow(name="nbsvm-bigrams", baseline=NBSVM(max_n=2)).tokenizer
        'basic_english'
    """

    name: str
    baseline: NBSVM | TfidfLogisticRegression
    tokenizer: Tokenizer = "basic_english"
    share: float = 1.0
    seeds: ClassVar[int] = 1


@dataclass(frozen=True, kw_only=True)
class EnsembleRow:
    """A row of several rows' models together: the mean of their outputs, each by its standard deviation on dev.

    Attributes:
        name: Its name.
        members: The rows.
        seeds: How many ensembles there are; that of a seed takes the same seed of its members, counted round.

    Example:
        >>> from companion.comparison import ROWS
        >>> [member.name for member in ROWS[-1].members]
        ['best', 'nbsvm-trigrams']
    """

    name: str
    members: tuple[Row | BaselineRow, ...]
    seeds: int = 1
    share: ClassVar[float] = 1.0


BASE = ClassifierConfig(vocab_size=10_000, word_dropout=0.3)
"""The shape of the base row: the article's vocabulary, width and heads."""

BEST = NGramConfig(vocab_size=30_000, d_model=32, num_layers=0, positions="none", word_dropout=0.3)
"""The shape of the best row: the mean of the n-grams' vectors, weighted as naive Bayes weights n-grams."""

_BEST_ROW = Row(
    name="best", model=BEST, training=TrainingConfig(epochs=5, learning_rate=4e-3), max_tokens=16_384, seeds=3
)
_TRIGRAMS = BaselineRow(name="nbsvm-trigrams", baseline=NBSVM(max_n=3))
_PIECES = ("mask", "positions", "residual_norm", "feed_forward")


def _change(row: Row, name: str, **changes: Any) -> Row:
    """Return the row of one seed with another model."""
    return dataclasses.replace(row, name=name, model=dataclasses.replace(row.model, **changes), seeds=1)


ROWS: tuple[Row | BaselineRow | EnsembleRow, ...] = (
    *(
        Row(
            name=f"article-{_PIECES[count - 1].replace('_', '-')}" if count else "article",
            model=ArticleConfig(**dict.fromkeys(_PIECES[:count], True)),
        )
        for count in range(len(_PIECES) + 1)
    ),
    Row(name="base", model=BASE, seeds=3),
    Row(name="base-fp32", model=BASE, training=TrainingConfig(mixed_precision="fp32")),
    Row(name="base-bf16", model=BASE, training=TrainingConfig(mixed_precision="bf16")),
    Row(name="base-10-percent", model=BASE, training=TrainingConfig(epochs=10), share=0.1),
    Row(name="base-1-percent", model=BASE, training=TrainingConfig(epochs=40), share=0.01),
    Row(name="base-bag", model=dataclasses.replace(BASE, num_layers=0, positions="none")),
    _BEST_ROW,
    _change(_BEST_ROW, "best-unigrams", max_n=1),
    _change(_BEST_ROW, "best-bigrams", max_n=2),
    _change(_BEST_ROW, "best-unweighted", weighted=False),
    dataclasses.replace(
        _change(_BEST_ROW, "best-attention", num_layers=1, positions="learned", word_dropout=0.75),
        training=TrainingConfig(epochs=3),
    ),
    BaselineRow(name="nbsvm-unigrams", baseline=NBSVM(max_n=1)),
    BaselineRow(name="nbsvm-unigrams-spaces", baseline=NBSVM(max_n=1), tokenizer="spaces"),
    BaselineRow(name="nbsvm-bigrams", baseline=NBSVM(max_n=2)),
    BaselineRow(name="nbsvm-bigrams-10-percent", baseline=NBSVM(max_n=2), share=0.1),
    BaselineRow(name="nbsvm-bigrams-1-percent", baseline=NBSVM(max_n=2), share=0.01),
    _TRIGRAMS,
    BaselineRow(name="tfidf-unigrams", baseline=TfidfLogisticRegression(max_n=1)),
    BaselineRow(name="tfidf-bigrams", baseline=TfidfLogisticRegression(max_n=2)),
    EnsembleRow(name="ensemble", members=(_BEST_ROW, _TRIGRAMS), seeds=3),
)

COLLECTED = ("base", "best", "nbsvm-trigrams", "ensemble")
"""The rows whose outputs on the test split go into the records."""


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The three splits of a corpus, as reviews and as tokens; `Splits.build` makes them.

    Attributes:
        training: Reviews to train on.
        dev: Those to choose by.
        test: Those to report.
        training_tokens: The tokens of ``training``.
        dev_tokens: Those of ``dev``.
        test_tokens: Those of ``test``.

    Example:
        >>> from companion.comparison import Splits
        >>> reviews = toy.reviews(400)
        >>> splits = Splits.build(reviews[:200], reviews[200:300], reviews[300:])
        >>> splits.training[0].text.split() == splits.training_tokens[0], len(splits.reduce(0.1).training_tokens)
        (True, 20)
    """

    training: Sequence[Review]
    dev: Sequence[Review]
    test: Sequence[Review]
    training_tokens: TokenizedCorpus
    dev_tokens: TokenizedCorpus
    test_tokens: TokenizedCorpus

    @classmethod
    def build(cls, training: Sequence[Review], dev: Sequence[Review], test: Sequence[Review]) -> "Splits":
        """Tokenize the reviews to train on, to choose by and to report, by `companion.WordTokenizer`."""
        corpora = [TokenizedCorpus.build(reviews, WordTokenizer()) for reviews in (training, dev, test)]
        tokens = dict(zip(("training_tokens", "dev_tokens", "test_tokens"), corpora, strict=True))
        return cls(training=training, dev=dev, test=test, **tokens)

    def reduce(self, share: float) -> "Splits":
        """Keep a share of the training reviews, drawn at random; a smaller one is part of a larger one.

        Raises:
            ValueError: If ``share`` is not in (0, 1].
        """
        if not 0 < share <= 1:
            raise ValueError(f"share={share}; choose 0 < share <= 1")
        order = torch.randperm(len(self.training), generator=torch.Generator().manual_seed(0))
        rows = order[: round(share * len(self.training))].sort().values.tolist()
        return dataclasses.replace(
            self, training=[self.training[row] for row in rows], training_tokens=self.training_tokens.select(rows)
        )


def run_row(
    row: Row | BaselineRow | EnsembleRow,
    splits: Splits,
    output: str | os.PathLike[str],
    *,
    seed: int = 0,
    corpus: str = "imdb",
    command: str = "companion.comparison.run_row",
) -> TrainingRecord:
    """Train what a row asks for, measure it, and write its record; what is finished in ``output`` is not repeated.

    Beside the record stands ``outputs.safetensors``: what the model says of each review of ``"dev"`` and ``"test"``,
    more than 0 for label 1. The runs of an ensemble's members are looked for, and made, beside ``output``.

    Args:
        row: The row.
        splits: What to train and measure on, of the row's share.
        output: The run folder.
        seed: That of the weights, the batches and the dropout.
        corpus: The name of the corpus, noted in the record.
        command: What was run, noted in the record.

    Returns:
        The record, also in ``output``.

    Example:
        >>> from companion.comparison import BaselineRow, Splits, run_row
        >>> reviews = toy.reviews(400)
        >>> splits = Splits.build(reviews[:200], reviews[200:300], reviews[300:])
        >>> record = run_row(BaselineRow(name="nbsvm", baseline=NBSVM(max_n=1)), splits, "nbsvm-0", corpus="toy")
        >>> record == TrainingRecord.load("nbsvm-0/record.json")
        True
    """
    run = RunFolder(output)
    if run.record.exists() and (record := TrainingRecord.load(run.record)).test is not None:
        return record
    run.folder.mkdir(parents=True, exist_ok=True)
    if isinstance(row, Row):
        record = _train_row(row, splits, run, seed, corpus)
    elif isinstance(row, BaselineRow):
        record = run_baseline(
            row.baseline,
            splits.training,
            splits.dev,
            splits.test,
            tokenizer=row.tokenizer,
            data={"corpus": corpus, "share": row.share},
            outputs=run.outputs,
        )
    else:
        record = _combine_members(row, splits, run, seed, corpus, command)
    record = dataclasses.replace(record, command=command)
    record.save(run.record)
    return record


def _train_row(row: Row, splits: Splits, run: RunFolder, seed: int, corpus: str) -> TrainingRecord:
    training = splits.training_tokens.truncate(row.model.max_length)
    vocabulary = training.build_vocabulary(max_size=row.model.vocab_size)
    vocabulary.save(run.vocabulary)
    ids = training.encode(vocabulary)
    torch.manual_seed(seed)
    model = _make_model(dataclasses.replace(row.model, vocab_size=len(vocabulary)), ids, training.labels)
    data = {"corpus": corpus, "max_tokens": row.max_tokens, "tokenizer": "words", "vectors": None, "share": row.share}
    record = train(
        model,
        labelled_batches(ids, training.labels, max_tokens=row.max_tokens, seed=seed),
        dataclasses.replace(row.training, seed=seed),
        loss_fn=classification_loss,
        eval_batches=evaluation_batches(Predictor(model, vocabulary, {"data": data}), splits.dev_tokens),
        output=run.folder,
        resume=True,
        data=data,
    )
    predictor = load_run(run.folder)
    dev, test = (predictor.score(predictor.encode_corpus(part)) for part in (splits.dev_tokens, splits.test_tokens))
    save_weights({"dev": dev, "test": test}, run.outputs)
    loss = F.binary_cross_entropy_with_logits(test, torch.tensor(splits.test_tokens.labels).to(test)).item()
    return dataclasses.replace(record, test={"loss": round(loss, 6), **_accuracy(test, splits.test_tokens)})


def _combine_members(
    row: EnsembleRow, splits: Splits, run: RunFolder, seed: int, corpus: str, command: str
) -> TrainingRecord:
    names = [_run_name(member, seed) for member in row.members]
    records = [
        run_row(member, splits, run.folder.parent / name, seed=seed % member.seeds, corpus=corpus, command=command)
        for member, name in zip(row.members, names, strict=True)
    ]
    members = [load_weights(RunFolder(run.folder.parent / name).outputs) for name in names]
    outputs = {
        split: torch.stack([outputs[split].double() / outputs["dev"].double().std() for outputs in members]).mean(dim=0)
        for split in ("dev", "test")
    }
    save_weights(outputs, run.outputs)
    return TrainingRecord(
        command=command,
        config={
            "model": {"kind": "Ensemble", "members": names},
            "training": {},
            "data": {"corpus": corpus, "share": row.share},
        },
        seed=seed,
        commit=git_commit(),
        versions={name: version for record in records for name, version in record.versions.items()},
        hardware=records[0].hardware,
        wall_seconds=round(sum(record.wall_seconds for record in records), 1),
        tokens_per_second=None,
        parameters=sum(record.parameters for record in records),
        history=[],
        dev=_accuracy(outputs["dev"], splits.dev_tokens),
        test=_accuracy(outputs["test"], splits.test_tokens),
    )


def _run_name(row: Row | BaselineRow | EnsembleRow, seed: int) -> str:
    return f"{row.name}-{seed % row.seeds}"


def _accuracy(outputs: Tensor, corpus: TokenizedCorpus) -> dict[str, float]:
    return {"accuracy": ((outputs > 0) == torch.tensor(corpus.labels)).double().mean().item()}


def _make_model(
    config: ClassifierConfig | ArticleConfig, ids: Sequence[Sequence[int]], labels: Sequence[int | None]
) -> Classifier:
    if isinstance(config, ArticleConfig):
        return ArticleClassifier(config)
    if not isinstance(config, NGramConfig):
        return TextClassifier(config)
    table = NGrams.build(ids, labels, vocab_size=config.vocab_size, max_n=config.max_n, min_count=MIN_COUNT)
    return NGramClassifier(dataclasses.replace(config, num_ngrams=len(table.keys)), table)


def collect_outputs(runs: Mapping[str, str | os.PathLike[str]], test: TokenizedCorpus) -> dict[str, Tensor]:
    """Collect what trained models say of each review of the test split, for the curves that a mean cannot give.

    Args:
        runs: Folders that `run_row` has written, by the name to give each.
        test: The tokens of the reviews that they were measured on.

    Returns:
        Of each review the ``label`` (uint8), the number of ``tokens`` and of ``negations`` among them (int16), and
        under each name of ``runs`` the output (float32).

    Example:
        >>> from companion.comparison import BaselineRow, Splits, collect_outputs, run_row
        >>> reviews = toy.reviews(400)
        >>> splits = Splits.build(reviews[:200], reviews[200:300], reviews[300:])
        >>> record = run_row(BaselineRow(name="nbsvm", baseline=NBSVM(max_n=1)), splits, "nbsvm-0", corpus="toy")
        >>> outputs = collect_outputs({"nbsvm": "nbsvm-0"}, splits.test_tokens)
        >>> ((outputs["nbsvm"] > 0) == outputs["label"].bool()).double().mean().item() == record.test["accuracy"]
        True
    """
    tokens = [test[index] for index in range(len(test))]
    outputs = {
        "label": torch.tensor(test.labels, dtype=torch.uint8),
        "tokens": torch.tensor([len(words) for words in tokens], dtype=torch.int16),
        "negations": torch.tensor([sum(word in NEGATIONS for word in words) for words in tokens], dtype=torch.int16),
    }
    return {**outputs, **{name: load_weights(RunFolder(run).outputs)["test"].float() for name, run in runs.items()}}


def choose_rows(names: Sequence[str], known: Mapping[str, _AnyRow]) -> list[_AnyRow]:
    """Return the rows of these names, in the order of ``known``; without any names, all of them.

    Raises:
        ValueError: If there is no row of a name.
    """
    unknown = sorted(set(names) - known.keys())
    if unknown:
        raise ValueError(f"there is no row {unknown[0]!r}; choose of {', '.join(known)}")
    return [row for name, row in known.items() if not names or name in names]


def run_rows(
    names: Sequence[str],
    output: str | os.PathLike[str],
    *,
    command: str,
    report: Callable[[str], None],
) -> None:
    """Run rows on IMDB, each seed in a folder of its own, and gather the records in ``records/``.

    Once the rows of ``COLLECTED`` are there, `collect_outputs` of their first seeds joins the records.

    Args:
        names: Names of rows; none stands for all.
        output: The folder for the run folders.
        command: What was run, noted in the records.
        report: Called with a line for each record.

    Raises:
        ValueError: If there is no row of a name.

    Example:
        >>> from companion.comparison import run_rows
        >>> run_rows(["worst"], "comparison", command="an example", report=print)
        Traceback (most recent call last):
        ValueError: there is no row 'worst'; choose of article, ...
    """
    known = {row.name: row for row in ROWS}
    rows = choose_rows(names, known)
    records = Path(output, "records")
    records.mkdir(parents=True, exist_ok=True)
    splits = Splits.build(*hold_out(load_imdb("train")), load_imdb("test"))
    for row in rows:
        reduced = splits.reduce(row.share)
        for seed in range(row.seeds):
            run = Path(output, _run_name(row, seed))
            record = run_row(row, reduced, run, seed=seed, command=command)
            group = "baselines" if isinstance(row, BaselineRow) else "imdb"
            record.save(records / f"{group}-{run.name}.json")
            figures = [f"{split['accuracy']:.4f}" for split in (record.dev, record.test) if split is not None]
            report(f"{run.name}: dev {figures[0]}, test {figures[1]}")
    runs = {name: Path(output, _run_name(known[name], 0)) for name in COLLECTED}
    if all(RunFolder(run).outputs.exists() for run in runs.values()):
        save_weights(collect_outputs(runs, splits.test_tokens), records / "imdb-test.safetensors")
