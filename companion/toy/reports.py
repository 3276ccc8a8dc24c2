"""Short reports with summaries of one line: what happened, to whom, when."""

import random

from companion.toy.pairs import TextPair, write_pairs

_FIRST_NAMES = ("ada", "boris", "clara", "dario", "edith", "felix", "greta", "hugo", "irma", "jonas", "karla", "leon")
_LAST_NAMES = (
    "adler",
    "brandt",
    "conti",
    "duval",
    "engel",
    "fabri",
    "gomez",
    "haas",
    "ibsen",
    "jansen",
    "kovac",
    "lund",
)
_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_PARTS = ("morning", "afternoon", "evening", "night")
_FILL = {
    "place": ("bakery", "workshop", "garage", "shop", "studio", "farm"),
    "prize": ("music", "science", "history", "film", "chess"),
    "water": ("river", "lake", "harbour", "canal"),
    "vehicle": ("bus", "lorry", "bicycle", "tram", "van"),
}

# For each kind of event its summary, and how a report may tell it.
_EVENTS = (
    (
        "fire damages {place} of {who} on {day}",
        (
            "a fire broke out in the {place} of {who} on {day} {part} .",
            "on {day} {part} flames destroyed the roof of the {place} that belongs to {who} .",
            "the {place} of {who} burned on {day} {part} .",
        ),
    ),
    (
        "thieves rob {place} of {who} on {day}",
        (
            "thieves broke into the {place} of {who} on {day} {part} .",
            "on {day} {part} somebody emptied the safe in the {place} that belongs to {who} .",
        ),
    ),
    (
        "{who} wins {prize} prize on {day}",
        (
            "the jury gave the {prize} prize to {who} on {day} {part} .",
            "on {day} {part} {who} received this year 's prize for {prize} .",
        ),
    ),
    (
        "{who} rescued from {water} on {day}",
        (
            "firemen pulled {who} out of the {water} on {day} {part} .",
            "{who} fell into the {water} on {day} {part} and was saved .",
        ),
    ),
    (
        "{vehicle} hits {who} on {day}",
        (
            "a {vehicle} ran into {who} on {day} {part} .",
            "on {day} {part} {who} was knocked down by a {vehicle} .",
        ),
    ),
)
_DISTRACTORS = (
    "{who} , a neighbour , called for help .",
    "{who} had been there until {day} .",
    "the police will report again on {day} .",
    "the mayor thanked {who} .",
    "it had rained since {day} .",
    "a {vehicle} stood in front of a {place} near the {water} .",
    "there were no other witnesses than {who} .",
    "nobody was hurt .",
)
_EARLIER = "last year "


def summaries(n: int, seed: int = 0) -> list[TextPair]:
    """Write ``n`` reports of three to five sentences, and their summaries: what happened, to whom, on which day.

    One sentence tells the event, in one of several ways; the summary has one wording for each kind of event. The other
    sentences name other people and days, and things that may be the same; in about every second report one of them
    tells an event of last year.

    Args:
        n: Number of pairs, at most 100,000.
        seed: Same seed, same pairs.

    Returns:
        ``n`` pairs of report and summary, no two reports alike.

    Raises:
        ValueError: If ``n`` is negative or past 100,000.

    Example:
        >>> pair = toy.summaries(1, seed=199)[0]
        >>> print(pair.source.split(" . ")[0])
        firemen pulled felix lund out of the harbour on friday afternoon
        >>> print(pair.target)
        felix lund rescued from harbour on friday
    """
    return write_pairs(n, seed, _write_report)


def _write_report(rng: random.Random) -> tuple[str, str]:
    names, days = _draw_names(6, rng), rng.sample(_DAYS, 6)
    summary, tellings = rng.choice(_EVENTS)
    event = _fill(names[0], days[0], rng)
    others: list[str] = rng.sample(_DISTRACTORS, rng.randint(2, 3))
    if rng.random() < 0.5:
        others.append(_EARLIER + rng.choice(rng.choice(_EVENTS)[1]))
    sentences = [
        sentence.format(**_fill(name, day, rng))
        for sentence, name, day in zip(others, names[1:], days[1:], strict=False)
    ]
    sentences.insert(rng.randint(0, 2), rng.choice(tellings).format(**event))
    return " ".join(sentences), summary.format(**event)


def _draw_names(n: int, rng: random.Random) -> list[str]:
    """Draw full names, of which no two have a name in common."""
    first_names, last_names = rng.sample(_FIRST_NAMES, n), rng.sample(_LAST_NAMES, n)
    return [" ".join(names) for names in zip(first_names, last_names, strict=True)]


def _fill(who: str, day: str, rng: random.Random) -> dict[str, str]:
    return {
        "who": who,
        "day": day,
        "part": rng.choice(_PARTS),
        **{slot: rng.choice(options) for slot, options in _FILL.items()},
    }
