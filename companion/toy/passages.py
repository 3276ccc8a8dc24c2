"""Short passages with questions, most of which they answer."""

import random
from typing import NamedTuple

from companion.toy.writing import write_distinct

_PEOPLE = ("anna", "bruno", "cora", "david", "elsa", "frank")
_VERBS = {"bought": "buy", "sold": "sell", "painted": "paint", "hid": "hide"}
_ADJECTIVES = ("red", "old", "small", "broken")
_THINGS = ("bicycle", "clock", "chair", "guitar", "lamp", "suitcase")
_PLACES = ("the old harbour", "the market hall", "the lake", "the railway station", "the school", "the empty house")
_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday")
_ASKED = {
    "who": "who {verb} the {thing} ?",
    "what": "what did {who} {base} ?",
    "where": "where did {who} {base} the {thing} ?",
    "when": "when did {who} {base} the {thing} ?",
}


class Question(NamedTuple):
    """A passage, a question, and where the passage answers it.

    Attributes:
        passage: Its tokens, with spaces between them.
        question: Those of the question.
        span: The first and the last token of the answer, counted from 0 in the passage; ``None`` if it has none.

    Example:
        >>> toy.Question("anna sold a clock on monday .", "what did anna sell ?", span=(2, 3)).answer
        'a clock'
    """

    passage: str
    question: str
    span: tuple[int, int] | None

    @property
    def answer(self) -> str | None:
        """The tokens of the answer; ``None`` if the passage has none."""
        if self.span is None:
            return None
        start, end = self.span
        return " ".join(self.passage.split()[start : end + 1])


def questions(n: int, seed: int = 0) -> list[Question]:
    """Write ``n`` passages of two or three sentences, each with a question: who, what, where or when.

    The sentences are alike: who did what, sometimes where, sometimes when. All but the one that answers distract. Of
    every four questions one has no answer: no sentence tells of whom or what it names, or the one that does says not
    where, or not when.

    Args:
        n: Number of questions, at most 100,000.
        seed: Same seed, same questions.

    Returns:
        ``n`` questions; no passage and question come twice.

    Raises:
        ValueError: If ``n`` is negative or past 100,000.

    Example:
        >>> asked = toy.questions(400, seed=1)
        >>> sum(question.answer is None for question in asked)
        100
    """
    rng = random.Random(seed)
    written = write_distinct(n, "questions", lambda number: _write_question(rng, answerable=number % 4 != 0))
    asked = [Question(*texts, span) for texts, span in written.items()]
    rng.shuffle(asked)
    return asked


def _write_question(rng: random.Random, *, answerable: bool) -> tuple[tuple[str, str], tuple[int, int] | None]:
    size = rng.randint(2, 3)
    people, things = rng.sample(_PEOPLE, size + 1), rng.sample(_THINGS, size + 1)
    facts = [
        {"who": who, "verb": rng.choice([*_VERBS]), "thing": thing} for who, thing in zip(people, things, strict=True)
    ]
    tokens: list[str] = []
    spans: list[dict[str, tuple[int, int]]] = []
    for fact in facts[:size]:
        spans.append({})
        for slot, text in _tell(**fact, rng=rng):
            words = text.split()
            spans[-1][slot] = len(tokens), len(tokens) + len(words) - 1
            tokens += words
    spans.append({})  # the last fact is not told
    word = rng.choice([*_ASKED])
    numbers = [number for number in range(size + 1) if (word in spans[number]) == answerable]
    if not numbers:
        return _write_question(rng, answerable=answerable)
    asked = rng.choice(numbers)
    question = _ASKED[word].format(**facts[asked], base=_VERBS[facts[asked]["verb"]])
    return (" ".join(tokens), question), spans[asked].get(word)


def _tell(who: str, verb: str, thing: str, *, rng: random.Random) -> list[tuple[str, str]]:
    """Write a sentence in pieces, each with the question that it answers, or with none."""
    adjective = rng.choice(_ADJECTIVES)
    article = "an" if adjective[0] in "aeiou" else "a"
    told = [("who", who), ("", verb), ("what", f"{article} {adjective} {thing}")]
    if rng.random() < 0.75:
        told += [("", "at"), ("where", rng.choice(_PLACES))]
    if rng.random() < 0.75:
        told += [("", "on"), ("when", rng.choice(_DAYS))]
    return [*told, ("", ".")]
