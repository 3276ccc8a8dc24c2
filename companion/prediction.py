"""Prediction: trained classifiers, put to use."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader

from companion.albert import AlbertTextClassifier, AlbertTextConfig
from companion.article import ArticleClassifier, ArticleConfig
from companion.batching import LabelledBatch, LengthBucketSampler, labelled_batches, pad_batch
from companion.configs import ClassifierConfig
from companion.corpus import TokenizedCorpus
from companion.devices import default_device
from companion.models import TextClassifier
from companion.ngrams import NGramClassifier, NGramConfig
from companion.runs import RunFolder
from companion.text import SentencePieceTokenizer, Tokenizer, Vocabulary, WordTokenizer

Classifier = TextClassifier | ArticleClassifier | AlbertTextClassifier

EVALUATION_TOKENS = 16_384
"""Tokens a batch where no gradients are kept."""

_CLASSIFIERS: dict[str, tuple[Any, Any]] = {
    "TextClassifier": (TextClassifier, ClassifierConfig),
    "ArticleClassifier": (ArticleClassifier, ArticleConfig),
    "NGramClassifier": (NGramClassifier, NGramConfig),
    "AlbertTextClassifier": (AlbertTextClassifier, AlbertTextConfig),
}


class Prediction(NamedTuple):
    """What a classifier says of a text.

    Attributes:
        label: ``"positive"`` or ``"negative"``.
        probability: The probability of that label, 0.5 to 1.

    Example:
        >>> label, probability = Prediction("positive", 0.75)
        >>> print(f"{label}, {probability:.0%}")
        positive, 75%
    """

    label: str
    probability: float


class Predictor:
    """A trained classifier with its tokenizer and vocabulary; `load_run` makes it.

    Attributes:
        model: The classifier, in evaluation mode.
        vocabulary: The vocabulary that it was trained with.
        config: What ``config.json`` of its run holds.
        tokenizer: What splits a text into the vocabulary's tokens; ``None`` takes a `WordTokenizer`.

    Raises:
        ValueError: If the model has not the vocabulary's size and its ids of padding and the unknown token.

    Example:
        >>> vocabulary = Vocabulary.build([["dull", "good"]])
        >>> model = TextClassifier(ClassifierConfig(vocab_size=4, d_model=4, num_heads=1, d_ff=4, max_length=8))
        >>> _ = nn.init.zeros_(model.output.weight), nn.init.ones_(model.output.bias)  # it calls all positive
        >>> predictor = Predictor(model, vocabulary, {})
        >>> predictor.encode("Good, not dull!"), predictor.predict(["Good, not dull!"])
        ([3, 1, 1, 2, 1], [Prediction(label='positive', probability=0.731...)])
    """

    def __init__(
        self,
        model: Classifier,
        vocabulary: Vocabulary,
        config: dict[str, Any],
        tokenizer: Tokenizer | None = None,
    ) -> None:
        shape = model.config
        if (len(vocabulary), 0, 1) != (shape.vocab_size, shape.pad_id, shape.unknown_id):
            raise ValueError(
                f"the model has vocab_size={shape.vocab_size}, pad_id={shape.pad_id}, unknown_id={shape.unknown_id}; "
                f"expected {len(vocabulary)}, 0, 1, as the vocabulary has"
            )
        self._device = default_device()
        self.model = model.to(self._device).eval()
        self.vocabulary = vocabulary
        self.config = config
        self.tokenizer = tokenizer or WordTokenizer()

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, cut to the model's ``max_length``."""
        return self.vocabulary.encode(self.tokenizer(text)[: self.model.config.max_length])

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        """Classify texts.

        Args:
            texts: The texts; what is past the model's ``max_length`` tokens is not read.

        Returns:
            One prediction for each, in their order.

        Raises:
            ValueError: If a text holds no words.
            TypeError: If ``texts`` is a single string.
            FloatingPointError: If the weights are damaged, so that a logit is not finite.
        """
        probabilities = self.logits(texts).sigmoid().tolist()
        return [Prediction("positive", p) if p > 0.5 else Prediction("negative", 1 - p) for p in probabilities]

    def logits(self, texts: Sequence[str]) -> Float[Tensor, "texts"]:
        """Compute the logit of the positive class of each text, as `predict` takes it.

        Args:
            texts: As in `predict`.

        Returns:
            The logits, ``(texts,)``, on the CPU.

        Raises:
            ValueError: As `predict`.
            TypeError: As `predict`.
            FloatingPointError: As `predict`.
        """
        if isinstance(texts, str):
            raise TypeError("texts is a single string; give a list of texts")
        ids = [self.encode(text) for text in texts]
        for number, (text, encoded) in enumerate(zip(texts, ids, strict=True), start=1):
            if not encoded:
                raise ValueError(f"text {number} holds no words: {text[:40]!r}")
        return self.score(ids)

    def encode_corpus(self, corpus: TokenizedCorpus) -> list[Sequence[int]]:
        """Return the token ids of each text of a corpus, cut as `encode` cuts them."""
        return corpus.truncate(self.model.config.max_length).encode(self.vocabulary)

    def score(self, sequences: Sequence[Sequence[int]]) -> Float[Tensor, "texts"]:
        """Compute the logit of the positive class of each text from its token ids.

        Args:
            sequences: What `encode` gives for each text; none is empty.

        Returns:
            The logits, ``(texts,)``, on the CPU.

        Raises:
            FloatingPointError: If one is not finite.
        """
        logits = torch.empty(len(sequences))
        if not sequences:
            return logits
        sampler = LengthBucketSampler(
            [len(sequence) for sequence in sequences], EVALUATION_TOKENS, shuffle=False, rank=0, world_size=1
        )
        with torch.inference_mode():
            for batch in sampler:
                input_ids = pad_batch([sequences[index] for index in batch]).to(self._device)
                logits[batch] = self.model(input_ids).float().cpu()
        if not logits.isfinite().all():
            raise FloatingPointError("the model's logits are not finite; its weights are damaged, train the run again")
        return logits


def evaluation_batches(predictor: Predictor, corpus: TokenizedCorpus) -> DataLoader[LabelledBatch]:
    """Batch a labelled corpus for `evaluate`, cut to the model's ``max_length``; each review comes once."""
    ids = predictor.encode_corpus(corpus)
    return labelled_batches(ids, corpus.labels, max_tokens=EVALUATION_TOKENS, shuffle=False)


def load_run(folder: str | os.PathLike[str]) -> Predictor:
    """Load a trained classifier.

    Args:
        folder: A run folder, as `train` and ``python -m companion train`` write it.

    Returns:
        A `Predictor`.

    Raises:
        FileNotFoundError: If the folder, or a file in it, is missing.
        ValueError: If a file is damaged or does not fit the others.

    Example:
        >>> vocabulary = Vocabulary.build([["dull", "good"]])  # ids 2 and 3
        >>> batches = labelled_batches([[2], [3]], [0, 1], max_tokens=2)
        >>> model = TextClassifier(ClassifierConfig(vocab_size=4, d_model=4, num_heads=1, d_ff=4, max_length=8))
        >>> record = train(model, batches, TrainingConfig(epochs=1), loss_fn=classification_loss, output="run")
        >>> vocabulary.save("run/vocabulary.txt")
        >>> load_run("run").predict(["good"]) == Predictor(model, vocabulary, {}).predict(["good"])
        True
    """
    run = RunFolder(folder)
    words = run.vocabulary if run.vocabulary.exists() or not run.pieces.exists() else run.pieces
    for path in (run.folder, run.config, run.weights, words):
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist; name the folder of a trained run")
    entries = run.settings()

    def make() -> Classifier:
        shape = dict(entries["model"])
        classifier, config = _CLASSIFIERS[shape.pop("kind", "TextClassifier")]
        return classifier(config(**shape))

    model = run.load_model(make, "a classifier")
    if words == run.pieces:
        tokenizer = SentencePieceTokenizer.load(words)
        vocabulary = tokenizer.vocabulary
    else:
        tokenizer, vocabulary = WordTokenizer(), Vocabulary.load(words)
    try:
        return Predictor(model, vocabulary, entries, tokenizer)
    except ValueError as error:
        raise ValueError(f"{words} does not fit {run.config}: {error}") from error
