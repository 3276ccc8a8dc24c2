"""``pretrain``, ``finetune``, ``label``: ALBERT learns from texts alone, from labels, and from those of a teacher."""

import dataclasses
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from companion.albert import AlbertConfig, AlbertForPreTraining, AlbertModel
from companion.baselines import NBSVM
from companion.cli import corpora
from companion.cli.runs import RunOptions, command_line, print_figures, run_classifier_training, run_training
from companion.distillation import run_teacher
from companion.imdb import Review, hold_out
from companion.optimization import TrainingConfig
from companion.prediction import Predictor, load_run
from companion.pretraining import PreTrainingTask, pretraining_batches, pretraining_loss
from companion.runs import RunFolder, load_weights
from companion.text import SentencePieceTokenizer
from companion.transfer import load_pretrained, make_classifier, warm_start


@dataclass(frozen=True, kw_only=True)
class PreTrain(RunOptions):
    """Pre-train an ALBERT on IMDB's training reviews, with and without labels, and on no other text.

    A tenth of the labelled ones is held out, as elsewhere; the SentencePiece model is trained on the rest.

    Example: python -m companion pretrain albert --output runs/albert --checkpoint-every 500
    """

    start: Literal["counts", "random"] = "counts"
    """Where the embeddings begin: at what counting neighbours gives, or at random, as in the paper."""
    what: tyro.conf.Positional[Literal["albert"]]
    """The model to pre-train."""
    task: PreTrainingTask = field(default_factory=PreTrainingTask)
    model: AlbertConfig = field(
        default_factory=lambda: AlbertConfig(
            vocab_size=8_000,
            hidden_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=1_024,
            max_position_embeddings=128,
            initializer_range=0.05,
        )
    )
    max_tokens: int = 2_048
    """Tokens a batch, padding included."""
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(epochs=2, learning_rate=5e-4, warmup_fraction=0.05)
    )

    def run(self) -> None:
        """Train, print."""
        run = self.folder()
        labelled, dev = hold_out(corpora.reviews("imdb", "train"))
        reviews = [*labelled, *corpora.reviews("imdb", "unsup")]
        tokenizer = _tokenizer(run, reviews, self.model.vocab_size)
        self._check(tokenizer)
        torch.manual_seed(self.training.seed)
        model = AlbertForPreTraining(dataclasses.replace(self.model, vocab_size=len(tokenizer.vocabulary)))
        sequences, dev_sequences = ([tokenizer.encode(review.text) for review in part] for part in (reviews, dev))
        if self.start == "counts":
            warm_start(model, sequences)
        batches, dev_batches = (
            pretraining_batches(
                part,
                tokenizer,
                self.task,
                max_length=self.model.max_position_embeddings,
                max_tokens=self.max_tokens,
                shuffle=part is sequences,
                seed=self.training.seed,
            )
            for part in (sequences, dev_sequences)
        )
        run_training(
            self,
            model,
            batches,
            dev_batches,
            self.training,
            words=tokenizer,
            loss_fn=pretraining_loss,
            data={
                "corpus": "imdb",
                "max_tokens": self.max_tokens,
                "vocab_size": self.model.vocab_size,
                "task": asdict(self.task),
                "start": self.start,
            },
        )

    def _check(self, tokenizer: SentencePieceTokenizer) -> None:
        shape = self.model
        ids = {"pad_token_id": 0, "bos_token_id": tokenizer.cls_id, "eos_token_id": tokenizer.sep_id}
        for field_name, wanted in ids.items():
            if getattr(shape, field_name) != wanted:
                raise ValueError(f"{field_name}={getattr(shape, field_name)}; choose {wanted}, as the tokenizer has it")
        if shape.type_vocab_size < 2 and self.task.sentence_task != "none":
            raise ValueError(f"type_vocab_size={shape.type_vocab_size}; choose 2, for two segments")


@dataclass(frozen=True, kw_only=True)
class FineTune(RunOptions):
    """Fine-tune a pre-trained ALBERT on IMDB's labelled reviews, choose on the dev split, measure on the test split.

    Example: python -m companion finetune imdb --from runs/albert --output runs/albert-imdb
    """

    corpus: tyro.conf.Positional[Literal["imdb"]]
    """The corpus to fine-tune on."""
    source: Annotated[str, tyro.conf.arg(name="from")]
    """The run folder of pretrain albert, or the folder or Hub repository of a checkpoint of transformers."""
    start: Literal["pretrained", "random"] = "pretrained"
    """What to begin with: the pre-trained weights, or others of the same shape drawn at random."""
    teacher: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """The run folder of label imdb, whose labels of the unlabelled reviews are learned from as well."""
    max_length: int = 1_024
    """Tokens of a review, of which those that come later are not read."""
    dropout: float = 0.1
    """Dropout probability of embeddings, sublayers and classifier."""
    word_dropout: float = 0.1
    """The probability with which training hides a word's piece behind the mask."""
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(epochs=3, learning_rate=3e-4))

    def run(self) -> None:
        """Train, measure, print."""
        self.folder()
        pretrained, tokenizer = load_pretrained(self.source)
        tokenized = corpora.tokenized("imdb", "train", tokenizer).truncate(self.max_length)
        training, dev = tokenized.hold_out()
        sequences, labels = training.encode(tokenizer.vocabulary), training.labels
        if self.teacher is not None:
            unlabelled = corpora.tokenized("imdb", "unsup", tokenizer).truncate(self.max_length)
            sequences += unlabelled.encode(tokenizer.vocabulary)
            labels += _soft_labels(self.teacher, len(unlabelled))
        torch.manual_seed(self.training.seed)
        model = make_classifier(
            pretrained if self.start == "pretrained" else AlbertModel(pretrained.config),
            max_length=self.max_length,
            hidden_dropout_prob=self.dropout,
            classifier_dropout_prob=self.dropout,
            word_dropout=self.word_dropout,
        )
        data = {
            "corpus": "imdb",
            "max_tokens": self.max_tokens,
            "tokenizer": "sentencepiece",
            "from": self.source,
            "start": self.start,
            "teacher": self.teacher and str(self.teacher),
        }
        predictor = Predictor(model, tokenizer.vocabulary, {"data": data}, tokenizer)
        run_classifier_training(self, predictor, sequences, labels, dev, self.training)


@dataclass(frozen=True, kw_only=True)
class Label:
    """Label IMDB's unlabelled reviews, by a fine-tuned classifier and NB-SVM on trigrams together.

    What each counts for is fitted to the dev split; beyond that they know the labels of the training reviews alone.

    Example: python -m companion label imdb --from runs/albert-imdb --output runs/albert-teacher
    """

    corpus: tyro.conf.Positional[Literal["imdb"]]
    """The corpus to label."""
    source: Annotated[Path, tyro.conf.arg(name="from")]
    """The run folder of the classifier."""
    output: Path
    """The run folder to write."""

    def run(self) -> None:
        """Label, measure, print."""
        RunFolder(self.output).check_free()
        predictor = load_run(self.source)
        training, dev = hold_out(corpora.reviews("imdb", "train"))
        record = run_teacher(
            predictor,
            NBSVM(max_n=3),
            training,
            dev,
            corpora.reviews("imdb", "test"),
            corpora.reviews("imdb", "unsup"),
            output=self.output,
            data={"corpus": "imdb", "from": str(self.source)},
            command=command_line(),
        )
        print_figures(self.output, record)


def _soft_labels(folder: Path, count: int) -> list[float]:
    """Return the probability of label 1 of each unlabelled review, as a teacher has it."""
    path = RunFolder(folder).outputs
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; name the run folder of label imdb")
    log_odds = load_weights(path).get("unsup", torch.empty(0))
    if log_odds.shape != (count,):
        raise ValueError(f"{path} labels {log_odds.numel()} of {count} unlabelled reviews; run label imdb again")
    return log_odds.sigmoid().tolist()


def _tokenizer(run: RunFolder, reviews: Sequence[Review], vocab_size: int) -> SentencePieceTokenizer:
    """Train a SentencePiece model, unless the run that is to be resumed has one."""
    if run.config.exists() and run.pieces.exists():
        return SentencePieceTokenizer.load(run.pieces)
    return corpora.train_pieces(reviews, vocab_size)
