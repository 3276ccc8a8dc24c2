"""Batching: token ids to padded batches of similar length, shared out over processes."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader, Sampler


class LabelledBatch(NamedTuple):
    """A batch for a classifier.

    Attributes:
        input_ids: Token ids, ``(batch, length)``, padded with 0.
        labels: Of texts, 0.0 to 1.0, ``(batch,)``; of tokens, ``(batch, length)``, padded with 0; of spans, their first
            and last positions, ``(batch, 2)``.

    Example:
        >>> batch = LabelledBatch(pad_batch([[5, 6, 7], [8]]), torch.tensor([1.0, 0.0]))
        >>> batch.input_ids.tolist(), batch.labels.tolist()
        ([[5, 6, 7], [8, 0, 0]], [1.0, 0.0])
    """

    input_ids: Tensor
    labels: Tensor


class Seq2SeqBatch(NamedTuple):
    """A batch for a sequence-to-sequence model.

    Attributes:
        source_ids: Token ids, ``(batch, source)``, padded with 0.
        target_ids: Those to write, ``(batch, target)``, padded with 0.

    Example:
        >>> batch = Seq2SeqBatch(pad_batch([[5, 6, 7], [8]]), pad_batch([[2, 9, 3], [2, 3]]))
        >>> batch.target_ids[:, 1:].tolist()  # what is to be predicted
        [[9, 3], [3, 0]]
    """

    source_ids: Tensor
    target_ids: Tensor


def pad_batch(sequences: Sequence[Sequence[int]], pad_id: int = 0) -> Int[Tensor, "batch length"]:
    """Stack sequences of token ids, each padded at its end to the longest.

    Args:
        sequences: One or more sequences of token ids.
        pad_id: The id to pad with.

    Returns:
        int64 ids, ``(batch, length)``.

    Raises:
        ValueError: If there are no sequences, or all of them are empty.

    Example:
        >>> pad_batch([[5, 6, 7], [8]]).tolist()
        [[5, 6, 7], [8, 0, 0]]
    """
    length = max((len(sequence) for sequence in sequences), default=0)
    if length == 0:
        raise ValueError("pad_batch needs at least one token; got no sequences, or only empty ones")
    return torch.tensor([[*sequence, *[pad_id] * (length - len(sequence))] for sequence in sequences])


def mix_seed(*numbers: int) -> int:
    """Make one seed of several numbers, such as the run's seed and the epoch.

    PyTorch's generator on the CPU reads 32 bits of a seed only, so that numbers cannot be packed side by side.

    Args:
        numbers: 0 or more each; their order counts.

    Returns:
        32 bits that depend on all of them.

    Example:
        >>> mix_seed(0, 1) == mix_seed(1, 0)
        False
    """
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


class LengthBucketSampler(Sampler[list[int]]):
    """Group examples of similar length into batches under a budget of tokens, padding included.

    Examples are sorted by length, in training with a jitter that mixes neighbours anew each epoch, and cut into
    batches of at most ``max_tokens`` a process; training takes the batches in random order. Where
    ``torch.distributed`` runs several processes, they share the batches that one process with so many times the tokens
    would take (but for a last one that is too small to be shared). Every process gets as many batches as the others,
    its part of each as large as theirs or one example smaller, and each example comes exactly once.

    Args:
        lengths: Number of tokens of each example.
        max_tokens: The most tokens that a batch may hold, its size times its longest length; of several processes,
            the mean over their parts of it.
        shuffle: New batches in a new order each epoch, for training; without it, order and batches are fixed.
        seed: The seed of the shuffling; the batches depend on it and on the epoch alone.
        rank: This process's number; ``None`` asks ``torch.distributed``.
        world_size: The number of processes; ``None`` asks ``torch.distributed``.

    Raises:
        ValueError: If there is no example, one is empty, or one is longer than ``max_tokens``.

    Example:
        >>> sampler = LengthBucketSampler([3, 9, 2, 8, 3], max_tokens=18, shuffle=False)
        >>> list(sampler)
        [[2, 0, 4], [3, 1]]
    """

    def __init__(
        self,
        lengths: Sequence[int],
        max_tokens: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        if not lengths or min(lengths) < 1:
            raise ValueError("every example needs at least one token, and there must be one; got an empty one")
        if max(lengths) > max_tokens:
            raise ValueError(
                f"max_tokens={max_tokens} is below the longest example, {max(lengths)} tokens; "
                "truncate it or raise max_tokens"
            )
        self.lengths = torch.tensor(lengths)
        self.max_tokens = max_tokens
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0
        self._rank = rank
        self._world_size = world_size

    def set_epoch(self, epoch: int) -> None:
        """Choose the shuffling of an epoch; the training loop calls this."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        """Yield this process's share of each batch, a list of example numbers."""
        rank, world_size = self._process()
        return (batch[rank::world_size] for batch in self._batches(world_size))

    def __len__(self) -> int:
        """Return the number of batches of the present epoch, the same on every process."""
        return len(self._batches(self._process()[1]))

    def _process(self) -> tuple[int, int]:
        if self._rank is not None and self._world_size is not None:
            return self._rank, self._world_size
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1

    def _batches(self, world_size: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(mix_seed(self.seed, self.epoch))
        sort_key = self.lengths.double()
        if self.shuffle:
            sort_key = sort_key * (1 + 0.1 * torch.rand(len(sort_key), generator=generator))
        batches: list[list[int]] = []
        longest = 0
        for index in sort_key.argsort(stable=True).tolist():
            longest = max(longest, int(self.lengths[index]))
            room = world_size * self.max_tokens // longest
            if not batches or len(batches[-1]) >= room:
                batches.append([])
                longest = int(self.lengths[index])
            batches[-1].append(index)
        _top_up_last(batches, world_size)
        if self.shuffle:
            order = torch.randperm(len(batches), generator=generator).tolist()
            batches = [batches[position] for position in order]
        return batches


def _top_up_last(batches: list[list[int]], least: int) -> None:
    """Move examples into the last batch, from those that can spare one, until it holds ``least``."""
    *others, last = batches
    donors = [batch for batch in others if len(batch) > least]
    while len(last) < least and donors:
        last.append(donors[-1].pop())
        if len(donors[-1]) == least:
            donors.pop()
    if len(last) < least:
        raise ValueError(
            f"{sum(map(len, batches))} examples in batches of {least} cannot be shared evenly by {least} processes; "
            "raise max_tokens or take fewer processes"
        )


def labelled_batches(
    sequences: Sequence[Sequence[int]],
    labels: Sequence[int | float | None],
    *,
    max_tokens: int,
    shuffle: bool = True,
    seed: int = 0,
) -> DataLoader[LabelledBatch]:
    """Batch token ids and their labels for a classifier, with a `LengthBucketSampler`.

    Args:
        sequences: Token ids of each example.
        labels: 0 or 1 for each example, or the probability of 1; that of an unlabelled one, ``None``, is refused.
        max_tokens: As in `LengthBucketSampler`.
        shuffle: As in `LengthBucketSampler`.
        seed: As in `LengthBucketSampler`.

    Returns:
        An iterable of `LabelledBatch`.

    Raises:
        ValueError: If a label is missing, or the sampler refuses the lengths.

    Example:
        >>> batches = labelled_batches([[5, 6, 7], [8], [9, 5]], [1, 0, 1], max_tokens=4, shuffle=False)
        >>> for batch in batches:
        ...     print(batch.input_ids.tolist(), batch.labels.tolist())
        [[8, 0], [9, 5]] [0.0, 1.0]
        [[5, 6, 7]] [1.0]
    """
    if len(sequences) != len(labels) or None in labels:
        given = len(labels) - labels.count(None)
        raise ValueError(f"got {given} labels for {len(sequences)} sequences; give 0 or 1 for each")
    sampler = LengthBucketSampler([len(sequence) for sequence in sequences], max_tokens, shuffle=shuffle, seed=seed)
    return _loader(sequences, labels, sampler, lambda labels: torch.tensor(labels, dtype=torch.float32))


def tagged_batches(
    sequences: Sequence[Sequence[int]],
    labels: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    shuffle: bool = True,
    seed: int = 0,
) -> DataLoader[LabelledBatch]:
    """Batch token ids and a label for each token, with a `LengthBucketSampler`.

    Args:
        sequences: Token ids of each example.
        labels: As many labels for each example; 0 where a token has none.
        max_tokens: As in `LengthBucketSampler`.
        shuffle: As in `LengthBucketSampler`.
        seed: As in `LengthBucketSampler`.

    Returns:
        An iterable of `LabelledBatch`.

    Raises:
        ValueError: If an example has more or fewer labels than tokens, or the sampler refuses the lengths.

    Example:
        >>> batches = tagged_batches([[5, 6, 7], [8]], [[7, 6, 5], [8]], max_tokens=6, shuffle=False)
        >>> [batch.labels.tolist() for batch in batches]
        [[[8, 0, 0], [7, 6, 5]]]
    """
    lengths, given = [len(sequence) for sequence in sequences], [len(tags) for tags in labels]
    if lengths != given:
        raise ValueError("every token needs a label, and every label a token; give 0 where a token has none")
    return _loader(sequences, labels, LengthBucketSampler(lengths, max_tokens, shuffle=shuffle, seed=seed), pad_batch)


def span_batches(
    sequences: Sequence[Sequence[int]],
    spans: Sequence[tuple[int, int]],
    *,
    max_tokens: int,
    shuffle: bool = True,
    seed: int = 0,
) -> DataLoader[LabelledBatch]:
    """Batch questions with their texts, and where the answers stand in them, with a `LengthBucketSampler`.

    Args:
        sequences: Token ids of each example, as `companion.SpanExtractor` takes them.
        spans: The first and the last position of each answer; both 0 where there is none.
        max_tokens: As in `LengthBucketSampler`.
        shuffle: As in `LengthBucketSampler`.
        seed: As in `LengthBucketSampler`.

    Returns:
        An iterable of `LabelledBatch`.

    Raises:
        ValueError: If a span does not lie in its sequence, or the sampler refuses the lengths.

    Example:
        >>> batches = span_batches([[2, 5, 3, 6, 7], [2, 5, 3, 8]], [(3, 4), (0, 0)], max_tokens=10, shuffle=False)
        >>> [batch.labels.tolist() for batch in batches]
        [[[0, 0], [3, 4]]]
    """
    lengths = _paired_lengths("spans", sequences, spans)
    for number, ((start, end), length) in enumerate(zip(spans, lengths, strict=True), start=1):
        if not 0 <= start <= end < length:
            raise ValueError(f"example {number} has the span {(start, end)}; expected one within its {length} tokens")
    return _loader(sequences, spans, LengthBucketSampler(lengths, max_tokens, shuffle=shuffle, seed=seed), torch.tensor)


def seq2seq_batches(
    sources: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    shuffle: bool = True,
    seed: int = 0,
) -> DataLoader[Seq2SeqBatch]:
    """Batch sources and targets for a sequence-to-sequence model, with a `LengthBucketSampler`.

    Args:
        sources: Token ids of each source.
        targets: Those of its target, the tokens that begin and end it included.
        max_tokens: As in `LengthBucketSampler`; an example is as long as the longer one of source and target.
        shuffle: As in `LengthBucketSampler`.
        seed: As in `LengthBucketSampler`.

    Returns:
        An iterable of `Seq2SeqBatch`.

    Raises:
        ValueError: If there are not as many targets as sources, or the sampler refuses the lengths.

    Example:
        >>> batches = seq2seq_batches([[5, 6, 7], [8]], [[2, 9, 3], [2, 3]], max_tokens=6, shuffle=False)
        >>> [batch.target_ids.tolist() for batch in batches]
        [[[2, 3, 0], [2, 9, 3]]]
    """
    lengths = [*map(max, _paired_lengths("targets", sources, targets), map(len, targets))]
    sampler = LengthBucketSampler(lengths, max_tokens, shuffle=shuffle, seed=seed)
    return _loader(sources, targets, sampler, pad_batch, Seq2SeqBatch)


def _paired_lengths(name: str, sequences: Sequence[Sequence[int]], paired: Sequence[Sequence[int]]) -> list[int]:
    if len(sequences) != len(paired):
        raise ValueError(f"got {len(paired)} {name} for {len(sequences)} sequences; give one for each")
    return [len(sequence) for sequence in sequences]


def _loader(
    sequences: Sequence[Sequence[int]],
    labels: Sequence[Any],
    sampler: LengthBucketSampler,
    stack: Callable[[Sequence[Any]], Tensor],
    batch: Callable[[Tensor, Tensor], Any] = LabelledBatch,
) -> DataLoader[Any]:
    def collate(examples: list[tuple[Sequence[int], Any]]) -> Any:
        ids, given = zip(*examples, strict=True)
        return batch(pad_batch(ids), stack(given))

    examples = list(zip(sequences, labels, strict=True))
    return DataLoader(examples, batch_sampler=sampler, collate_fn=collate)  # type: ignore[arg-type]
