"""The corpora that the commands know: the real IMDB, and reviews written by a grammar."""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, get_args

from torch.utils.data import DataLoader

from companion import toy
from companion.batching import LabelledBatch
from companion.corpus import TokenizedCorpus, tokenize_imdb
from companion.imdb import Review, Split, load_imdb
from companion.losses import classification_loss
from companion.prediction import Predictor, evaluation_batches, load_run
from companion.text import SentencePieceTokenizer, Tokenizer
from companion.training import evaluate

Corpus = Literal["imdb", "toy"]

TOY_SIZE, TOY_TEST_SIZE = 7_000, 1_000
"""Reviews that the grammar writes for ``train toy``, no two alike, and how many of them are the test split."""


def reviews(corpus: Corpus, split: Split) -> list[Review]:
    """Return the reviews of a split; the grammar's are not unlabelled."""
    if corpus == "imdb":
        return load_imdb(split)
    written = toy.reviews(TOY_SIZE, seed=0)
    return written[:-TOY_TEST_SIZE] if split == "train" else written[-TOY_TEST_SIZE:]


def tokenized(corpus: Corpus, split: Split, tokenizer: Tokenizer) -> TokenizedCorpus:
    """Return the tokens of a split, those of IMDB from the cache."""
    if corpus == "imdb":
        return tokenize_imdb(split, tokenizer=tokenizer)
    return TokenizedCorpus.build(reviews(corpus, split), tokenizer)


def train_pieces(texts: Iterable[Review], vocab_size: int) -> SentencePieceTokenizer:
    """Train a SentencePiece model on reviews; a run keeps it later, once it is claimed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "spiece.model")
        return SentencePieceTokenizer.train((review.text for review in texts), vocab_size, path)


def load_run_of_corpus(folder: Path) -> Predictor:
    """Load a trained classifier whose run says which corpus it is of.

    Raises:
        FileNotFoundError: As `load_run`.
        ValueError: As `load_run`, or if the run does not say it.
    """
    predictor = load_run(folder)
    if predictor.config.get("data", {}).get("corpus") not in get_args(Corpus):
        raise ValueError(f"{folder} does not say which corpus it is of; name a run of the train command")
    return predictor


def test_batches(predictor: Predictor) -> DataLoader[LabelledBatch]:
    """Batch the test split of the corpus that a classifier's run is of."""
    corpus = tokenized(predictor.config["data"]["corpus"], "test", predictor.tokenizer)
    return evaluation_batches(predictor, corpus)


def test(predictor: Predictor) -> dict[str, float]:
    """Measure a classifier on the test split of the corpus that its run is of."""
    return evaluate(predictor.model, test_batches(predictor), loss_fn=classification_loss)
