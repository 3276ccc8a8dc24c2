"""English sentences with their German translations: the order of words changes, and endings agree."""

import random
from typing import NamedTuple

from companion.toy.pairs import TextPair, write_pairs


class _Noun(NamedTuple):
    english: str
    english_plural: str
    gender: str  # "m", "f" or "n"
    german: str
    german_plural: str


class _Phrase(NamedTuple):
    """A noun phrase: its English, its gender, or "p" for the plural, and its German by case."""

    english: str
    form: str
    german: dict[str, str]


_PEOPLE = (
    _Noun("man", "men", "m", "Mann", "Männer"),
    _Noun("teacher", "teachers", "m", "Lehrer", "Lehrer"),
    _Noun("woman", "women", "f", "Frau", "Frauen"),
    _Noun("sister", "sisters", "f", "Schwester", "Schwestern"),
    _Noun("child", "children", "n", "Kind", "Kinder"),
    _Noun("girl", "girls", "n", "Mädchen", "Mädchen"),
)
_THINGS = (
    _Noun("dog", "dogs", "m", "Hund", "Hunde"),
    _Noun("letter", "letters", "m", "Brief", "Briefe"),
    _Noun("cat", "cats", "f", "Katze", "Katzen"),
    _Noun("flower", "flowers", "f", "Blume", "Blumen"),
    _Noun("house", "houses", "n", "Haus", "Häuser"),
    _Noun("book", "books", "n", "Buch", "Bücher"),
)
_ADJECTIVES = {
    "old": "alt",
    "young": "jung",
    "small": "klein",
    "beautiful": "schön",
    "strange": "seltsam",
    "famous": "berühmt",
}
_VERBS = {
    "saw": "gesehen",
    "bought": "gekauft",
    "found": "gefunden",
    "painted": "gemalt",
    "lost": "verloren",
    "brought": "gebracht",
    "forgot": "vergessen",
    "looked for": "gesucht",
}
_ADVERBS = {"yesterday": "gestern", "today": "heute", "often": "oft", "suddenly": "plötzlich"}

# Article and ending of the adjective by case, for the forms masculine, feminine, neuter and plural.
_FORMS = "mfnp"
_DEFINITE = {
    "nominative": (("der", "e"), ("die", "e"), ("das", "e"), ("die", "en")),
    "accusative": (("den", "en"), ("die", "e"), ("das", "e"), ("die", "en")),
    "dative": (("dem", "en"), ("der", "en"), ("dem", "en"), ("den", "en")),
}
_INDEFINITE = {
    "nominative": (("ein", "er"), ("eine", "e"), ("ein", "es"), ("zwei", "e")),
    "accusative": (("einen", "en"), ("eine", "e"), ("ein", "es"), ("zwei", "e")),
    "dative": (("einem", "en"), ("einer", "en"), ("einem", "en"), ("zwei", "en")),
}


def translation(n: int, seed: int = 0) -> list[TextPair]:
    """Write ``n`` English sentences with their German translations.

    Word for word would not do: the participle goes to the end of its clause, in a relative clause before the auxiliary;
    an adverb in front puts the auxiliary before the subject; articles, adjectives and nouns are declined by gender,
    number and case, and the auxiliary agrees in number. (``yesterday the man who lost two dogs saw a small cat``
    becomes ``gestern hat der Mann , der zwei Hunde verloren hat , eine kleine Katze gesehen``.)

    Args:
        n: Number of pairs, at most 100,000.
        seed: Same seed, same pairs.

    Returns:
        ``n`` pairs, no two sources alike; a token is a word or a comma.

    Raises:
        ValueError: If ``n`` is negative or past 100,000.

    Example:
        >>> pair = toy.translation(1, seed=3)[0]
        >>> print(pair.source)
        the teacher lost the beautiful flower with a famous girl
        >>> print(pair.target)
        der Lehrer hat mit einem berühmten Mädchen die schöne Blume verloren
    """
    return write_pairs(n, seed, _write_sentence)


def _write_sentence(rng: random.Random) -> tuple[str, str]:
    subject, thing = _write_phrase(_PEOPLE, rng), _write_phrase(_THINGS, rng)
    english, participle = rng.choice([*_VERBS.items()])
    who, wer = subject.english, subject.german["nominative"]
    if rng.random() < 0.3:
        what, earlier = _write_phrase(_THINGS, rng), rng.choice([*_VERBS.items()])
        who += f" who {earlier[0]} {what.english}"
        relative = _DEFINITE["nominative"][_FORMS.index(subject.form)][0]
        wer += f" , {relative} {what.german['accusative']} {earlier[1]} {_have(subject)} ,"
    said, gesagt = f"{english} {thing.english}", thing.german["accusative"]
    if rng.random() < 0.3:
        company = _write_phrase(_PEOPLE, rng)
        said += f" with {company.english}"
        gesagt = f"mit {company.german['dative']} {gesagt}"
    if rng.random() < 0.5:
        when, wann = rng.choice([*_ADVERBS.items()])
        return f"{when} {who} {said}", f"{wann} {_have(subject)} {wer} {gesagt} {participle}"
    return f"{who} {said}", f"{wer} {_have(subject)} {gesagt} {participle}"


def _write_phrase(nouns: tuple[_Noun, ...], rng: random.Random) -> _Phrase:
    noun, plural, definite = rng.choice(nouns), rng.random() < 0.4, rng.random() < 0.6
    adjectives = [rng.choice([*_ADJECTIVES.items()])] if rng.random() < 0.5 else []
    form = "p" if plural else noun.gender
    words = [*(english for english, _ in adjectives), noun.english_plural if plural else noun.english]
    article = "the" if definite else "two" if plural else "an" if words[0][0] in "aeiou" else "a"
    return _Phrase(" ".join([article, *words]), form, _decline(noun, [stem for _, stem in adjectives], form, definite))


def _decline(noun: _Noun, stems: list[str], form: str, definite: bool) -> dict[str, str]:
    declined = {}
    for case, articles in (_DEFINITE if definite else _INDEFINITE).items():
        article, ending = articles[_FORMS.index(form)]
        word = noun.german_plural if form == "p" else noun.german
        if form == "p" and case == "dative" and not word.endswith("n"):
            word += "n"
        declined[case] = " ".join([article, *(stem + ending for stem in stems), word])
    return declined


def _have(subject: _Phrase) -> str:
    return "haben" if subject.form == "p" else "hat"
