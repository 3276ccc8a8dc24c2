"""N-grams: a table of those that training texts hold, and a classifier that reads them beside the words."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Int64
from torch import Tensor, nn

from companion.configs import NGramConfig
from companion.models import TextClassifier


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
        parts, positive = [np.empty(0, np.int64)], [np.empty(0, bool)]
        for ids, label in zip(sequences, labels, strict=True):
            row = torch.tensor([ids], dtype=torch.int64)
            keys = np.unique(torch.cat([ngram_keys(row, n + 1, vocab_size) for n in range(max_n)]).numpy())
            parts.append(keys[keys > 0])
            positive.append(np.full(len(parts[-1]), label == 1))
        keys, place, total = np.unique(np.concatenate(parts), return_inverse=True, return_counts=True)
        p = np.bincount(place, weights=np.concatenate(positive), minlength=len(keys))
        kept = total >= min_count
        if not kept.any():
            raise ValueError(f"min_count={min_count}: no n-gram is in so many of the {len(sequences)} texts")
        ratios = log_count_ratio(p[kept] + 1, (total - p)[kept] + 1)
        return cls(torch.from_numpy(keys[kept]), torch.from_numpy(ratios).float())


def log_count_ratio(p: Float[np.ndarray, "ngrams"], q: Float[np.ndarray, "ngrams"]) -> Float[np.ndarray, "ngrams"]:
    """Compute ``log((p / sum(p)) / (q / sum(q)))``: how much more often an n-gram is in a positive text.

    Args:
        p: For each n-gram, the number of positive texts that have it, smoothed; ``(ngrams,)``.
        q: The same of the negative texts.

    Returns:
        The ratios, ``(ngrams,)``.

    Example:
        >>> import numpy as np
        >>> log_count_ratio(np.array([3.0, 1.0]), np.array([1.0, 3.0])).round(3).tolist()  # log 3, -log 3
        [1.099, -1.099]
    """
    return np.log(p / p.sum()) - np.log(q / q.sum())


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
