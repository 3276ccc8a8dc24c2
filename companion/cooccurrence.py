"""Co-occurrence: word vectors by factorising how often words stand near each other.

What word2vec learns step by step is, but for weighting, the factorisation of one matrix that can be counted (Levy &
Goldberg, 2014, "Neural word embedding as implicit matrix factorization"). That takes seconds, and is where a
pre-training on little text may begin.
"""

from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def cooccurrence_vectors(
    sequences: Sequence[Sequence[int]], vocab_size: int, d: int, *, window: int = 5, seed: int = 0
) -> Float[Tensor, "vocab d"]:
    r"""Factorise the positive pointwise mutual information of tokens that stand near each other.

    A pair of tokens at a distance of k counts 1 / k, up to ``window`` tokens apart. Of the counts,
    :math:`\mathrm{PPMI}(a, b) = \max(0, \log P(b \mid a) - \log Q(b))`, with Q the share of b raised to the power of
    0.75 (Levy, Goldberg & Dagan, 2015, "Improving distributional similarity", section 3.1). With its largest singular
    values in S, the vectors are the rows of :math:`U \sqrt{S}`.

    Args:
        sequences: Token ids of texts.
        vocab_size: Number of tokens, V; it takes about ``20 V^2`` bytes of memory.
        d: Width of the vectors.
        window: The largest distance.
        seed: That of the randomised factorisation (Halko et al., 2011, arXiv:0909.4061).

    Returns:
        Float32 vectors, ``(vocab_size, d)``, centred, of standard deviation 1; zeros for tokens that do not occur.

    Raises:
        ValueError: If ``d`` is more than ``vocab_size``, ``window`` is not positive, or no two tokens are neighbours.

    Example:
        >>> vectors = cooccurrence_vectors([[5, 6, 7], [5, 8, 7], [7, 9, 5]] * 9, vocab_size=10, d=3)
        >>> similarity = torch.cosine_similarity(vectors[6], vectors[[8, 5]])  # 6 and 8 have the same neighbours
        >>> (similarity[0] > similarity[1]).item(), vectors[:5].abs().sum().item()
        (True, 0.0)
    """
    if not 1 <= d <= vocab_size:
        raise ValueError(f"d={d}; choose 1 to {vocab_size}, the number of tokens")
    if window < 1:
        raise ValueError(f"window={window}; choose 1 or more")
    counts = _count_pairs(sequences, vocab_size, window)
    total = counts.sum(dim=1, keepdim=True)
    if not total.any():
        raise ValueError("no two tokens stand side by side; give longer texts")
    smoothed = total.squeeze(1) ** 0.75
    information = (counts / total.clamp(min=1e-9)).div_(smoothed / smoothed.sum()).log_().clamp_(min=0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        u, s, _ = torch.svd_lowrank(information.nan_to_num_(nan=0.0), q=min(d + 20, vocab_size), niter=3)
    vectors = u[:, :d] * s[:d].sqrt()
    seen = total.squeeze(1) > 0
    vectors = (vectors - vectors[seen].mean(dim=0)) * seen[:, None]
    return vectors / vectors[seen].std()


def _count_pairs(sequences: Sequence[Sequence[int]], vocab_size: int, window: int) -> Tensor:
    """Count the tokens on both sides of each token, ``(vocab_size, vocab_size)``, never across two texts."""
    lengths = [len(sequence) for sequence in sequences]
    ids = np.fromiter(chain.from_iterable(sequences), np.int64, sum(lengths))
    text = np.repeat(np.arange(len(lengths)), lengths)
    counts = np.zeros(vocab_size**2, np.float32)
    for distance in range(1, window + 1):
        within = text[:-distance] == text[distance:]
        pairs = (ids[:-distance] * vocab_size + ids[distance:])[within]
        counts += np.bincount(pairs, minlength=vocab_size**2) / np.float32(distance)
    matrix = torch.from_numpy(counts.reshape(vocab_size, vocab_size))
    return matrix + matrix.T
