"""Masked words, pairs of segments and their batches, each counted or written anew; the loss against Hugging Face's."""

import copy
import itertools
import math
import random
import re
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from companion import toy
from companion.albert import AlbertConfig, AlbertForPreTraining, save_albert
from companion.albert.checkpoints import hugging_face_tensors
from companion.pretraining import (
    IGNORED,
    PreTrainingBatch,
    PreTrainingTask,
    mask_tokens,
    next_sentence_pairs,
    pretraining_batches,
    pretraining_loss,
    sentence_order_pairs,
)
from companion.text import SentencePieceTokenizer
from companion.training import TrainingConfig, evaluate, train

pytestmark = pytest.mark.usefixtures("one_thread")
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

PAD, UNKNOWN, CLS, SEP, MASK = range(5)
HIDDEN = {PAD, UNKNOWN, CLS, SEP, MASK}
TASKS = ("sop", "nsp", "none")
every_task = pytest.mark.parametrize("sentence_task", TASKS)
property_test = settings(max_examples=60)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_share(count: int, total: int, share: float) -> None:
    """A binomial count is within five deviations of its mean, as all but one in a million are."""
    assert abs(count - total * share) <= 5 * math.sqrt(total * share * (1 - share)), (count / total, share)


def same(one, other) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


def whole_words(row: list[int], continues: list[bool]) -> list[list[int]]:
    """Return the places of each word's pieces: a piece goes on with the word right before it, if there is one."""
    words: list[list[int]] = []
    for place, index in enumerate(row):
        if index in HIDDEN:
            continue
        if continues[index] and place > 0 and row[place - 1] not in HIDDEN:
            words[-1].append(place)
        else:
            words.append([place])
    return words


def n_gram_shares(max_n: int) -> list[float]:
    """Return p(0), p(1), ..., p(max_n), proportional to 1/n."""
    total = sum(1 / n for n in range(1, max_n + 1))
    return [0.0, *(1 / n / total for n in range(1, max_n + 1))]


def chance_to_begin(max_n: int, probability: float) -> float:
    """Return the chance of an n-gram to begin right where one, or a free word, ends, by which gaps are long enough.

    The mean gap must be to the mean n-gram as the words that are not chosen to those that are.
    """
    mean_n = sum(n * share for n, share in enumerate(n_gram_shares(max_n)))
    return 1 / (1 + mean_n * (1 - probability) / probability)


@pytest.mark.parametrize("max_n", [1, 2, 3, 5])
def test_every_word_of_a_short_text_is_chosen_with_the_same_probability(max_n):
    """The first word of all and the last one too: each call is one independent draw for each place."""
    calls, probability, generator = 1_200, 0.4, seeded(max_n)
    ids = torch.tensor([[CLS, 5, 6, 7, SEP, 8, 9, SEP, PAD]])
    drawn = [
        mask_tokens(ids, vocab_size=10, probability=probability, max_n=max_n, generator=generator).labels != IGNORED
        for _ in range(calls)
    ]
    chosen = torch.cat(drawn)
    for index, count in zip(ids[0].tolist(), chosen.sum(dim=0).tolist(), strict=True):
        assert_share(count, calls, 0.0 if index in HIDDEN else probability)
    for one, following in itertools.pairwise(chosen[:, ids[0] > MASK].T):
        begun = int((~one & following).sum())
        assert_share(begun, calls, (1 - probability) * chance_to_begin(max_n, probability))


@pytest.mark.parametrize("probability", [0.01, 0.15, 0.9])
def test_words_are_chosen_alike_in_every_row_and_column(probability):
    """With single words all places are independent."""
    ids = torch.randint(5, 99, (3_000, 11))
    chosen = mask_tokens(ids, vocab_size=99, probability=probability, max_n=1).labels != IGNORED
    for count in chosen.sum(dim=0).tolist():
        assert_share(count, 3_000, probability)
    for rows in chosen.split(500):
        assert_share(int(rows.sum()), rows.numel(), probability)


@pytest.mark.parametrize("max_n", [1, 2, 3, 5])
@pytest.mark.parametrize(("probability", "words"), [(0.01, 500_000), (0.15, 60_000), (0.5, 30_000)])
def test_n_grams_are_as_long_as_the_paper_says(max_n, probability, words):
    """Chosen words in a row are one n-gram, or several that meet.

    That follows from p(n): a gap is as likely to be over at each of its words, and the gaps are such that
    ``probability`` of all words are chosen.
    """
    draw = random.Random(max_n)
    sizes = draw.choices([1, 2, 3], k=words) if words < 100_000 else [1] * words  # in pieces
    row = [piece for size in sizes for piece in (5, *[6] * (size - 1))]
    continues = torch.arange(9) == 6
    labels = mask_tokens(
        torch.tensor([row]),
        vocab_size=9,
        continues=continues,
        probability=probability,
        max_n=max_n,
        generator=seeded(0),
    ).labels[0]
    chosen = (labels[torch.tensor(row) == 5] != IGNORED).tolist()
    runs = [(value, len(list(run))) for value, run in itertools.groupby(chosen)][1:-1]
    lengths, gaps = (Counter(length for value, length in runs if value is wanted) for wanted in (True, False))

    n_grams = n_gram_shares(max_n)
    meet = chance_to_begin(max_n, probability)
    runs_of = [0.0]  # the chance that a run is so long: one n-gram, or one and then another run
    for length in range(1, 3 * max_n + 1):
        before = sum(n_grams[n] * runs_of[length - n] for n in range(1, min(length, max_n) + 1))
        runs_of.append((1 - meet) * (n_grams[length] if length <= max_n else 0.0) + meet * before)
        assert_share(lengths[length], lengths.total(), runs_of[length])
    for length in range(1, 8):
        assert_share(gaps[length], gaps.total(), meet * (1 - meet) ** (length - 1))
    # As many words as the probability says: a run in n-grams of at most max_n words varies that much more.
    deviation = math.sqrt(words * probability * (1 - probability) * max_n)
    assert abs(sum(chosen) - words * probability) < 5 * deviation


@st.composite
def masked_rows(draw):
    """Draw rows of ids, special ones among them, and which ids continue a word."""
    length = draw(st.integers(1, 12))
    rows = draw(st.lists(st.lists(st.integers(0, 19), min_size=length, max_size=length), min_size=1, max_size=8))
    return rows, draw(st.lists(st.booleans(), min_size=20, max_size=20))


@property_test
@given(masked_rows(), st.sampled_from([0.15, 0.5, 0.9]), st.integers(1, 4), st.integers(0, 99))
def test_whole_words_are_hidden_and_nothing_else_changes(rows_and_continues, probability, max_n, seed):
    rows, continues = rows_and_continues
    ids = torch.tensor(rows)
    given = {"vocab_size": 20, "continues": torch.tensor(continues), "probability": probability, "max_n": max_n}
    random_numbers = torch.get_rng_state()
    found = mask_tokens(ids, generator=seeded(seed), **given)
    again = mask_tokens(ids, generator=seeded(seed), **given)
    assert same(found, again)
    assert torch.equal(torch.get_rng_state(), random_numbers)
    assert ids.tolist() == rows
    for row, seen, labels in zip(rows, found.input_ids.tolist(), found.labels.tolist(), strict=True):
        chosen = [label != IGNORED for label in labels]
        for index, shown, label in zip(row, seen, labels, strict=True):
            assert label in (IGNORED, index)
            if label == IGNORED:
                assert shown == index
            else:
                assert index not in HIDDEN
                assert shown == MASK or shown not in HIDDEN
        for word in whole_words(row, continues):
            assert len({chosen[place] for place in word}) == 1


def test_without_pieces_that_continue_every_token_is_a_word():
    ids = torch.full((1, 20_000), 7)
    found = mask_tokens(ids, vocab_size=9, probability=0.5, max_n=1, generator=seeded(0)).labels != IGNORED
    none = torch.zeros(9, dtype=torch.bool)
    assert torch.equal(
        found,
        mask_tokens(ids, vocab_size=9, continues=none, probability=0.5, max_n=1, generator=seeded(0)).labels != IGNORED,
    )
    assert_share(int((found[0, ::2] & found[0, 1::2]).sum()), 10_000, 0.25)


@pytest.mark.parametrize("before", [PAD, UNKNOWN, CLS, SEP, MASK, "the row before"])
def test_a_piece_that_continues_a_word_begins_one_where_none_is_before_it(before):
    """It is chosen apart from the word that stands farther ahead, and its own next piece with it."""
    draws = 4_000
    row = [5, 6, 6] if before == "the row before" else [5, before, 6, 6]
    ids = torch.tensor([[row]]).repeat(draws, 1, 1)
    if before == "the row before":  # with padding in front, a row ends with the word 5, the next begins with 6
        ids = torch.tensor([[PAD, 5], [6, 6]]).repeat(draws, 1, 1)
    continues = torch.arange(9) == 6
    labels = mask_tokens(
        ids.flatten(0, 1), vocab_size=9, continues=continues, probability=0.5, max_n=1, generator=seeded(1)
    ).labels.view(draws, -1)
    first = labels[:, ids[0].flatten() == 5].squeeze(1) != IGNORED
    second, third = (labels[:, ids[0].flatten() == 6] != IGNORED).T
    assert torch.equal(second, third)
    for one, other in itertools.product((True, False), repeat=2):
        assert_share(int(((first == one) & (second == other)).sum()), draws, 0.25)


def test_of_the_chosen_most_become_the_mask_some_a_random_token_and_some_stay():
    """Special ids and mask are wherever they are said to be; each ordinary token is as likely a random one."""
    special, mask, vocab_size = (0, 3, 5, 11), 7, 12
    ordinary = [index for index in range(vocab_size) if index not in (*special, mask)]
    ids = torch.randint(0, vocab_size, (200, 1_000))
    given = {"vocab_size": vocab_size, "mask_id": mask, "special_ids": special}
    seen, labels = mask_tokens(ids, probability=0.5, generator=seeded(2), **given)
    chosen = labels != IGNORED
    assert torch.equal(labels[chosen], ids[chosen])
    assert torch.equal(seen[~chosen], ids[~chosen])
    assert chosen[torch.isin(ids, torch.tensor([*special, mask]))].sum() == 0
    for index in ordinary:
        shown = Counter(seen[labels == index].tolist())
        assert set(shown) <= {mask, *ordinary}
        assert_share(shown[mask], shown.total(), 0.8)
        for other in ordinary:
            assert_share(shown[other], shown.total(), 0.1 * (other == index) + 0.1 / len(ordinary))


def test_what_becomes_of_a_token_does_not_hang_on_that_of_its_neighbours():
    ids = torch.full((1, 40_000), 7)
    seen, _ = mask_tokens(ids, vocab_size=1_000, probability=0.99, max_n=1, generator=seeded(3))
    masked = seen[0] == MASK
    assert_share(int((masked[::2] & masked[1::2]).sum()), 20_000, (0.99 * 0.8) ** 2)


def test_the_generator_alone_decides_and_without_one_the_default_generator_does():
    ids = torch.randint(5, 50, (8, 40))

    def masked(seed, generator):
        torch.manual_seed(seed)
        return mask_tokens(ids, vocab_size=50, generator=generator)

    assert same(masked(0, seeded(5)), masked(1, seeded(5)))
    assert not torch.equal(masked(0, seeded(5)).labels, masked(0, seeded(6)).labels)
    assert same(masked(3, None), masked(3, None))
    assert not torch.equal(masked(3, None).labels, masked(4, None).labels)


@pytest.mark.parametrize("ids", [[[PAD, UNKNOWN], [CLS, MASK]], [[SEP]]])
def test_where_no_word_stands_nothing_is_chosen(ids):
    seen, labels = mask_tokens(torch.tensor(ids), vocab_size=9, probability=0.9)
    assert seen.tolist() == ids
    assert set(labels.flatten().tolist()) == {IGNORED}


@pytest.mark.unhooked
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(({"probability": p}, f"probability={p}; choose 0 < probability < 1") for p in (0.0, 1.0, -0.1, 2, math.nan)),
        *(({"max_n": n}, f"max_n={n}; choose 1 or more") for n in (0, -1)),
        ({"vocab_size": 5}, "vocab_size=5 has no room for any but the special tokens; choose more"),
    ],
)
def test_masking_refuses_what_is_out_of_range(changes, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        mask_tokens(torch.tensor([[5, 6]]), **{"vocab_size": 9} | changes)


@pytest.mark.unhooked
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(
            ({"mask_probability": p}, f"mask_probability={p}; choose 0 < mask_probability < 1")
            for p in (0.0, 1.0, -0.1, math.nan)
        ),
        *(({"max_n": n}, f"max_n={n}; choose 1 or more") for n in (0, -1)),
        ({"sentence_task": "next"}, f"sentence_task='next'; choose one of {TASKS}"),
    ],
)
def test_a_task_refuses_what_is_out_of_range(changes, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        PreTrainingTask(**changes)


def test_the_task_is_the_papers_where_nothing_else_is_said():
    """Sections 3.1 and 4.1: the order of two segments, n-grams of at most three words; Devlin's share of 15 %."""
    assert vars(PreTrainingTask()) == {"sentence_task": "sop", "mask_probability": 0.15, "max_n": 3}


END = 9
WITHOUT, WITH, AT_THE_END = [5, 6, 7, 8, 5, 6], [5, END, 6, 7, END, END, 8, END], [5, 6, 7, END]


@pytest.mark.parametrize(
    ("text", "places"), [(WITHOUT, range(1, 6)), (WITH, (2, 5, 6)), (AT_THE_END, range(1, 4)), ([5, 6], (1,))]
)
@pytest.mark.parametrize("draw_pairs", [sentence_order_pairs, next_sentence_pairs])
def test_a_text_is_cut_behind_a_sentence_or_anywhere_else_each_place_alike(draw_pairs, text, places):
    """With either label: half of the texts are of each. Next-sentence pairs of equal texts are like the text itself."""
    copies = 6_000
    pairs = draw_pairs([text] * copies, ends={END, 99}, generator=seeded(4))
    assert len(pairs) == copies
    if draw_pairs is sentence_order_pairs:
        pairs = [(second, first, 1) if label else (first, second, 0) for first, second, label in pairs]
        for first, second, _ in pairs:
            assert [*first, *second] == text
    cuts = Counter((label, len(first), len(second)) for first, second, label in pairs)
    assert sum(cuts.values()) == copies
    for label, place in itertools.product((0, 1), places):
        found = sum(count for (given, start, _), count in cuts.items() if (given, start) == (label, place))
        assert_share(found, copies, 0.5 / len(places))
        found = sum(count for (given, _, rest), count in cuts.items() if (given, rest) == (label, len(text) - place))
        assert_share(found, copies, 0.5 / len(places))
    assert {start for _, start, _ in cuts} == set(places)
    assert {len(text) - rest for _, _, rest in cuts} == set(places)


texts = st.lists(st.integers(1, 9), min_size=1, max_size=8).map(
    lambda sizes: [[100 * number + token for token in range(size + 1)] for number, size in enumerate(sizes)]
)


@property_test
@given(texts, st.sets(st.integers(0, 800)), st.integers(0, 99))
def test_a_label_of_1_says_that_the_second_segment_does_not_follow_the_first_one(sequences, ends, seed):
    """Text ``k`` has the tokens 100 k, 100 k + 1, and so on."""
    random_numbers = torch.get_rng_state()
    ordered = sentence_order_pairs(sequences, ends=ends, generator=seeded(seed))
    next_ones = next_sentence_pairs(sequences, ends=ends, generator=seeded(seed))
    assert ordered == sentence_order_pairs(sequences, ends=ends, generator=seeded(seed))
    assert next_ones == next_sentence_pairs(sequences, ends=ends, generator=seeded(seed))
    assert torch.equal(torch.get_rng_state(), random_numbers)
    for text, (first, second, label) in zip(sequences, ordered, strict=True):
        assert first
        assert second
        assert [*second, *first] == text if label else [*first, *second] == text
    for text, (first, second, label) in zip(sequences, next_ones, strict=True):
        donor = sequences[second[0] // 100]
        assert 0 < len(first) < len(text)
        assert first == text[: len(first)]
        assert 0 < len(second) < len(donor)
        assert second == donor[-len(second) :]
        assert (donor is not text) is (label == 1)
        assert label or [*first, *second] == text
    assert len(sequences) > 1 or next_ones[0].label == 0


def test_the_second_part_of_another_text_is_each_others_alike():
    count, calls, generator = 5, 2_000, seeded(6)
    sequences = [[10 * number + token for token in range(4)] for number in range(count)]
    donors: Counter[tuple[int, int]] = Counter()
    for _ in range(calls):
        pairs = next_sentence_pairs(sequences, generator=generator)
        donors.update((place, pair.second[0] // 10) for place, pair in enumerate(pairs))
    for place, donor in itertools.product(range(count), repeat=2):
        assert_share(donors[place, donor], calls, 0.5 if place == donor else 0.5 / (count - 1))


@pytest.mark.parametrize("draw_pairs", [sentence_order_pairs, next_sentence_pairs])
def test_pairs_depend_on_the_generator(draw_pairs):
    sequences = [[10 * number + token for token in range(9)] for number in range(20)]
    torch.manual_seed(0)
    first = draw_pairs(sequences)
    assert first != draw_pairs(sequences)
    torch.manual_seed(0)
    assert draw_pairs(sequences) == first
    assert draw_pairs(sequences, generator=seeded(0)) != draw_pairs(sequences, generator=seeded(1))
    assert draw_pairs([], generator=seeded(0)) == []


@pytest.mark.parametrize("draw_pairs", [sentence_order_pairs, next_sentence_pairs])
@pytest.mark.parametrize("short", [[], [5]])
def test_a_text_that_cannot_be_cut_in_two_is_refused(draw_pairs, short):
    with pytest.raises(ValueError, match=f"^a text has {len(short)} tokens; it takes two to be cut in two$"):
        draw_pairs([[5, 6], short])


MARKS = (" .", "!", " ?")


@pytest.fixture(scope="module")
def reviews():
    """Write reviews whose sentences end with one of three marks."""
    marks = itertools.cycle(MARKS)
    return [re.sub(r" \.", lambda _: next(marks), review.text) for review in toy.reviews(600)]


@pytest.fixture(scope="module")
def tokenizer(reviews, tmp_path_factory):
    return SentencePieceTokenizer.train(reviews, 70, tmp_path_factory.mktemp("pieces") / "spiece.model")


@pytest.fixture(scope="module")
def encoded(reviews, tokenizer):
    return [tokenizer.encode(review) for review in reviews]


def batches_in(loader, epoch: int = 0) -> list[PreTrainingBatch]:
    loader.batch_sampler.set_epoch(epoch)
    return list(loader)


def drawn_texts(count: int, ends: set[int], longest: int = 40, seed: int = 0) -> list[list[int]]:
    """Draw texts in which every fourth token, by chance, ends a sentence."""
    draw = random.Random(seed)
    tokens = [*range(5, 60), *itertools.islice(itertools.cycle(sorted(ends)), 18)]
    return [draw.choices(tokens, k=draw.randint(2, longest)) for _ in range(count)]


def segments(batch: PreTrainingBatch) -> list[tuple[list[int], list[int], int]]:
    """Take each input apart, with what stood behind the masks, and check that it is put together as it should be."""
    found = []
    shown = torch.where(batch.labels == IGNORED, batch.input_ids, batch.labels)
    for row, types, label in zip(
        shown.tolist(), batch.token_type_ids.tolist(), batch.sentence_labels.tolist(), strict=True
    ):
        row = [*itertools.dropwhile(lambda index: index == PAD, reversed(row))][::-1]
        assert set(types[len(row) :]) <= {0}
        assert row[0] == CLS
        assert row[-1] == SEP
        middle = row.index(SEP)
        first, second = row[1:middle], row[middle + 1 : -1]
        assert (middle == len(row) - 1) is (label == IGNORED)
        assert types[: len(row)] == [0] * (middle + 1) + [1] * (len(row) - middle - 1)
        assert not HIDDEN & {*first, *second}
        assert first
        found.append((first, second, label))
    return found


def window_of(first: list[int], second: list[int], label: int) -> tuple[int, ...]:
    return (*second, *first) if label == 1 else (*first, *second)


def windows_of(text: list[int], room: int, ends: set[int]) -> list[tuple[int, ...]]:
    """Pack whole sentences; cut one that has no room, alone, into as many parts as it takes, as long as one another."""
    sentences: list[list[int]] = [[]]
    for token in text:
        sentences[-1].append(token)
        if token in ends:
            sentences.append([])
    windows: list[list[int]] = [[]]
    for sentence in sentences:
        if len(windows[-1]) + len(sentence) > room:
            windows.append([])
        if len(sentence) <= room:
            windows[-1] += sentence
            continue
        count = math.ceil(len(sentence) / room)
        edges = [math.floor(len(sentence) * number / count) for number in range(count + 1)]
        windows += [*(sentence[start:end] for start, end in itertools.pairwise(edges)), []]
    return [tuple(window) for window in windows if len(window) > 1]


@pytest.fixture(scope="module")
def ends(tokenizer) -> set[int]:
    pieces = tokenizer.vocabulary.decode(range(len(tokenizer.vocabulary)))
    return {index for index, piece in enumerate(pieces) if piece[-1] in ".!?"}


@pytest.mark.parametrize(("max_length", "max_tokens"), [(16, 16), (16, 150), (9, 500), (64, 1_000)])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("sentence_task", ["sop", "none"])
def test_every_token_is_in_one_window_and_a_batch_within_its_bounds(
    tokenizer, ends, sentence_task, shuffle, max_length, max_tokens
):
    """Windows of one sentence are left out where the task takes pairs."""
    sequences = [*drawn_texts(60, ends), *drawn_texts(9, {7}), [7], [], [8, 9]]
    task = PreTrainingTask(sentence_task=sentence_task)
    bounds = {"max_length": max_length, "max_tokens": max_tokens}
    loader = pretraining_batches(sequences, tokenizer, task, shuffle=shuffle, seed=3, **bounds)
    windows: list[tuple[int, ...]] = []
    lengths = []
    for batch in batches_in(loader, epoch=2):
        assert batch.input_ids.size(1) <= max_length
        assert batch.input_ids.numel() <= max_tokens
        assert (batch.input_ids[:, -1] != PAD).any()
        windows += [window_of(*parts) for parts in segments(batch)]
        lengths.append(batch.input_ids.size(1))
    room = max_length - (2 if sentence_task == "none" else 3)
    expected = [window for text in sequences for window in windows_of(text, room, ends)]
    if sentence_task == "sop":
        everything, expected = expected, [window for window in expected if ends & {*window[:-1]}]
        assert 0 < len(expected) < len(everything)
    assert sorted(windows) == sorted(expected)
    assert shuffle or lengths == sorted(lengths)


def test_the_second_part_of_a_pair_may_be_another_windows_and_is_cut_to_fit(tokenizer, ends):
    """Text ``k`` has sentences of one token again and again, so that a token tells its window."""
    draw, end = random.Random(0), min(ends)
    others = sorted({*range(5, 60)} - ends)
    sequences = {
        index: [*([index] * draw.randint(1, 3) + [end] for _ in range(draw.randint(2, 5)))] for index in others
    }
    texts = {index: [*itertools.chain(*sentences)] for index, sentences in sequences.items()}
    task = PreTrainingTask(sentence_task="nsp")
    loader = pretraining_batches([*texts.values()], tokenizer, task, max_length=24, max_tokens=240)
    labels, whole, within = Counter(), 0, 0
    for epoch in range(40):
        for batch in batches_in(loader, epoch):
            parts = segments(batch)
            beginnings = {first[0] for first, _, _ in parts}
            assert len(beginnings) == len(parts)
            longest = max(len(texts[first[0]]) for first, _, _ in parts)
            for first, second, label in parts:
                (own,), (donor,) = {*first} - {end}, {*second} - {end}
                assert (own != donor) == label
                assert donor in beginnings
                assert first == texts[own][: len(first)]
                assert first[-1] == end
                lent = [[*itertools.chain(*sequences[donor][number:])] for number in range(1, 6)]
                if second not in lent:  # it was cut
                    room = longest - len(first)
                    sizes = [[n for n in range(1, room + 1) if rest[n - 1] == end] for rest in lent if len(rest) > room]
                    fitting = [max(ends_within, default=room) for ends_within in sizes]
                    assert len(second) in fitting
                    assert any(second == rest[: len(second)] for rest in lent)
                    whole += second[-1] == end
                    within += second[-1] != end
                assert label or [*first, *second] == texts[own]
            assert batch.input_ids.numel() <= 240
            labels.update(label for _, _, label in parts if len(parts) > 1)
    assert min(whole, within) > 10
    assert_share(labels[1], labels.total(), 0.5)


def test_a_single_window_is_followed_by_its_own_second_part(tokenizer, ends):
    task = PreTrainingTask(sentence_task="nsp")
    text = (5, min(ends), 7, 8)
    loader = pretraining_batches([text], tokenizer, task, max_length=9, max_tokens=9)
    for epoch in range(20):
        (batch,) = batches_in(loader, epoch)
        assert batch.sentence_labels.tolist() == [0]
        assert window_of(*segments(batch)[0]) == text


@pytest.mark.parametrize("sentence_task", ["sop", "nsp"])
def test_where_a_segment_ends_does_not_tell_the_label(tokenizer, encoded, ends, sentence_task):
    """Segments begin and end with sentences, whichever stands first; before, one within a sentence gave the order away.

    All texts end with a sentence, and none of their sentences is longer than a window.
    """
    pieces = tokenizer.vocabulary.decode(range(len(tokenizer.vocabulary)))
    assert all(sequence[-1] in ends for sequence in encoded)
    seen: Counter[str] = Counter()
    task = PreTrainingTask(sentence_task=sentence_task)
    for batch in pretraining_batches(encoded, tokenizer, task, max_length=64, max_tokens=2_000):
        for first, second, label in segments(batch):
            assert first[-1] in ends
            assert second[-1] in ends or (sentence_task, label) == ("nsp", 1)  # where not one sentence of it fits
            seen[pieces[first[-1]][-1]] += 1
            seen[str(label)] += 1
    assert min(seen[mark] for mark in ".!?01") > 10


@every_task
def test_whole_words_are_masked_as_often_as_the_task_says(tokenizer, encoded, sentence_task):
    continues = tokenizer.continues_word.tolist()
    task = PreTrainingTask(sentence_task=sentence_task, mask_probability=0.3, max_n=1)
    words = chosen = pieces = 0
    for batch in pretraining_batches(encoded, tokenizer, task, max_length=40, max_tokens=2_000):
        shown = torch.where(batch.labels == IGNORED, batch.input_ids, batch.labels)
        random_ones = batch.input_ids[(batch.input_ids != shown) & (batch.input_ids != MASK)]
        assert not HIDDEN & {*random_ones.tolist()}
        for row, labels in zip(shown.tolist(), batch.labels.tolist(), strict=True):
            for word in whole_words(row, continues):
                (hidden,) = {labels[place] != IGNORED for place in word}
                words, chosen, pieces = words + 1, chosen + hidden, pieces + len(word)
    assert pieces > 1.5 * words
    assert_share(chosen, words, 0.3)


@pytest.mark.parametrize(("max_n", "share"), [(1, 1.0), (2, 2 / 3), (3, 6 / 11)])
def test_n_grams_in_batches_are_at_most_as_long_as_the_task_says(tokenizer, max_n, share):
    """At this probability hardly any n-grams meet, and most of those that are single words stand alone."""
    task = PreTrainingTask(sentence_task="none", mask_probability=0.01, max_n=max_n)
    begins = [index for index in range(5, 60) if not tokenizer.continues_word[index]]
    text = random.Random(0).choices(begins, k=60_000)
    (batch,) = pretraining_batches([text], tokenizer, task, max_length=60_002, max_tokens=60_002)
    runs = Counter(len(list(run)) for value, run in itertools.groupby((batch.labels[0] != IGNORED).tolist()) if value)
    assert sum(count for length, count in runs.items() if length > max_n) < 0.03 * runs.total()
    # A single word that meets another n-gram, one in a hundred, is counted with the longer ones.
    deviation = 5 * math.sqrt(share * (1 - share) / runs.total())
    assert abs(runs[1] / runs.total() - share) < deviation + 0.02


@every_task
def test_batches_depend_on_seed_epoch_and_batch_alone(tokenizer, ends, sentence_task):
    sequences = drawn_texts(60, ends)

    def drawn(epoch, seed=0, first=None):
        given = [first or sequences[0], *sequences[1:]]
        task = PreTrainingTask(sentence_task=sentence_task, mask_probability=0.4)
        loader = pretraining_batches(given, tokenizer, task, max_length=16, max_tokens=64, shuffle=False, seed=seed)
        return batches_in(loader, epoch)

    torch.manual_seed(1)
    expected = drawn(epoch=0)
    torch.manual_seed(2)
    for again in (drawn(epoch=0), drawn(epoch=0)):
        assert len(again) == len(expected) > 10
        assert all(map(same, again, expected))
    for other in (drawn(epoch=1), drawn(epoch=0, seed=1)):
        if sentence_task != "nsp":  # whose windows come with parts of others
            for batch, again in zip(other, expected, strict=True):
                pairs = zip(segments(batch), segments(again), strict=True)
                assert all(window_of(*one) == window_of(*another) for one, another in pairs)
        assert not any(same(batch, again) for batch, again in zip(other, expected, strict=True))
    # Another text in the place of the first one changes the batches that it is in, and no other.
    other = [token if token in ends else min({5, 6, 7} - ends) for token in sequences[0]]
    changed = [same(*pair) for pair in zip(drawn(epoch=0, first=other), expected, strict=True)]
    assert 0 < changed.count(False) <= len(windows_of(other, 14, ends))


@every_task
def test_batches_of_the_same_texts_have_masks_and_cuts_of_their_own(tokenizer, ends, sentence_task):
    task = PreTrainingTask(sentence_task=sentence_task, mask_probability=0.4)
    loader = pretraining_batches(
        [[5, 6, min(ends)] * 10] * 60, tokenizer, task, max_length=33, max_tokens=330, shuffle=False
    )
    batches = batches_in(loader)
    assert len(batches) == 6
    for one, other in itertools.combinations(batches, 2):
        assert not torch.equal(one.labels, other.labels)
        if sentence_task != "none":
            assert not torch.equal(one.token_type_ids, other.token_type_ids)
            assert not torch.equal(one.sentence_labels, other.sentence_labels)


def test_training_batches_are_shuffled_anew_in_each_epoch(tokenizer, ends):
    loader = pretraining_batches(drawn_texts(60, ends), tokenizer, max_length=16, max_tokens=64, seed=5)
    first, second, again = (
        [[window_of(*parts) for parts in segments(batch)] for batch in batches_in(loader, epoch)] for epoch in (0, 1, 0)
    )
    assert first == again
    assert first != second
    assert Counter(itertools.chain(*first)) == Counter(itertools.chain(*second))


def test_the_task_is_the_papers_in_batches_too(tokenizer, encoded):
    bounds = {"max_length": 64, "max_tokens": 2_000, "shuffle": False}
    found = list(pretraining_batches(encoded[:50], tokenizer, **bounds))
    expected = list(pretraining_batches(encoded[:50], tokenizer, PreTrainingTask(), **bounds))
    assert len(found) == len(expected)
    assert all(map(same, found, expected))


@pytest.mark.unhooked
@pytest.mark.parametrize(
    ("sequences", "sentence_task", "bounds", "message"),
    [
        ([[5, 6, 7]], "sop", {"max_length": 4}, "max_length=4 has no room for three tokens beside the special ones"),
        ([[5, 6, 7]], "nsp", {"max_length": 4}, "max_length=4 has no room for three tokens beside the special ones"),
        ([[5, 6, 7]], "none", {"max_length": 3}, "max_length=3 has no room for three tokens beside the special ones"),
        ([[5, 6, 7, 8]], "sop", {}, "no window of max_length=9 holds two sentences; choose sentence_task='none'"),
        ([[5, 6, 7, 8]], "nsp", {}, "no window of max_length=9 holds two sentences; choose sentence_task='none'"),
        ([[5], []], "none", {}, "every example needs at least one token, and there must be one"),
        ([[5, 6, 7, 8]], "none", {"max_tokens": 5}, "max_tokens=5 is below the longest example, 6 tokens"),
    ],
)
def test_windows_that_fit_nothing_are_refused(tokenizer, sequences, sentence_task, bounds, message):
    task = PreTrainingTask(sentence_task=sentence_task)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        pretraining_batches(sequences, tokenizer, task, **{"max_length": 9, "max_tokens": 99, **bounds})


SMALL = {
    **{"embedding_size": 6, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"intermediate_size": 12, "max_position_embeddings": 80, "classifier_dropout_prob": 0.0},
}


def scattered(model: AlbertForPreTraining) -> AlbertForPreTraining:
    """Make every parameter count: no bias at 0, no scale at 1."""
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, mean=float(name.endswith("norm.weight")), std=0.5)
    return model


@pytest.fixture
def model(tokenizer):
    return scattered(AlbertForPreTraining(AlbertConfig(vocab_size=len(tokenizer.vocabulary), **SMALL)))


def batches_of(tokenizer, sequences, sentence_task="sop") -> list[PreTrainingBatch]:
    task = PreTrainingTask(sentence_task=sentence_task)
    return list(pretraining_batches(sequences, tokenizer, task, max_length=80, max_tokens=800))


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_same_gradients(found, expected, tolerance):
    """Compare each relative to its norm, and to a bit of all: that of the keys' bias is 0 but for rounding."""
    assert found.keys() == expected.keys()
    floor = 1e-3 * torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= tolerance * (gradient.norm() + floor), name


@pytest.mark.parametrize("sentence_task", ["sop", "nsp"])
def test_the_loss_and_its_gradient_are_those_of_transformers(tokenizer, encoded, model, sentence_task, tmp_path):
    """In float64 but for the logits, which the loss takes in float32: half a bit of them is 6e-8."""
    save_albert(model.double(), tmp_path)
    theirs = transformers.AlbertForPreTraining.from_pretrained(
        tmp_path, dtype=torch.float64, attn_implementation="eager"
    ).train()
    for batch in batches_of(tokenizer, encoded[:30], sentence_task)[:3]:
        assert (batch.input_ids == PAD).any()
        assert {*batch.sentence_labels.tolist()} == {0, 1}
        model.zero_grad()
        theirs.zero_grad()
        loss = pretraining_loss(model, batch)
        expected = theirs(
            batch.input_ids,
            attention_mask=(batch.input_ids != PAD).long(),
            token_type_ids=batch.token_type_ids,
            labels=batch.labels,
            sentence_order_label=batch.sentence_labels,
        ).loss
        assert loss.count == (batch.labels != IGNORED).sum()
        assert (loss.loss_sum / loss.count).item() == pytest.approx(expected.item(), rel=1e-6)
        (loss.loss_sum / loss.count).backward()
        expected.backward()
        twin = copy.deepcopy(model)
        for copied, parameter in zip(twin.parameters(), model.parameters(), strict=True):
            copied.data = parameter.grad
        assert_same_gradients(hugging_face_tensors(twin), gradients(theirs), 1e-5)


def full_losses(model, batch):
    """Return the two means from the logits of every position."""
    words, order = model(batch.input_ids, (batch.input_ids != PAD).long(), batch.token_type_ids)
    mlm_loss = F.cross_entropy(words.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED)
    return mlm_loss, F.cross_entropy(order, batch.sentence_labels)


@every_task
def test_the_loss_is_that_of_the_logits_of_every_position(tokenizer, encoded, model, sentence_task):
    """Sums of float32 in another order: some hundreds of terms, each rounded to 6e-8 of its size."""
    for batch in batches_of(tokenizer, encoded[:30], sentence_task)[:3]:
        model.zero_grad()
        loss = pretraining_loss(model, batch)
        loss.loss_sum.backward()
        found = gradients(model)
        mlm_loss, sentence_loss = full_losses(model, batch)
        expected = mlm_loss if sentence_task == "none" else mlm_loss + sentence_loss
        assert loss.loss_sum.item() == pytest.approx(loss.count.item() * expected.item(), rel=1e-5)
        assert loss.metrics["mlm_loss"].item() == pytest.approx(loss.count.item() * mlm_loss.item(), rel=1e-5)
        model.zero_grad()
        (expected * loss.count).backward()
        if sentence_task == "none":  # every parameter has a gradient, as several processes ask for
            for name in ("sop_classifier.weight", "sop_classifier.bias", "albert.pooler.weight", "albert.pooler.bias"):
                assert not found.pop(name).any()
        assert len(found) == len(gradients(model))
        assert_same_gradients(found, gradients(model), 1e-4)


class Fixed(nn.Module):
    """A model whose logits are given."""

    def __init__(self, words, order):
        super().__init__()
        self.words, self.order = nn.Parameter(torch.tensor(words)), nn.Parameter(torch.tensor(order))

    def forward(self, input_ids, attention_mask, token_type_ids, *, masked):
        assert torch.equal(attention_mask, input_ids != PAD)
        return self.words[masked], self.order


WORDS = [
    [[9.0, 9, 9], [0.0, 1.0, 2.0], [9, 9, 9], [3.0, 0.0, 0.0]],
    [[9.0, 9, 9], [1.0, 1.0, 0.0], [9, 9, 9], [9.0, 9, 9]],
]
ORDER = [[2.0, -1.0], [0.0, 0.5]]
IDS = [[2, 4, 5, 4], [2, 6, 3, 0]]
LABELS = [[-100, 2, -100, 1], [-100, 0, -100, -100]]


def cross_entropy(logits: list[float], label: int) -> float:
    return math.log(sum(map(math.exp, logits))) - logits[label]


@pytest.mark.parametrize("sentence_labels", [[0, 0], [1, 1], [-100, -100]])
def test_the_metrics_are_sums_with_the_number_of_masked_tokens_for_weight(sentence_labels):
    batch = PreTrainingBatch(
        torch.tensor(IDS), torch.zeros(2, 4, dtype=torch.int64), torch.tensor(LABELS), torch.tensor(sentence_labels)
    )
    loss, count, metrics = pretraining_loss(Fixed(WORDS, ORDER), batch)
    places = [(WORDS[0][1], 2), (WORDS[0][3], 1), (WORDS[1][1], 0)]
    mlm_loss = sum(cross_entropy(logits, label) for logits, label in places)
    expected = {"mlm_loss": mlm_loss, "mlm_accuracy": 2, "tokens": 7}  # of two equal logits the first one is chosen
    total = mlm_loss
    if sentence_labels[0] != IGNORED:
        sentence_loss = 3 * sum(map(cross_entropy, ORDER, sentence_labels)) / 2
        # Each label has one of the two right.
        expected |= {"sentence_loss": sentence_loss, "sentence_accuracy": 3 * 0.5}
        total += sentence_loss
    assert count == 3
    assert loss.item() == pytest.approx(total, rel=1e-6)
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(expected, rel=1e-6)
    assert not any(value.requires_grad for value in metrics.values())


def test_a_batch_without_a_masked_token_counts_for_nothing():
    labels = torch.full((2, 4), IGNORED)
    batch = PreTrainingBatch(torch.tensor(IDS), torch.zeros_like(labels), labels, torch.tensor([0, 1]))
    loss, count, metrics = pretraining_loss(Fixed(WORDS, ORDER), batch)
    assert (loss.item(), count.item()) == (0, 0)
    expected = {"mlm_loss": 0, "mlm_accuracy": 0, "tokens": 7, "sentence_loss": 0, "sentence_accuracy": 0}
    assert {name: value.item() for name, value in metrics.items()} == expected


@every_task
def test_means_over_batches_are_weighted_by_their_masked_tokens(tokenizer, encoded, model, sentence_task):
    batches = batches_of(tokenizer, encoded[:30], sentence_task)[:4]
    counts = [int((batch.labels != IGNORED).sum()) for batch in batches]
    assert len(set(counts)) > 1
    with torch.no_grad():
        means = [[mean.item() for mean in full_losses(model.eval(), batch)] for batch in batches]
    weighted = [
        sum(c * m for c, m in zip(counts, column, strict=True)) / sum(counts) for column in zip(*means, strict=True)
    ]
    found = evaluate(model, batches, loss_fn=pretraining_loss)
    expected = {"loss": weighted[0], "mlm_loss": weighted[0]}
    if sentence_task != "none":
        expected |= {"loss": sum(weighted), "sentence_loss": weighted[1]}
    # Losses of about 5, from float32 and then rounded to six places.
    assert {name: found.pop(name) for name in expected} == pytest.approx(expected, abs=1e-4)
    assert set(found) == {"mlm_accuracy"} | ({"sentence_accuracy"} if sentence_task != "none" else set())


@pytest.fixture(scope="module")
def splits(reviews, tokenizer):
    """Return the training batches and the dev batches of the grammar's reviews."""
    ids = [tokenizer.encode(review) for review in reviews]
    bounds = {"max_length": 80, "max_tokens": 2_048}
    training = pretraining_batches(ids[:500], tokenizer, **bounds)
    return SimpleNamespace(training=training, dev=pretraining_batches(ids[500:], tokenizer, shuffle=False, **bounds))


def test_a_small_model_learns_more_than_how_often_each_piece_occurs(tokenizer, splits):
    """No guess by frequency is better than the entropy of the pieces to be named, nor a coin than log 2."""
    counts = Counter(torch.cat([batch.labels[batch.labels != IGNORED] for batch in splits.dev]).tolist())
    entropy = -sum(n / counts.total() * math.log(n / counts.total()) for n in counts.values())
    config = AlbertConfig(
        vocab_size=len(tokenizer.vocabulary),
        embedding_size=32,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=80,
        initializer_range=0.1,
    )
    training = TrainingConfig(epochs=12, learning_rate=1e-2, mixed_precision="fp32")
    record = train(
        AlbertForPreTraining(config), splits.training, training, loss_fn=pretraining_loss, eval_batches=splits.dev
    )
    assert record.dev["mlm_loss"] < entropy - 0.05
    assert record.dev["sentence_loss"] < math.log(2) - 0.02
    assert record.dev == min((entry["dev"] for entry in record.history), key=lambda dev: dev["loss"])


class Interruption(Exception):
    pass


def stopping_at(call: int, training: bool):
    calls = itertools.count(1)

    def loss_fn(model, batch):
        if model.training is training and next(calls) == call:
            raise Interruption
        return pretraining_loss(model, batch)

    return loss_fn


@pytest.mark.parametrize(("training", "call", "checkpoint"), [(True, 3, "epoch-0000-batch-000002"), (False, 2, None)])
def test_a_resumed_pretraining_repeats_the_uninterrupted_one_bit_by_bit(
    tokenizer, encoded, tmp_path, training, call, checkpoint
):
    config = AlbertConfig(vocab_size=len(tokenizer.vocabulary), hidden_dropout_prob=0.2, **SMALL)
    two_epochs = TrainingConfig(epochs=2, learning_rate=1e-2, mixed_precision="fp32", seed=3)

    def pretrain(loss_fn=pretraining_loss, **options):
        torch.manual_seed(1)
        model = AlbertForPreTraining(config)
        ids = {"max_length": 80, "max_tokens": 400, "seed": 3}
        batches = pretraining_batches(encoded[:60], tokenizer, **ids)
        dev = pretraining_batches(encoded[60:80], tokenizer, shuffle=False, **ids)
        record = train(model, batches, two_epochs, loss_fn=loss_fn, eval_batches=dev, **options)
        history = [{name: value for name, value in entry.items() if name != "seconds"} for entry in record.history]
        return model.state_dict(), history

    expected, expected_history = pretrain()
    run = tmp_path / "run"
    with pytest.raises(Interruption):
        pretrain(stopping_at(call, training), output=run, checkpoint_every=2)
    left = [path.name for path in (run / "checkpoints").iterdir()]
    assert len(left) == 1
    assert checkpoint in (None, *left)
    torch.manual_seed(99)
    found, history = pretrain(output=run, checkpoint_every=2, resume=True)
    assert history == expected_history
    for weights in (found, load_file(run / "model.safetensors")):
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], expected[name]) for name in expected)
