import itertools
import random
import re
import string
from collections import Counter, defaultdict

import pytest
import torch

from companion import toy
from companion.text import WordTokenizer
from companion.toy import sentiment

GOOD = {"good", "great", "brilliant", "moving", "clever", "funny", "fresh", "convincing"}
BAD = {"bad", "terrible", "dull", "clumsy", "boring", "flat", "tired", "tedious"}
DENIED = re.compile(r"(?:\bnot|\bnobody would call the [a-z ]+|\bthan) (\w+)")
SET_ASIDE = re.compile(r"(?:i expected a|may be|some call it) (\w+)")


@pytest.fixture(scope="module")
def sample():
    return toy.reviews(7_000, seed=0)


def judge(text: str) -> set[int]:
    """Read a review without the grammar: what is denied counts the other way round, what is set aside not at all."""
    denied, set_aside = Counter(DENIED.findall(text)), Counter(SET_ASIDE.findall(text))
    verdicts = set()
    for word in re.findall(r"\w+", text):
        if word in GOOD | BAD and not set_aside[word]:
            verdicts.add(int((word in GOOD) != bool(denied[word])))
    return verdicts


def test_every_label_follows_from_reading_the_review(sample):
    assert all(judge(text) == {label} for text, label in sample)


@pytest.mark.parametrize("phrase", ["not", "nobody would call", "at all", "expected", "may be", "some call", "than"])
def test_negation_and_contrast_occur_in_reviews_of_both_labels(sample, phrase):
    counts = Counter(label for text, label in sample if phrase in text)
    assert min(counts[0], counts[1]) > 100


def contrasted(reviews):
    """Return the share of reviews that hold a good word and a bad one."""
    words = [set(text.split()) for text, _ in reviews]
    return sum(bool(GOOD & one) and bool(BAD & one) for one in words) / len(words)


@pytest.mark.parametrize(("size", "most"), [(1_000, 0.55), (7_000, 0.6)])
def test_at_least_half_of_the_verdicts_weigh_a_good_word_against_a_bad_one(size, most):
    assert 0.5 - 2 * 0.5 / size**0.5 < contrasted(toy.reviews(size, seed=0)) < most


def test_every_part_of_a_sample_is_like_every_other():
    sample = toy.reviews(30_000, seed=2)  # plain verdicts run out on the way: without mixing, from 0.55 to 0.59
    shares = [contrasted(sample[start : start + 10_000]) for start in range(0, 30_000, 10_000)]
    # The difference of two shares of 10,000 draws each has the standard deviation 0.5 * (2 / 10,000) ** 0.5.
    assert max(shares) - min(shares) < 4 * 0.5 * (2 / 10_000) ** 0.5


def fillings(pattern: str, label: int) -> list[str]:
    """Return what a pattern of the grammar can become, every filling of its slots."""
    slots = sorted({slot for _, slot, _, _ in string.Formatter().parse(pattern) if slot})
    words = (sentiment._BAD, sentiment._GOOD)[label], (sentiment._GOOD, sentiment._BAD)[label]
    options = {**sentiment._FILL, "word": words[0], "opposite": words[1]}
    combinations = itertools.product(*(options[slot] for slot in slots))
    return [pattern.format(**dict(zip(slots, filling, strict=True))) for filling in combinations]


def bags(texts: list[str]) -> Counter[tuple[str, ...]]:
    return Counter(tuple(sorted(text.split())) for text in texts)


@pytest.mark.parametrize("pattern", sentiment._CONTRAST)
def test_the_bags_of_words_of_a_contrast_are_the_same_for_both_labels(pattern):
    negative, positive = fillings(pattern, 0), fillings(pattern, 1)
    assert set(negative).isdisjoint(positive)
    assert bags(negative) == bags(positive)


def test_the_bags_of_words_of_plain_verdicts_tell_the_label():
    negative, positive = ({bag for p in sentiment._PLAIN for bag in bags(fillings(p, label))} for label in (0, 1))
    assert negative.isdisjoint(positive)


def test_the_bound_is_what_plain_verdicts_and_guessing_make():
    assert toy.BAG_OF_WORDS_BOUND == 0.5 * 1.0 + 0.5 * 0.5


@pytest.mark.parametrize(("crossed", "least"), [(False, 0.45), (True, 0.7)], ids=["counts", "polarity x counts"])
def test_a_classifier_of_word_counts_stays_below_the_bound(sample, crossed, least):
    tokenize = WordTokenizer()
    counted = [Counter(tokenize(text)) for text, _ in sample]
    words = sorted(set().union(*counted))
    inputs = torch.tensor([[1.0, *(float(count[word]) for word in words)] for count in counted])
    if crossed:
        polarity = torch.tensor([sum(c[w] for w in GOOD) - sum(c[w] for w in BAD) for c in counted])
        inputs = torch.cat([inputs, inputs * polarity.unsqueeze(1)], dim=1)
    signs = torch.tensor([2.0 * label - 1 for _, label in sample])
    weights = torch.linalg.lstsq(inputs[:5_000].double(), signs[:5_000, None].double(), driver="gelsd").solution
    accuracy = ((inputs[5_000:].double() @ weights).squeeze() * signs[5_000:] > 0).double().mean()
    # Of 2,000 reviews: the standard deviation of the accuracy is at most 0.5 / 2000 ** 0.5; four of them are 0.045.
    assert least < accuracy < toy.BAG_OF_WORDS_BOUND + 0.045


def test_the_best_of_all_classifiers_of_bags_reaches_the_bound_and_no_more():
    labels_of_bag = defaultdict(Counter)
    for pattern, label in itertools.product(sentiment._PLAIN + sentiment._CONTRAST, (0, 1)):
        for bag, count in bags(fillings(pattern, label)).items():
            labels_of_bag[bag][label] += count
    by_pattern = {}
    for pattern in sentiment._PLAIN + sentiment._CONTRAST:
        texts = [(text, label) for label in (0, 1) for text in fillings(pattern, label)]
        best = (
            max(labels_of_bag[bag], key=labels_of_bag[bag].get) for bag in (tuple(sorted(t.split())) for t, _ in texts)
        )
        by_pattern[pattern] = sum(guess == label for guess, (_, label) in zip(best, texts, strict=True)) / len(texts)
    plain = sum(by_pattern[pattern] for pattern in sentiment._PLAIN) / len(sentiment._PLAIN)
    contrast = sum(by_pattern[pattern] for pattern in sentiment._CONTRAST) / len(sentiment._CONTRAST)
    assert (plain, contrast) == (1.0, 0.5)
    assert (plain + contrast) / 2 == toy.BAG_OF_WORDS_BOUND


@pytest.mark.parametrize("size", [0, 1, 2, 7, 500])
def test_as_many_as_asked_for_all_different_and_balanced(size):
    reviews = toy.reviews(size, seed=3)
    assert len(reviews) == len({text for text, _ in reviews}) == size
    counts = Counter(label for _, label in reviews)
    assert (counts[0], counts[1]) == (size - size // 2, size // 2)


def test_a_large_sample_has_no_text_twice():
    reviews = toy.reviews(30_000, seed=1)
    assert len({text for text, _ in reviews}) == 30_000


def test_the_seed_decides(sample):
    assert toy.reviews(7_000, seed=0) == sample
    assert toy.reviews(50, seed=1) != toy.reviews(50, seed=0)


@pytest.mark.unhooked  # beartype draws random numbers of its own
def test_the_caller_s_random_numbers_are_left_alone():
    random.seed(5)
    state, torch_state = random.getstate(), torch.get_rng_state()
    toy.reviews(100, seed=2)
    assert random.getstate() == state
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_labels_are_in_random_order(sample):
    changes = sum(a.label != b.label for a, b in itertools.pairwise(sample))
    # Independent flips change label in half of the places, with a standard deviation of 42.
    assert abs(changes - 3_500) < 4 * 42


@pytest.mark.parametrize("size", [-1, 100_001])
def test_a_size_out_of_range_is_refused(size):
    with pytest.raises(ValueError, match=f"n={size}; choose 0 to 100,000"):
        toy.reviews(size)


def test_a_reversed_token_is_the_one_in_its_place_from_the_end():
    sequences = toy.reverse(200, seed=3, length=6, num_symbols=9)
    for ids, labels in sequences:
        assert [labels[i] for i in range(6)] == [ids[5 - i] for i in range(6)]
        assert len(set(ids)) == 6
    assert {token for ids, _ in sequences for token in ids} == set(range(1, 10))


@pytest.mark.parametrize("length", [5, 10])
def test_an_odd_sequence_and_one_longer_than_there_are_symbols_are_refused(length):
    with pytest.raises(ValueError, match=f"length={length}; choose an even one of at most num_symbols=9"):
        toy.reverse(1, length=length, num_symbols=9)


def test_a_count_is_the_number_of_equal_tokens():
    sequences = toy.histogram(200, seed=3, length=6, num_symbols=4)
    for ids, labels in sequences:
        assert labels == [sum(other == token for other in ids) for token in ids]
        assert len(ids) == 6
    assert {token for ids, _ in sequences for token in ids} == {1, 2, 3, 4}


def facts(ids, num_keys, num_values):
    """Read a sequence: the place, key and value of each fact, and the key asked for."""
    first = 2 + num_keys
    stated = [(place, *divmod(token - first, num_values)) for place, token in enumerate(ids) if token >= first]
    return stated, ids[-1] - 2


@pytest.mark.parametrize("distance", [None, 1, 4, 11])
def test_what_is_recalled_is_the_value_of_the_fact_with_the_key_asked_for(distance):
    sequences = toy.recall(400, seed=3, length=12, num_keys=5, num_values=3, num_facts=4, distance=distance)
    seen, asked, answers, distances = Counter(), Counter(), Counter(), Counter()
    for ids, labels in sequences:
        stated, question = facts(ids, num_keys=5, num_values=3)
        assert len(ids) == len(labels) == 12
        assert len({key for _, key, _ in stated}) == len(stated) == 4
        assert sorted(ids[:-1])[: 12 - 1 - 4] == [1] * 7
        ((place, value),) = [(place, value) for place, key, value in stated if key == question]
        assert labels == [0] * 11 + [1 + value]
        distances[11 - place] += 1
        asked[question] += 1
        answers[value] += 1
        seen.update((key, value) for _, key, value in stated)
    assert set(distances) == (set(range(1, 12)) if distance is None else {distance})
    assert (set(asked), set(answers), len(seen)) == (set(range(5)), set(range(3)), 15)


def test_the_facts_that_are_not_asked_for_say_nothing_of_the_answer():
    sequences = toy.recall(6_000, seed=2, length=5, num_keys=3, num_values=2, num_facts=2)
    same = 0
    for ids, labels in sequences:
        stated, question = facts(ids, num_keys=3, num_values=2)
        ((_, _, value),) = [fact for fact in stated if fact[1] != question]
        same += labels[-1] == 1 + value
    assert abs(same / 6_000 - 0.5) < 4 * 0.5 / 6_000**0.5  # four deviations of a fair coin's share


def test_places_and_distances_are_drawn_evenly():
    sequences = toy.recall(8_000, seed=4, length=9, num_keys=4, num_values=2, num_facts=2)
    places, asked_at = Counter(), Counter()
    for ids, _ in sequences:
        stated, question = facts(ids, num_keys=4, num_values=2)
        places.update(place for place, _, _ in stated)
        asked_at.update(place for place, key, _ in stated if key == question)
    # Each of 8 places comes with probability 1/8, in 8,000 and 16,000 draws; five deviations.
    assert all(abs(asked_at[place] - 1_000) < 5 * (1_000 * 7 / 8) ** 0.5 for place in range(8))
    assert all(abs(places[place] - 2_000) < 5 * (2_000 * 7 / 8) ** 0.5 for place in range(8))


@pytest.mark.parametrize("setting", [{"num_facts": 0}, {"num_facts": 5}, {"num_facts": 4, "length": 4}])
def test_too_few_or_too_many_facts_are_refused(setting):
    with pytest.raises(ValueError, match=rf"^num_facts={setting['num_facts']}; choose 1 to num_keys=4, and fewer than"):
        toy.recall(1, **{"length": 10, "num_keys": 4} | setting)


@pytest.mark.parametrize("distance", [0, -1, 10])
def test_a_distance_out_of_the_sequence_is_refused(distance):
    with pytest.raises(ValueError, match=f"^distance={distance}; choose 1 to 9, below length=10"):
        toy.recall(1, length=10, distance=distance)


@pytest.mark.parametrize("make", [toy.reverse, toy.histogram, toy.recall])
def test_a_seed_gives_the_same_sequences_and_another_one_others(make):
    assert make(50, seed=1) == make(50, seed=1)
    assert make(50, seed=1) != make(50, seed=2)
    assert make(60, seed=1)[:50] == make(50, seed=1)
