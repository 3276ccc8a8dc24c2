"""N-grams: a table of those that training texts hold, and a classifier that reads them beside the words."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Int64
from torch import Tensor, nn

from companion.configs import ClassifierConfig
from companion.models import TextClassifier


@dataclass(frozen=True, kw_only=True)
class NGramConfig(ClassifierConfig):
    """The shape of an `NGramClassifier`: that of a classifier, and its table's.

    ``word_dropout`` is the probability with which training leaves out an n-gram.

    Attributes:
        max_n: The n-grams are those of 1 to ``max_n`` tokens.
        num_ngrams: Number of n-grams in the table.
        weighted: An n-gram's embedding is multiplied by the magnitude of its log-count ratio.

    Raises:
        ValueError: If a value is out of range; the message names the field and what would do.

    Example:
        >>> NGramConfig(num_ngrams=0)
        Traceback (most recent call last):
        ValueError: num_ngrams=0; choose 1 or more
    """

    max_n: int = 3
    num_ngrams: int = 1
    weighted: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("max_n", "num_ngrams"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)}; choose 1 or more")
        if self.vocab_size**self.max_n >= 2**63:
            raise ValueError(f"vocab_size={self.vocab_size} to the power of max_n={self.max_n} is past 64 bits")
        if self.pad_id != 0:
            raise ValueError(f"pad_id={self.pad_id}; choose 0, which keeps n-grams of different n apart")

    @property
    def num_embeddings(self) -> int:
        """Rows of the embedding: the first one, 0, stands for what is not in the table."""
        return self.num_ngrams + 1


class NGrams(NamedTuple):
    """A table of n-grams.

    Attributes:
        keys: A number for each, `ngram_keys` in ascending order; ``(ngrams,)``.
        log_ratios: How much more often each is in texts of label 1 than of label 0; ``(ngrams,)``.

    Example:
        >>> NGrams.build([[2, 4], [2, 5], [2, 4]], [1, 0, 1], vocab_size=10, max_n=2, min_count=2)
        NGrams(keys=tensor([ 2,  4, 24]), log_ratios=tensor([-0.4055,  0.2877,  0.2877]))
    """

    keys: Int64[Tensor, "ngrams"]
    log_ratios: Float32[Tensor, "ngrams"]

    @classmethod
    def build(
        cls,
        sequences: Sequence[Sequence[int]],
        labels: Sequence[int | None],
        *,
        vocab_size: int,
        max_n: int,
        min_count: int,
    ) -> "NGrams":
        r"""Collect the n-grams of training texts and their log-count ratios (Wang & Manning, 2012, section 2.1).

        Of an n-gram in :math:`p` texts of label 1 and in :math:`q` of label 0 the ratio is
        :math:`\log\frac{(p + 1) / P}{(q + 1) / Q}`, where P and Q are the sums of the numerators over the table.

        Args:
            sequences: Token ids of each text.
            labels: The label of each, 0 or 1.
            vocab_size: Number of token ids.
            max_n: The n-grams are those of 1 to ``max_n`` tokens.
            min_count: In how many texts an n-gram must be.

        Returns:
            The table.

        Raises:
            ValueError: If no n-gram is in so many texts.
        """
        totals: list[tuple[np.ndarray, np.ndarray]] = []
        for n in range(1, max_n + 1):
            counts = []
            for label in (0, 1):
                texts = [ids for ids, given in zip(sequences, labels, strict=True) if given == label]
                counts.append(_document_counts(texts, vocab_size, n))
            keys = np.union1d(counts[0][0], counts[1][0])
            both = np.zeros((2, len(keys)), np.int64)
            for row, (found, number) in zip(both, counts, strict=True):
                row[np.searchsorted(keys, found)] = number
            kept = both.sum(axis=0) >= min_count
            totals.append((keys[kept], both[:, kept]))
        keys = np.concatenate([part for part, _ in totals])
        if not len(keys):
            raise ValueError(f"min_count={min_count}: no n-gram is in so many of the {len(sequences)} texts")
        negative, positive = np.concatenate([part for _, part in totals], axis=1) + 1.0
        ratios = np.log(positive / positive.sum()) - np.log(negative / negative.sum())
        order = keys.argsort()
        return cls(torch.from_numpy(keys[order]), torch.from_numpy(ratios[order]).float())


def ngram_keys(input_ids: Int[Tensor, "batch length"], n: int, vocab_size: int) -> Int64[Tensor, "batch length"]:
    r"""Number the n-gram that ends at each position: :math:`\sum_{k<n} \text{id}_{t-k} \, \text{vocab\_size}^k`.

    As no token has the id 0, n-grams of different n have different numbers.

    Args:
        input_ids: Token ids, padded with 0.
        n: Number of tokens.
        vocab_size: Number of token ids.

    Returns:
        The numbers; 0 where the n-gram would begin before the text or holds padding.

    Example:
        >>> ngram_keys(torch.tensor([[2, 4, 5, 0]]), 2, vocab_size=10)
        tensor([[ 0, 24, 45,  0]])
    """
    keys = torch.zeros_like(input_ids, dtype=torch.int64)
    whole = torch.ones_like(input_ids, dtype=torch.bool)
    for k in range(n):
        shifted = nn.functional.pad(input_ids, (k, 0))[:, : input_ids.size(1)]
        keys += shifted * vocab_size**k
        whole &= shifted != 0
    return keys * whole


class NGramClassifier(TextClassifier):
    """A `TextClassifier` whose tokens are embedded together with the n-grams that end at them.

    The embedding of a position is the sum over the n-grams that end there, each times the magnitude of its log-count
    ratio: what says little of the label hardly enters, and hardly learns. This is the naive Bayes weighting of
    Wang & Manning, 2012, on vectors (Li et al., 2016, C16-1150) and below a Transformer.

    Args:
        config: Its shape.
        ngrams: The table; ``None`` leaves it to ``load_state_dict``.

    Raises:
        ValueError: If the table has not ``config.num_ngrams`` n-grams.

    Example:
        >>> table = NGrams.build([[2, 4], [2, 5], [2, 4]], [1, 0, 1], vocab_size=10, max_n=2, min_count=2)
        >>> config = NGramConfig(vocab_size=10, max_n=2, num_ngrams=3, d_model=16, d_ff=32)
        >>> model = NGramClassifier(config, table).eval()
        >>> model.lookup(torch.tensor([[2, 4, 5]])).tolist()  # of each position, its unigram and its bigram; from 1 on
        [[[1, 0], [2, 3], [0, 0]]]
        >>> logit, = model(torch.tensor([[2, 4, 5]]))
    """

    config: NGramConfig
    keys: Int64[Tensor, "ngrams"]
    scales: Float[Tensor, "rows"]

    def __init__(self, config: NGramConfig, ngrams: NGrams | None = None) -> None:
        super().__init__(config)
        if ngrams is None:
            ngrams = NGrams(torch.zeros(config.num_ngrams, dtype=torch.int64), torch.zeros(config.num_ngrams))
        if len(ngrams.keys) != config.num_ngrams:
            raise ValueError(f"ngrams has {len(ngrams.keys)} n-grams; expected num_ngrams={config.num_ngrams}")
        self.register_buffer("keys", ngrams.keys)
        scales = ngrams.log_ratios.abs() if config.weighted else torch.ones_like(ngrams.log_ratios)
        self.register_buffer("scales", nn.functional.pad(scales, (1, 0)))

    def lookup(self, input_ids: Int[Tensor, "batch length"]) -> Int64[Tensor, "batch length n"]:
        """Return the row of the embedding of each n-gram that ends at a position; 0 where the table has none."""
        keys = torch.stack([ngram_keys(input_ids, n + 1, self.config.vocab_size) for n in range(self.config.max_n)], -1)
        place = torch.searchsorted(self.keys, keys).clamp(max=len(self.keys) - 1)
        return torch.where(self.keys[place] == keys, place + 1, 0)

    def _embed(self, input_ids: Tensor) -> Tensor:
        rows = self.lookup(input_ids)
        scales = nn.functional.dropout(self.scales[rows], self.config.word_dropout, self.training)
        return (self.embedding(rows) * scales.unsqueeze(-1)).sum(dim=-2)


def _document_counts(
    sequences: Sequence[Sequence[int]], vocab_size: int, n: int
) -> tuple[Int64[np.ndarray, "keys"], Int64[np.ndarray, "keys"]]:
    """Return the numbers of the n-grams of texts, and how many texts have each."""
    weights = vocab_size ** np.arange(n - 1, -1, -1)
    parts = [np.empty(0, np.int64)]
    for ids in sequences:
        if len(ids) >= n:
            windows = np.lib.stride_tricks.sliding_window_view(np.array(ids, np.int64), n)
            parts.append(np.unique(windows @ weights))
    return np.unique(np.concatenate(parts), return_counts=True)
