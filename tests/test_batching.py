import itertools
import math
import random
import re

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from companion.batching import (
    LengthBucketSampler,
    labelled_batches,
    mix_seed,
    pad_batch,
    seq2seq_batches,
    span_batches,
    tagged_batches,
)


def batches_of(sampler: LengthBucketSampler, epoch: int = 0) -> list[list[int]]:
    sampler.set_epoch(epoch)
    return list(sampler)


@given(st.lists(st.lists(st.integers(1, 2**40)), min_size=1), st.integers(-1, 9))
def test_pad_batch_keeps_every_token_and_fills_up_with_the_pad_id(sequences, pad_id):
    length = max(map(len, sequences))
    assume(length > 0)
    padded = pad_batch(sequences, pad_id)
    assert padded.dtype == torch.int64
    assert padded.tolist() == [sequence + [pad_id] * (length - len(sequence)) for sequence in sequences]


@pytest.mark.parametrize("sequences", [[], [[]], [[], []]])
def test_pad_batch_needs_a_token(sequences):
    with pytest.raises(ValueError, match="needs at least one token"):
        pad_batch(sequences)


examples = st.lists(st.integers(1, 60), min_size=1, max_size=120)
budgets = st.integers(0, 300)
world_sizes = st.integers(1, 4)


def shareable(sampler: LengthBucketSampler, epoch: int) -> bool:
    sampler.set_epoch(epoch)
    try:
        return len(sampler) > 0
    except ValueError:
        return False


@given(examples, budgets, world_sizes, st.booleans(), st.integers(0, 3), st.integers(0, 3))
def test_every_process_gets_its_share_within_the_budget(lengths, spare, world_size, shuffle, seed, epoch):
    budget = max(lengths) + spare
    samplers = [
        LengthBucketSampler(lengths, budget, shuffle=shuffle, seed=seed, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    if not shareable(samplers[0], epoch):
        assert len(lengths) % world_size != 0
        return
    dealt = [batches_of(sampler, epoch) for sampler in samplers]
    assert [len(sampler) for sampler in samplers] == [len(batches) for batches in dealt]
    flat = [index for batches in dealt for batch in batches for index in batch]
    assert sorted(flat) == list(range(len(lengths)))
    assert len({len(batches) for batches in dealt}) == 1
    for parts in zip(*dealt, strict=True):
        sizes = [len(part) for part in parts]
        assert 1 <= min(sizes) <= max(sizes) <= min(sizes) + 1
        assert sum(sizes) * max(lengths[index] for part in parts for index in part) <= world_size * budget


@given(examples, budgets, st.integers(2, 4), st.booleans(), st.integers(0, 3), st.integers(0, 3))
def test_processes_share_the_batches_of_one_that_takes_their_tokens(lengths, spare, world_size, shuffle, seed, epoch):
    budget = max(lengths) + spare
    settings = {"shuffle": shuffle, "seed": seed}
    samplers = [
        LengthBucketSampler(lengths, budget, rank=rank, world_size=world_size, **settings) for rank in range(world_size)
    ]
    assume(shareable(samplers[0], epoch))
    one = batches_of(LengthBucketSampler(lengths, world_size * budget, rank=0, world_size=1, **settings), epoch)
    assume(all(len(batch) >= world_size for batch in one))
    shared = zip(*(batches_of(sampler, epoch) for sampler in samplers), strict=True)
    assert [sorted(itertools.chain(*parts)) for parts in shared] == [sorted(batch) for batch in one]


@given(examples, budgets, st.integers(0, 2**31), st.integers(0, 50))
def test_seed_and_epoch_alone_decide(lengths, spare, seed, epoch):
    def sampler():
        return LengthBucketSampler(lengths, max(lengths) + spare, seed=seed, rank=0, world_size=1)

    torch.manual_seed(seed + 1)
    first = batches_of(sampler(), epoch)
    torch.manual_seed(seed + 2)
    other = sampler()
    batches_of(other, epoch + 1)
    assert batches_of(other, epoch) == first


def test_epochs_and_seeds_give_other_batches_in_another_order():
    lengths = random.Random(0).choices(range(10, 40), k=500)
    drawn = {
        (seed, epoch): batches_of(LengthBucketSampler(lengths, 400, seed=seed, rank=0, world_size=1), epoch)
        for seed, epoch in itertools.product(range(2), range(3))
    }
    for one, other in itertools.combinations(drawn.values(), 2):
        shared = {frozenset(batch) for batch in one} & {frozenset(batch) for batch in other}
        assert len(shared) < 0.1 * len(one)
    longest = [max(lengths[index] for index in batch) for batch in drawn[0, 0]]
    assert longest != sorted(longest)
    inversions = sum(a > b for a, b in itertools.combinations(longest, 2)) / math.comb(len(longest), 2)
    assert 0.3 < inversions < 0.7


def test_without_shuffling_the_order_is_that_of_the_lengths_whatever_the_epoch():
    lengths = [5, 3, 8, 3, 5, 1]
    sampler = LengthBucketSampler(lengths, 10, shuffle=False, rank=0, world_size=1)
    for epoch in (0, 7):
        assert batches_of(sampler, epoch) == [[5, 1, 3], [0, 4], [2]]


def test_a_batch_is_dealt_out_over_the_processes():
    lengths = [1, 2, 3, 4, 5, 6, 7, 8]
    dealt = [batches_of(LengthBucketSampler(lengths, 16, shuffle=False, rank=rank, world_size=2)) for rank in range(2)]
    assert dealt == [[[0, 2, 4], [5, 7]], [[1, 3], [6]]]


def test_the_last_batch_is_topped_up_so_that_every_process_has_a_share():
    samplers = [LengthBucketSampler([2] * 7, 4, shuffle=False, rank=rank, world_size=3) for rank in range(3)]
    sizes = [[len(batch) for batch in batches_of(sampler)] for sampler in samplers]
    assert sizes == [[2, 1], [1, 1], [1, 1]]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=80), st.integers(2, 4), st.booleans(), st.integers(0, 100))
def test_examples_are_shared_out_wherever_a_batch_can_spare_one(lengths, world_size, shuffle, seed):
    assume(len(lengths) >= world_size)
    counts = [
        len(list(LengthBucketSampler(lengths, 20, shuffle=shuffle, seed=seed, rank=rank, world_size=world_size)))
        for rank in range(world_size)
    ]
    assert len(set(counts)) == 1


def test_too_few_examples_for_the_processes_are_refused():
    sampler = LengthBucketSampler([2, 2, 2], 8, rank=0, world_size=4)
    with pytest.raises(ValueError, match="cannot be shared evenly by 4 processes; raise max_tokens"):
        list(sampler)


def imdb_like_lengths(size: int = 5_000) -> list[int]:
    """Log-normal, median 200 tokens, cut at 512, as IMDB reviews are."""
    draw = random.Random(0)
    return [min(512, max(10, round(draw.lognormvariate(math.log(200), 0.6)))) for _ in range(size)]


@pytest.mark.parametrize(("shuffle", "bound"), [(True, 0.10), (False, 0.02)])
@pytest.mark.parametrize("world_size", [1, 2])
def test_little_of_a_batch_is_padding(shuffle, bound, world_size):
    lengths = imdb_like_lengths()
    padding, area, used = 0, 0, []
    for rank in range(world_size):
        for batch in LengthBucketSampler(lengths, 8_192, shuffle=shuffle, rank=rank, world_size=world_size):
            size = len(batch) * max(lengths[index] for index in batch)
            padding += size - sum(lengths[index] for index in batch)
            area += size
            used.append(size)
    assert padding / area < bound
    assert sorted(used)[len(used) // 10] > 0.9 * 8_192


@pytest.mark.parametrize(
    ("lengths", "budget", "message"),
    [
        ([], 10, "there must be one"),
        ([3, 0, 2], 10, "at least one token"),
        ([3, 11], 10, "max_tokens=10 is below the longest example, 11 tokens"),
        ([1], 0, "max_tokens=0 is below the longest example, 1 token"),
    ],
)
def test_lengths_that_fit_no_batch_are_refused(lengths, budget, message):
    with pytest.raises(ValueError, match=message):
        LengthBucketSampler(lengths, budget)


def test_labelled_batches_hold_each_example_beside_its_label():
    draw = random.Random(1)
    sequences = [[number + 1] * draw.randint(1, 9) for number in range(40)]
    labels = [draw.choice([0, 1, 0.25, 0.875]) for _ in sequences]
    loader = labelled_batches(sequences, labels, max_tokens=30, seed=4)
    loader.batch_sampler.set_epoch(2)
    expected = LengthBucketSampler(list(map(len, sequences)), 30, seed=4, rank=0, world_size=1)
    expected.set_epoch(2)
    batches = list(loader)
    assert len(batches) == len(loader) == len(expected)
    for batch, indices in zip(batches, expected, strict=True):
        assert torch.equal(batch.input_ids, pad_batch([sequences[index] for index in indices]))
        assert batch.labels.dtype == torch.float32
        assert batch.labels.tolist() == [labels[index] for index in indices]


def test_labelled_batches_for_evaluation_keep_their_order():
    loader = labelled_batches([[7, 8], [9], [4, 5, 6]], [1, 0, 1], max_tokens=4, shuffle=False)
    found = [(batch.input_ids.tolist(), batch.labels.tolist()) for batch in loader]
    assert found == [([[9, 0], [7, 8]], [0.0, 1.0]), ([[4, 5, 6]], [1.0])]


@pytest.mark.parametrize(("labels", "given"), [([1], 1), ([1, 0, 1], 3), ([None, 0], 1)])
def test_labelled_batches_need_a_label_each(labels, given):
    with pytest.raises(ValueError, match=f"got {given} labels for 2 sequences"):
        labelled_batches([[1], [2]], labels, max_tokens=4)


def test_tagged_batches_pad_ids_and_labels_alike():
    loader = tagged_batches([[7, 8], [9], [4, 5, 6]], [[1, 2], [3], [0, 4, 5]], max_tokens=4, shuffle=False)
    found = [(batch.input_ids.tolist(), batch.labels.tolist()) for batch in loader]
    assert found == [([[9, 0], [7, 8]], [[3, 0], [1, 2]]), ([[4, 5, 6]], [[0, 4, 5]])]
    assert next(iter(loader)).labels.dtype == torch.int64


def test_tagged_batches_are_those_of_the_sampler_shuffled_anew_each_epoch():
    sequences = [[number] * length for number, length in enumerate([3, 1, 4, 1, 5, 9, 2, 6], start=1)]
    loader = tagged_batches(sequences, sequences, max_tokens=12, seed=3)
    expected = LengthBucketSampler([len(sequence) for sequence in sequences], 12, seed=3)
    for epoch in (0, 1):
        loader.batch_sampler.set_epoch(epoch)
        expected.set_epoch(epoch)
        for batch, indices in zip(loader, expected, strict=True):
            assert torch.equal(batch.labels, pad_batch([sequences[index] for index in indices]))


@pytest.mark.parametrize("labels", [[[1], [2]], [[1, 2]], [[1, 2], [3], [4]]])
def test_tagged_batches_need_a_label_for_each_token(labels):
    with pytest.raises(ValueError, match="every token needs a label"):
        tagged_batches([[1, 2], [3]], labels, max_tokens=4)


@given(st.lists(st.integers(0, 2**70), min_size=1, max_size=3), st.integers(0, 2), st.integers(1, 5))
def test_mix_seed_depends_on_every_number_in_the_bits_that_torch_reads(numbers, position, change):
    other = list(numbers)
    other[position % len(numbers)] += change
    drawn = [
        torch.rand(2, generator=torch.Generator().manual_seed(mix_seed(*one))).tolist() for one in (numbers, other)
    ]
    assert drawn[0] != drawn[1]
    assert mix_seed(*numbers) == mix_seed(*numbers)


def test_span_batches_hold_each_example_beside_its_span():
    ids, spans = [[7, 8, 9, 5], [9, 4], [4, 5, 6]], [(1, 3), (0, 0), (2, 2)]
    batches = [*span_batches(ids, spans, max_tokens=6, shuffle=False)]
    assert [batch.input_ids.tolist() for batch in batches] == [[[9, 4, 0], [4, 5, 6]], [[7, 8, 9, 5]]]
    assert [batch.labels.tolist() for batch in batches] == [[[0, 0], [2, 2]], [[1, 3]]]


@pytest.mark.parametrize("span", [(2, 1), (-1, 0), (1, 3)])
def test_a_span_that_is_none_of_its_sequence_is_refused(span):
    with pytest.raises(ValueError, match=rf"example 2 has the span {re.escape(str(span))}; expected one within its 3"):
        span_batches([[5], [5, 6, 7]], [(0, 0), span], max_tokens=9)


def test_seq2seq_batches_pad_each_side_by_itself():
    batches = [*seq2seq_batches([[7, 8, 9], [9]], [[2, 3], [2, 5, 6, 3]], max_tokens=8, shuffle=False)]
    assert [batch.source_ids.tolist() for batch in batches] == [[[7, 8, 9], [9, 0, 0]]]
    assert [batch.target_ids.tolist() for batch in batches] == [[[2, 3, 0, 0], [2, 5, 6, 3]]]


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=60), st.integers(0, 60))
def test_neither_side_of_a_seq2seq_batch_is_over_the_budget(lengths, spare):
    budget = max(map(max, lengths)) + spare
    sources, targets = ([[5] * length for length in side] for side in zip(*lengths, strict=True))
    batches = [*seq2seq_batches(sources, targets, max_tokens=budget)]
    assert all(max(batch.source_ids.numel(), batch.target_ids.numel()) <= budget for batch in batches)
    seen = [row for batch in batches for row in zip(*((ids != 0).sum(1).tolist() for ids in batch), strict=True)]
    assert sorted(seen) == sorted(lengths)


@pytest.mark.parametrize("make", [span_batches, seq2seq_batches])
def test_pairs_and_spans_come_one_for_each_sequence(make):
    with pytest.raises(ValueError, match=r"got 1 (?:spans|targets) for 2 sequences; give one for each"):
        make([[5], [6]], [(0, 0)], max_tokens=9)


@pytest.mark.parametrize("make", [span_batches, seq2seq_batches])
def test_pairs_and_spans_are_shuffled_by_epoch_and_seed(make):
    sequences = [[number] * (1 + number % 3) for number in range(1, 40)]

    def order(seed, epoch):
        loader = make(sequences, [(0, 0)] * 39, max_tokens=12, seed=seed)
        loader.batch_sampler.set_epoch(epoch)
        return [batch[0][:, 0].tolist() for batch in loader]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1) != order(1, 1)
