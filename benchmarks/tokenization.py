"""Seconds from the IMDB archive to token ids of its 75,000 training texts: this package, and torchtext's own pipeline.

Run as ``python benchmarks/tokenization.py`` with COMPANION_DATA set. Both read the archive with this package's reader,
and count the words of the labelled texts for a vocabulary of 10,000. The ids are proved equal before a time is printed.
"""

import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from torchtext.data import get_tokenizer
from torchtext.vocab import Vocab

from companion import load_imdb, tokenize_imdb

ROUNDS = 3
SIZE = 10_000

Ids = Sequence[Sequence[int]]


class Seconds(NamedTuple):
    tokens: float
    ids: float


def with_companion(cache: str) -> tuple[Ids, Seconds]:
    start = time.perf_counter()
    labelled, unlabelled = tokenize_imdb("train", cache=cache), tokenize_imdb("unsup", cache=cache)
    tokenized = time.perf_counter()
    vocabulary = labelled.build_vocabulary(max_size=SIZE)
    ids = labelled.encode(vocabulary) + unlabelled.encode(vocabulary)
    return ids, Seconds(tokenized - start, time.perf_counter() - tokenized)


def with_torchtext() -> tuple[Ids, Seconds]:
    tokenize = get_tokenizer("basic_english")
    start = time.perf_counter()
    labelled = [tokenize(text) for text, _ in load_imdb("train")]
    unlabelled = [tokenize(text) for text, _ in load_imdb("unsup")]
    tokenized = time.perf_counter()
    counts = Counter(token for tokens in labelled for token in tokens)
    vocabulary = Vocab(counts, SIZE - 2, specials=["<pad>", "<unk>"])
    ids = [[vocabulary[token] for token in tokens] for tokens in labelled + unlabelled]
    return ids, Seconds(tokenized - start, time.perf_counter() - tokenized)


def run_round() -> tuple[dict[str, Seconds], int]:
    """Time each way once, in turns; what one round has made is gone before the next."""
    with tempfile.TemporaryDirectory() as cache:
        first, seconds_first = with_companion(cache)
        cached, seconds_cached = with_companion(cache)
    expected, seconds_torchtext = with_torchtext()
    assert len(first) == 75_000
    assert first == cached, "the ids differ"
    assert list(map(list, first)) == expected, "the ids differ"
    return {"first": seconds_first, "cached": seconds_cached, "torchtext": seconds_torchtext}, sum(map(len, expected))


def main() -> None:
    rounds, totals = zip(*(run_round() for _ in range(ROUNDS)), strict=True)
    print(f"75,000 texts, {totals[0]:,} tokens, ids equal; medians of {ROUNDS} rounds in turns")
    print("           tokens    + ids    ratio of the sums, torchtext : this")
    for name in rounds[0]:
        tokens, ids = (statistics.median(column) for column in zip(*(seconds[name] for seconds in rounds), strict=True))
        ratio = statistics.median(sum(seconds["torchtext"]) / sum(seconds[name]) for seconds in rounds)
        print(f"{name:10} {tokens:5.2f} s  {ids:5.2f} s    {ratio:.2f}")


if __name__ == "__main__":
    main()
