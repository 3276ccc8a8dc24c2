"""Film reviews, half of which only the order of the words decides."""

import random

from companion.text import Review
from companion.toy.writing import write_distinct

_GOOD = ("good", "great", "brilliant", "moving", "clever", "funny", "fresh", "convincing")
_BAD = ("bad", "terrible", "dull", "clumsy", "boring", "flat", "tired", "tedious")
_FILL = {
    "aspect": ("acting", "plot", "script", "music", "ending", "camera work", "dialogue", "pacing"),
    "who": ("sister", "father", "neighbour", "flatmate", "cousin", "teacher"),
    "day": ("monday", "tuesday", "friday", "saturday", "sunday"),
    "minutes": ("eighty", "ninety", "a hundred", "two hundred"),
}
_OPENINGS = (
    "i saw this film with my {who} on {day} .",
    "my {who} chose this one for {day} evening .",
    "we rented it on {day} .",
    "nobody in the room had read about it .",
)
_CLOSINGS = (
    "it runs for {minutes} minutes .",
    "my {who} said the same .",
    "that is all there is to say .",
    "the cinema was half full .",
)

# {word} has the polarity of the label, {opposite} the other one.
_PLAIN = (
    "the {aspect} was {word} .",
    "what a {word} film , and the {aspect} is {word} too .",
    "the {aspect} is not {opposite} .",
    "nobody would call the {aspect} {opposite} .",
)
_CONTRAST = (
    "the {aspect} was {word} , not {opposite} at all .",
    "i expected a {opposite} film , but the {aspect} was {word} .",
    "the {aspect} may be {opposite} , but the film as a whole is {word} .",
    "some call it {opposite} , yet i say that it is {word} .",
    "it is far more {word} than {opposite} .",
)

BAG_OF_WORDS_BOUND = 0.75
"""The expected accuracy that no classifier of `reviews` can pass if it sees only which words occur how often."""


def reviews(n: int, seed: int = 0) -> list[Review]:
    """Write ``n`` short film reviews, half of which only the order of the words decides.

    Half of the verdicts are plain (``the plot is not dull .``). The other half holds a good and a bad word side by
    side (``the plot was good , not bad at all .``). Exchange the two, and the words are the same but the label is
    the other one; both reviews are equally likely. So on that half a bag of words says nothing, and no classifier
    that sees only the bag has an expected accuracy above ``1 / 2 + 1 / 2 * 1 / 2`` = `BAG_OF_WORDS_BOUND`. (No review
    comes twice and there are fewer plain ones, so that in a large sample their share is a little below a half.)

    Args:
        n: Number of reviews, at most 100,000.
        seed: Same seed, same reviews.

    Returns:
        ``n`` reviews, no two alike, labels 0 = negative and 1 = positive, their numbers at most one apart, in
        random order.

    Raises:
        ValueError: If ``n`` is negative or past 100,000.

    Example:
        >>> sorted(review.label for review in toy.reviews(4, seed=0))
        [0, 0, 1, 1]
    """
    rng = random.Random(seed)

    def write(number: int) -> tuple[str, int]:
        label = number % 2
        return _write_review(label, rng), label

    written = write_distinct(n, "reviews", write)
    written_reviews = [Review(text, label) for text, label in written.items()]
    rng.shuffle(written_reviews)
    return written_reviews


def _write_review(label: int, rng: random.Random) -> str:
    verdict = rng.choice(_CONTRAST if rng.random() < 0.5 else _PLAIN)
    sentences = [verdict]
    if rng.random() < 0.5:
        sentences.insert(0, rng.choice(_OPENINGS))
    if rng.random() < 0.5:
        sentences.append(rng.choice(_CLOSINGS))
    good, bad = rng.choice(_GOOD), rng.choice(_BAD)
    word, opposite = (good, bad) if label else (bad, good)
    fill = {slot: rng.choice(options) for slot, options in _FILL.items()}
    return " ".join(sentences).format(word=word, opposite=opposite, **fill)
