"""The study of ALBERT's choices: what is pre-trained and fine-tuned for each row of its tables, and the record of it.

All rows pre-train on the same of IMDB's training reviews, fine-tune on the labelled ones, are chosen on the dev split,
held out of both, and are measured once, on the same part of the official test split.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from companion.albert import AlbertConfig, AlbertForPreTraining
from companion.batching import labelled_batches
from companion.comparison import choose_rows
from companion.corpus import TokenizedCorpus, tokenize_imdb
from companion.imdb import hold_out, load_imdb
from companion.losses import classification_loss
from companion.optimization import TrainingConfig
from companion.prediction import Predictor, evaluation_batches
from companion.pretraining import PreTrainingTask, SentenceTask, pretraining_batches, pretraining_loss
from companion.records import TrainingRecord
from companion.runs import RunFolder
from companion.text import SentencePieceTokenizer
from companion.training import Batches, evaluate, train
from companion.transfer import make_classifier, warm_start

TEXTS, LABELLED, DEV_TEXTS, TEST_TEXTS = 6_000, 4_000, 1_000, 10_000
"""Reviews to pre-train on, to fine-tune on, of the dev split to measure the pre-trained model on, of the test split."""

SMALL = AlbertConfig(
    vocab_size=4_000,
    embedding_size=64,
    hidden_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=1_024,
    hidden_act="relu",
    max_position_embeddings=128,
    initializer_range=0.05,
)
"""The shape of the row that the others change one choice of: small enough for three minutes."""


TASK = PreTrainingTask(sentence_task="none", mask_probability=0.2, max_n=1)
"""The task of that row: masks over single words alone, which are learnt soonest."""


@dataclass(frozen=True, kw_only=True)
class StudyRow:
    """A row of the study.

    Attributes:
        name: Its name; that of its records has the seed behind it.
        model: The shape of the model; ``vocab_size`` is the most that the vocabulary may hold.
        task: What it is pre-trained to do.
        parts: In how many parts, each an epoch, the texts are taken.
        pretraining: How to pre-train it.
        finetuning: How to fine-tune it.
        max_tokens: Tokens a batch, padding included, of both.
        max_length: Tokens of a review that fine-tuning reads.

    Example:
        >>> from companion.study import ROWS
        >>> [row.name for row in ROWS if row.model.sharing != "all"]
        ['sharing-attention', 'sharing-ffn', 'sharing-none']
    """

    name: str
    model: AlbertConfig = SMALL
    task: PreTrainingTask = TASK
    parts: int = 4
    pretraining: TrainingConfig = dataclasses.field(
        default_factory=lambda: TrainingConfig(epochs=4, learning_rate=5e-4, warmup_fraction=0.05)
    )
    finetuning: TrainingConfig = dataclasses.field(default_factory=lambda: TrainingConfig(epochs=1, learning_rate=3e-4))
    max_tokens: int = 2_048
    max_length: int = 252


ROWS = (
    StudyRow(name="base"),
    *(
        StudyRow(name=f"sharing-{sharing}", model=dataclasses.replace(SMALL, sharing=sharing))
        for sharing in ("attention", "ffn", "none")
    ),
    *(
        StudyRow(name=f"embedding-{size}", model=dataclasses.replace(SMALL, embedding_size=size))
        for size in (32, SMALL.hidden_size)
    ),
    *(StudyRow(name=f"task-{task}", task=dataclasses.replace(TASK, sentence_task=task)) for task in ("sop", "nsp")),
    StudyRow(name="masking-3", task=dataclasses.replace(TASK, max_n=3)),
)
"""The base row, with everything shared, and those that change one choice of it."""

SEEDS = 3


class Parts:
    """A part of the texts in each epoch: one pass over all of them, with as many points in its log as parts.

    Args:
        loaders: The batches of each part.
    """

    def __init__(self, loaders: Sequence[Batches]) -> None:
        self.loaders = loaders
        self.part = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the part of an epoch; the training loop calls this."""
        self.part = epoch % len(self.loaders)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loaders[self.part])

    def __len__(self) -> int:
        return len(self.loaders[self.part])


@dataclass(frozen=True, kw_only=True)
class StudySplits:
    """What the rows are trained and measured on; `StudySplits.build` takes it from IMDB.

    Attributes:
        tokenizer: The tokenizer that made the tokens.
        texts: To pre-train on.
        training: To fine-tune on.
        dev: To choose by.
        test: To report.

    Example:
        >>> from companion.study import StudySplits
        >>> reviews = toy.reviews(90)
        >>> tokenizer = SentencePieceTokenizer.train([review.text for review in reviews], 90, "spiece.model")
        >>> corpora = [TokenizedCorpus.build(reviews[part::4], tokenizer) for part in range(4)]
        >>> splits = StudySplits(tokenizer=tokenizer, **dict(zip(("texts", "training", "dev", "test"), corpora)))
        >>> len(splits.texts), len(splits.test)
        (23, 22)
    """

    tokenizer: SentencePieceTokenizer
    texts: TokenizedCorpus
    training: TokenizedCorpus
    dev: TokenizedCorpus
    test: TokenizedCorpus

    @classmethod
    def build(cls, pieces: str | os.PathLike[str]) -> "StudySplits":
        """Tokenize IMDB; the SentencePiece model is trained on the training reviews, unless ``pieces`` has it."""
        labelled, _ = hold_out(load_imdb("train"))
        reviews = [*labelled, *load_imdb("unsup")]
        if Path(pieces).exists():
            tokenizer = SentencePieceTokenizer.load(pieces)
        else:
            texts = (review.text for review in reviews)
            tokenizer = SentencePieceTokenizer.train(texts, SMALL.vocab_size, pieces)
        train_split, test = (tokenize_imdb(split, tokenizer=tokenizer) for split in ("train", "test"))
        training, dev = train_split.hold_out()
        return cls(
            tokenizer=tokenizer,
            texts=TokenizedCorpus.build([reviews[row] for row in _draw(len(reviews), TEXTS)], tokenizer),
            training=training.select(_draw(len(training), LABELLED)),
            dev=dev,
            test=test.select(_draw(len(test), TEST_TEXTS)),
        )


def _draw(size: int, count: int) -> list[int]:
    return torch.randperm(size, generator=torch.Generator().manual_seed(0))[:count].tolist()


def run_study_row(
    row: StudyRow,
    splits: StudySplits,
    output: str | os.PathLike[str],
    *,
    seed: int = 0,
    command: str = "companion.study.run_study_row",
) -> TrainingRecord:
    """Pre-train, fine-tune and measure; what is finished in ``output`` is not repeated, and what is not goes on.

    Args:
        row: The row.
        splits: What to train and measure on.
        output: The folder for the two runs, ``pretraining`` and ``finetuning``, and for the record of both.
        seed: That of the weights, the batches, the masks and the dropout.
        command: What was run, noted in the record.

    Returns:
        One record of both runs. Its ``history`` has the epochs of both, each with its ``"phase"``; its ``dev`` has the
        figures of the fine-tuned model, and of the pre-trained one ``mlm_loss``, ``mlm_accuracy``, ``sop_accuracy`` and
        ``nsp_accuracy``, all with masks over single words; ``parameters`` and ``tokens_per_second`` are those of
        pre-training.

    Example:
        >>> from companion.study import StudyRow, StudySplits, run_study_row
        >>> reviews = toy.reviews(90)
        >>> tokenizer = SentencePieceTokenizer.train([review.text for review in reviews], 90, "spiece.model")
        >>> corpora = [TokenizedCorpus.build(reviews[part::4], tokenizer) for part in range(4)]
        >>> splits = StudySplits(tokenizer=tokenizer, **dict(zip(("texts", "training", "dev", "test"), corpora)))
        >>> shape = AlbertConfig(embedding_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
        >>> row = StudyRow(name="tiny", model=shape, parts=1, pretraining=TrainingConfig(epochs=1))
        >>> [entry["phase"] for entry in run_study_row(row, splits, "tiny-0").history]
        ['pretraining', 'finetuning']
    """
    run = RunFolder(output)
    if run.record.exists():
        return TrainingRecord.load(run.record)
    torch.manual_seed(seed)
    vocabulary = splits.tokenizer.vocabulary
    model = AlbertForPreTraining(dataclasses.replace(row.model, vocab_size=len(vocabulary)))
    texts = splits.texts.encode(vocabulary)
    warm_start(model, texts)

    def batches(sequences: Sequence[Sequence[int]], task: PreTrainingTask, *, shuffle: bool = False) -> Batches:
        return pretraining_batches(
            sequences,
            splits.tokenizer,
            task,
            max_length=row.model.max_position_embeddings,
            max_tokens=row.max_tokens,
            shuffle=shuffle,
            seed=seed if shuffle else 0,
        )

    held_out = splits.dev.select(range(min(DEV_TEXTS, len(splits.dev)))).encode(vocabulary)
    dev_batches = {
        task: batches(held_out, dataclasses.replace(TASK, sentence_task=task)) for task in get_args(SentenceTask)
    }
    folders = {phase: RunFolder(run.folder / phase) for phase in ("pretraining", "finetuning")}
    for folder in folders.values():
        folder.folder.mkdir(parents=True, exist_ok=True)
        splits.tokenizer.save(folder.pieces)
    first = train(
        model,
        Parts([batches(texts[part :: row.parts], row.task, shuffle=True) for part in range(row.parts)]),
        dataclasses.replace(row.pretraining, seed=seed),
        loss_fn=pretraining_loss,
        eval_batches=dev_batches[row.task.sentence_task],
        output=folders["pretraining"].folder,
        resume=True,
    )
    own_task = row.task.sentence_task
    measured = {task: evaluate(model, dev_batches[task], loss_fn=pretraining_loss) for task in {own_task, "sop", "nsp"}}
    figures = {
        **{name: measured[own_task][name] for name in ("mlm_loss", "mlm_accuracy")},
        **{f"{task}_accuracy": measured[task]["sentence_accuracy"] for task in ("sop", "nsp")},
    }

    torch.manual_seed(seed)
    classifier = make_classifier(model.albert, max_length=row.max_length, hidden_dropout_prob=0.1)
    training = splits.training.truncate(row.max_length)
    predictor = Predictor(classifier, vocabulary, {}, splits.tokenizer)
    second = train(
        classifier,
        labelled_batches(training.encode(vocabulary), training.labels, max_tokens=row.max_tokens, seed=seed),
        dataclasses.replace(row.finetuning, seed=seed),
        loss_fn=classification_loss,
        eval_batches=evaluation_batches(predictor, splits.dev),
        output=folders["finetuning"].folder,
        resume=True,
    )
    assert second.dev is not None
    record = dataclasses.replace(
        second,
        command=command,
        config={
            "model": first.config["model"],
            "training": {"pretraining": first.config["training"], "finetuning": second.config["training"]},
            "data": {
                "corpus": "imdb",
                "texts": len(texts),
                "max_tokens": row.max_tokens,
                "max_length": row.max_length,
                "task": asdict(row.task),
            },
        },
        wall_seconds=round(first.wall_seconds + second.wall_seconds, 1),
        tokens_per_second=first.tokens_per_second,
        parameters=first.parameters,
        history=[
            {"phase": phase, **entry}
            for phase, part in zip(folders, (first, second), strict=True)
            for entry in part.history
        ],
        dev={**second.dev, **figures},
        test=evaluate(classifier, evaluation_batches(predictor, splits.test), loss_fn=classification_loss),
    )
    record.save(run.record)
    return record


def run_study(
    names: Sequence[str],
    output: str | os.PathLike[str],
    *,
    command: str,
    report: Callable[[str], None],
) -> None:
    """Run rows on IMDB, each seed in a folder of its own, and gather the records in ``records/``.

    Args:
        names: Names of rows; none stands for all.
        output: The folder for the run folders and the SentencePiece model.
        command: What was run, noted in the records.
        report: Called with a line for each record.

    Raises:
        ValueError: If there is no row of a name.

    Example:
        >>> from companion.study import run_study
        >>> run_study(["sharing-most"], "study", command="an example", report=print)
        Traceback (most recent call last):
        ValueError: there is no row 'sharing-most'; choose of base, ...
    """
    rows = choose_rows(names, {row.name: row for row in ROWS})
    records = Path(output, "records")
    records.mkdir(parents=True, exist_ok=True)
    splits = StudySplits.build(Path(output, "spiece.model"))
    for seed in range(SEEDS):
        for row in rows:
            run = f"{row.name}-{seed}"
            record = run_study_row(row, splits, Path(output, run), seed=seed, command=command)
            record.save(records / f"study-{run}.json")
            assert record.dev is not None
            assert record.test is not None
            figures = (record.dev["mlm_loss"], record.dev["accuracy"], record.test["accuracy"])
            report("{}: masked words {:.4f} nats, dev {:.4f}, test {:.4f}".format(run, *figures))
