"""Batches of the real IMDB: the training split as token ids, as it comes and in buckets of length."""

import functools
import random

import torch
from torch import Tensor

from benchmarks.turns import DEVICE, sized
from companion import LengthBucketSampler, pad_batch, tokenize_imdb

VOCABULARY, MAX_LENGTH = 10_000, 512
REVIEWS, MAX_TOKENS = sized(cpu=(32, 8_192), gpu=(256, 65_536))


class Batches(list[tuple[Tensor, Tensor]]):
    """Pairs of token ids ``(batch, length)``, padded with 0, and labels ``(batch,)``."""

    @property
    def tokens(self) -> int:
        """The number of tokens, padding not counted."""
        return sum(int((ids != 0).sum()) for ids, _ in self)

    @property
    def padding(self) -> float:
        """The share of the places that padding takes."""
        return 1 - self.tokens / sum(ids.numel() for ids, _ in self)


@functools.cache
def training_reviews() -> tuple[list[list[int]], list[float]]:
    """Return the ids, cut to 512 a review, and the labels of IMDB's 25,000 training reviews."""
    texts = tokenize_imdb("train")
    ids = [list(review)[:MAX_LENGTH] for review in texts.encode(texts.build_vocabulary(max_size=VOCABULARY))]
    return ids, [float(label or 0) for label in texts.labels]


def as_they_come(count: int, seed: int = 0) -> Batches:
    """Draw batches of as many reviews, each padded to its longest: what a plain DataLoader gives."""
    ids, labels = training_reviews()
    drawn = random.Random(seed).sample(range(len(ids)), count * REVIEWS)
    return _stack([drawn[start : start + REVIEWS] for start in range(0, len(drawn), REVIEWS)], ids, labels)


def in_buckets(count: int, seed: int = 0) -> Batches:
    """Take batches of about as many tokens from a `LengthBucketSampler`: little is left to pad."""
    ids, labels = training_reviews()
    sampler = LengthBucketSampler([len(review) for review in ids], max_tokens=MAX_TOKENS, seed=seed)
    return _stack(list(sampler)[:count], ids, labels)


def _stack(batches: list[list[int]], ids: list[list[int]], labels: list[float]) -> Batches:
    return Batches(
        (
            pad_batch([ids[place] for place in batch]).to(DEVICE),
            torch.tensor([labels[place] for place in batch]).to(DEVICE),
        )
        for batch in batches
    )
