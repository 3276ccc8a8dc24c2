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


NOUN_PHRASE = r"(?:the|an?|two)(?: (?:old|young|small|beautiful|strange|famous))? \w+"
VERB = r"(?:looked for|\w+)"
SENTENCE = re.compile(
    rf"(?:(\w+) )??({NOUN_PHRASE})(?: who ({VERB}) ({NOUN_PHRASE}))? ({VERB}) ({NOUN_PHRASE})(?: with ({NOUN_PHRASE}))?"
)
PARTICIPLES = dict(
    pair.split("=")
    for pair in [
        "saw=gesehen",
        "bought=gekauft",
        "found=gefunden",
        "painted=gemalt",
        "lost=verloren",
        "brought=gebracht",
        "forgot=vergessen",
    ]
) | {"looked for": "gesucht"}
ADVERBS = {"yesterday": "gestern", "today": "heute", "often": "oft", "suddenly": "plötzlich"}
STEMS = {
    "old": "alt",
    "young": "jung",
    "small": "klein",
    "beautiful": "schön",
    "strange": "seltsam",
    "famous": "berühmt",
}
SINGULARS = {
    "man": "m Mann",
    "teacher": "m Lehrer",
    "dog": "m Hund",
    "letter": "m Brief",
    "woman": "f Frau",
    "sister": "f Schwester",
    "cat": "f Katze",
    "flower": "f Blume",
    "child": "n Kind",
    "girl": "n Mädchen",
    "house": "n Haus",
    "book": "n Buch",
}
PLURALS = {  # nominative, dative
    "men": "Männer Männern",
    "teachers": "Lehrer Lehrern",
    "dogs": "Hunde Hunden",
    "letters": "Briefe Briefen",
    "women": "Frauen Frauen",
    "sisters": "Schwestern Schwestern",
    "cats": "Katzen Katzen",
    "flowers": "Blumen Blumen",
    "children": "Kinder Kindern",
    "girls": "Mädchen Mädchen",
    "houses": "Häuser Häusern",
    "books": "Bücher Büchern",
}
# "the old man" and "an old man" in the nominative, accusative and dative, as a grammar book lists them.
DECLENSION = {
    "the m": "der alte, den alten, dem alten",
    "the f": "die alte, die alte, der alten",
    "the n": "das alte, das alte, dem alten",
    "the p": "die alten, die alten, den alten",
    "a m": "ein alter, einen alten, einem alten",
    "a f": "eine alte, eine alte, einer alten",
    "a n": "ein altes, ein altes, einem alten",
    "two p": "zwei alte, zwei alte, zwei alten",
}


def decline(phrase: str, case: int) -> tuple[str, str]:
    """Return a phrase in German, and its gender, or p."""
    article, *adjectives, noun = phrase.split()
    if noun in PLURALS:
        form, word = "p", PLURALS[noun].split()[case == 2]
    else:
        form, word = SINGULARS[noun].split()
    german, ending = DECLENSION[f"{'a' if article == 'an' else article} {form}"].split(", ")[case].split(" alt")
    return " ".join([german, *(STEMS[adjective] + ending for adjective in adjectives), word]), form


def translate(source: str) -> str:
    """Translate without the grammar that wrote the sentence: by a pattern, and by tables written out."""
    adverb, subject, earlier, what, verb, thing, company = SENTENCE.fullmatch(source).groups()
    german, form = decline(subject, 0)
    auxiliary = "haben" if form == "p" else "hat"
    if earlier:
        who = {"m": "der", "f": "die", "n": "das", "p": "die"}[form]
        german += f" , {who} {decline(what, 1)[0]} {PARTICIPLES[earlier]} {auxiliary} ,"
    start = f"{ADVERBS[adverb]} {auxiliary} {german}" if adverb else f"{german} {auxiliary}"
    beside = f" mit {decline(company, 2)[0]}" if company else ""
    return f"{start}{beside} {decline(thing, 1)[0]} {PARTICIPLES[verb]}"


def test_every_translation_is_that_of_tables_and_a_pattern():
    pairs = toy.translation(4_000, seed=5)
    assert [pair.target for pair in pairs] == [translate(pair.source) for pair in pairs]


def test_an_article_before_a_vowel_is_an():
    sources = " ".join(pair.source for pair in toy.translation(2_000))
    assert re.search(r"\ban [^aeiou]|\ba [aeiou]", sources) is None


@pytest.mark.parametrize(
    "part", [r" who ", r" with ", r"^(?:yesterday|today|often|suddenly) ", r"\btwo\b", r"looked for"]
)
def test_every_construction_is_common(part):
    pairs = toy.translation(2_000)
    assert 0.1 < sum(bool(re.search(part, pair.source)) for pair in pairs) / len(pairs) < 0.7


TELLINGS = [
    (r"a fire broke out in the (\w+) of (NAME) on (\w+) PART", "fire damages {} of {} on {}"),
    (
        r"on (?P<day>\w+) PART flames destroyed the roof of the (\w+) that belongs to (NAME)",
        "fire damages {} of {} on {day}",
    ),
    (r"the (\w+) of (NAME) burned on (\w+) PART", "fire damages {} of {} on {}"),
    (r"thieves broke into the (\w+) of (NAME) on (\w+) PART", "thieves rob {} of {} on {}"),
    (
        r"on (?P<day>\w+) PART somebody emptied the safe in the (\w+) that belongs to (NAME)",
        "thieves rob {} of {} on {day}",
    ),
    (r"the jury gave the (?P<prize>\w+) prize to (NAME) on (\w+) PART", "{} wins {prize} prize on {}"),
    (r"on (?P<day>\w+) PART (NAME) received this year 's prize for (\w+)", "{} wins {} prize on {day}"),
    (r"firemen pulled (NAME) out of the (\w+) on (\w+) PART", "{} rescued from {} on {}"),
    (r"(NAME) fell into the (\w+) on (\w+) PART and was saved", "{} rescued from {} on {}"),
    (r"a (\w+) ran into (NAME) on (\w+) PART", "{} hits {} on {}"),
    (r"on (?P<day>\w+) PART (NAME) was knocked down by a (?P<vehicle>\w+)", "{vehicle} hits {} on {day}"),
]


def summarise(report: str) -> set[str]:
    """Read a report sentence by sentence, without the grammar."""
    found = set()
    for sentence in report.removesuffix(" .").split(" . "):
        for pattern, summary in TELLINGS:
            pattern = pattern.replace("NAME", r"\w+ \w+").replace("PART", "(?:morning|afternoon|evening|night)")
            if match := re.fullmatch(pattern, sentence):
                named = match.groupdict()
                found.add(summary.format(*(part for part in match.groups() if part not in named.values()), **named))
    return found


def test_every_report_tells_one_event_which_its_summary_names():
    pairs = toy.summaries(3_000, seed=5)
    assert all(summarise(pair.source) == {pair.target} for pair in pairs)


def test_every_kind_of_event_is_told_in_every_way():
    pairs = toy.summaries(3_000, seed=5)
    kinds = Counter(re.sub(r"\w+ \w+(?= wins| rescued| on )", "", pair.target).split()[0] for pair in pairs)
    assert {"fire", "thieves", "wins", "rescued"} <= {*kinds}
    earlier = sum(" last year " in f" {pair.source}" for pair in pairs) / len(pairs)
    assert abs(earlier - 0.5) < 4 * 0.5 / len(pairs) ** 0.5


def test_an_event_stands_anywhere_in_its_report():
    places = Counter()
    for pair in toy.summaries(3_000, seed=5):
        sentences = pair.source.removesuffix(" .").split(" . ")
        places.update(place for place, sentence in enumerate(sentences) if summarise(sentence + " ."))
    assert all(800 < places[place] < 1_200 for place in range(3))


FACT = re.compile(
    r"(?P<who>\w+) (?P<verb>\w+) (?P<what>an? \w+ (?P<thing>\w+))"
    r"(?: at (?P<where>the \w+(?: (?!on )\w+)?))?(?: on (?P<when>\w+))?"
)
BASES = {"buy": "bought", "sell": "sold", "paint": "painted", "hide": "hid"}


def answers(passage: str, question: str) -> list[str | None]:
    """Look the answers up in the facts that a passage tells."""
    facts = [FACT.fullmatch(sentence).groupdict() for sentence in passage.removesuffix(" .").split(" . ")]
    if match := re.fullmatch(r"who (\w+) the (\w+) \?", question):
        return [fact["who"] for fact in facts if (fact["verb"], fact["thing"]) == match.groups()]
    word, who, base, thing = re.fullmatch(r"(what|where|when) did (\w+) (\w+)(?: the (\w+))? \?", question).groups()
    return [
        fact[word]
        for fact in facts
        if (fact["who"], fact["verb"]) == (who, BASES[base]) and thing in (None, fact["thing"])
    ]


def test_the_facts_of_a_passage_give_the_answer_and_no_other():
    asked = toy.questions(3_000, seed=5)
    for question in asked:
        found = answers(question.passage, question.question)
        assert found in ([[question.answer]] if question.answer else [[], [None]])


def test_a_quarter_of_the_questions_has_no_answer_for_want_of_the_fact_or_of_a_part_of_it():
    asked = toy.questions(2_000, seed=5)
    unanswerable = [question for question in asked if question.answer is None]
    assert len(unanswerable) == 500
    untold, kinds = 0, Counter()
    for passage, question, _ in unanswerable:
        kinds[question.split()[0]] += 1
        untold += answers(passage, question) == []
        if question.startswith(("where", "when")):
            assert answers(passage, question) in ([], [None])
    assert min(kinds[word] for word in ("who", "what", "where", "when")) > 80
    assert 200 < untold < 450


def test_what_is_not_told_of_is_named_nowhere():
    for passage, question, span in toy.questions(2_000, seed=5):
        if span is None and answers(passage, question) == []:
            words = question.split()
            named = {words[3]} if words[0] == "who" else {words[2], *words[5:6]}
            assert not named & {*passage.split()}


def test_the_sentences_beside_the_answer_are_like_it():
    for passage, *_ in toy.questions(500, seed=5):
        facts = [FACT.fullmatch(sentence).groupdict() for sentence in passage.removesuffix(" .").split(" . ")]
        assert len({fact["who"] for fact in facts}) == len({fact["thing"] for fact in facts}) == len(facts) > 1


@pytest.mark.parametrize("corpus", [toy.translation, toy.summaries, toy.questions])
def test_a_corpus_has_no_text_twice_and_the_same_seed_gives_the_same(corpus):
    texts = corpus(3_000, seed=7)
    assert texts == corpus(3_000, seed=7) != corpus(3_000, seed=8)
    assert len({text[:2] if corpus is toy.questions else text.source for text in texts}) == 3_000
    assert corpus(0) == []


@pytest.mark.parametrize("corpus", [toy.translation, toy.summaries, toy.questions])
@pytest.mark.parametrize("n", [-1, 100_001])
def test_a_corpus_of_impossible_size_is_refused(corpus, n):
    with pytest.raises(ValueError, match=rf"n={n}; choose 0 to 100,000"):
        corpus(n)
