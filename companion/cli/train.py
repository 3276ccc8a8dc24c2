"""``train``: a classifier from scratch."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from companion.cli import corpora
from companion.cli.corpora import Corpus
from companion.cli.runs import RunOptions, run_classifier_training
from companion.corpus import TokenizedCorpus
from companion.imdb import hold_out
from companion.models import ClassifierConfig, TextClassifier
from companion.prediction import Predictor
from companion.text import SentencePieceTokenizer, Tokenizer, Vocabulary, WordTokenizer, load_vectors
from companion.training import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class _TrainClassifier(RunOptions):
    """Train a classifier, choose its weights on the dev split and measure them once on the test split."""

    tokenizer: Literal["words", "sentencepiece"] = "words"
    """What splits the texts; a SentencePiece model is trained on the training split."""
    vectors: Path | None = None
    """A text file of word vectors, such as GloVe's, to begin the embedding with; as wide as the model."""
    model: ClassifierConfig = field(default_factory=ClassifierConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)


@dataclass(frozen=True, kw_only=True)
class TrainIMDB(_TrainClassifier):
    """Train on the real IMDB reviews; a tenth of the training split, films apart, is the dev split.

    A run that was stopped goes on with --resume. The book's page on GPUs has the commands for several processes.

    Example: python -m companion train imdb --output runs/imdb --checkpoint-every 200
    """

    model: ClassifierConfig = field(
        default_factory=lambda: ClassifierConfig(
            vocab_size=10_000, d_model=32, d_ff=128, max_length=1_024, word_dropout=0.3
        )
    )

    def run(self) -> None:
        """Train, measure, print."""
        _train(self, "imdb")


@dataclass(frozen=True, kw_only=True)
class TrainToy(_TrainClassifier):
    """Train on reviews written by a grammar; needs no download, takes less than a minute.

    Example: python -m companion train toy --output runs/toy
    """

    max_tokens: int = 1_024
    """Tokens a batch, padding included."""
    model: ClassifierConfig = field(default_factory=lambda: ClassifierConfig(num_layers=2, max_length=64))
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(epochs=5, learning_rate=2e-3))

    def run(self) -> None:
        """Train, measure, print."""
        _train(self, "toy")


@dataclass(frozen=True)
class Train:
    """Train a classifier."""

    corpus: Annotated[
        Annotated[TrainIMDB, tyro.conf.subcommand("imdb")] | Annotated[TrainToy, tyro.conf.subcommand("toy")],
        tyro.conf.arg(name=""),
    ]

    def run(self) -> None:
        """Train on the chosen corpus."""
        self.corpus.run()


def _train(command: _TrainClassifier, corpus: Corpus) -> None:
    command.folder()
    tokenizer = _tokenizer(command, corpus)
    tokenized = corpora.tokenized(corpus, "train", tokenizer).truncate(command.model.max_length)
    training, dev = tokenized.hold_out()
    vocabulary = _vocabulary(command, training, tokenizer)
    torch.manual_seed(command.training.seed)
    model = TextClassifier(dataclasses.replace(command.model, vocab_size=len(vocabulary)))
    if command.vectors is not None:
        _load_embedding(model, command.vectors, vocabulary)
    data = {
        "corpus": corpus,
        "max_tokens": command.max_tokens,
        "tokenizer": command.tokenizer,
        "vectors": command.vectors and command.vectors.name,
    }
    predictor = Predictor(model, vocabulary, {"data": data}, tokenizer)
    run_classifier_training(command, predictor, training.encode(vocabulary), training.labels, dev, command.training)


def _tokenizer(command: _TrainClassifier, corpus: Corpus) -> Tokenizer:
    if command.tokenizer == "words":
        return WordTokenizer()
    training, _ = hold_out(corpora.reviews(corpus, "train"))
    return corpora.train_pieces(training, command.model.vocab_size)


def _vocabulary(command: _TrainClassifier, training: TokenizedCorpus, tokenizer: Tokenizer) -> Vocabulary:
    if isinstance(tokenizer, SentencePieceTokenizer):
        return tokenizer.vocabulary
    return training.build_vocabulary(max_size=command.model.vocab_size)


def _load_embedding(model: TextClassifier, path: Path, vocabulary: Vocabulary) -> None:
    vectors = load_vectors(path, vocabulary)
    if vectors.size(1) != model.config.d_model:
        raise ValueError(f"{path} has {vectors.size(1)} numbers a token; choose --model.d-model {vectors.size(1)}")
    model.embedding.load_state_dict({"weight": vectors})
