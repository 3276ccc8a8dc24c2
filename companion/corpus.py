"""The tokenized corpus: IMDB as numbers of tokens, made once and kept in a memory-mapped cache."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from array import array
from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate, count
from pathlib import Path

import numpy as np
from jaxtyping import Int8, Int32, Int64

from companion.imdb import Review, Split, cache_folder, check_split, digest, hold_out, imdb_source, load_imdb, sha256
from companion.text import Tokenizer, Vocabulary, WordTokenizer

_FORMAT = "1"  # another one leaves the caches of the former aside
_FILES = ("numbers.npy", "bounds.npy", "labels.npy", "lexicon.txt")


class TokenizedCorpus:
    """Reviews as numbers of their tokens in a lexicon of all distinct tokens, whatever the vocabulary will be.

    A selection, and a corpus cut to a length, share the numbers; only bounds are copied.

    Args:
        lexicon: All distinct tokens.
        numbers: Those of the tokens in the lexicon, one review behind the other.
        bounds: Where each review begins and where it ends, ``(2, reviews)``.
        labels: 0 = negative, 1 = positive, -1 = not labelled.

    Example:
        >>> corpus = TokenizedCorpus.build([Review("Good film", 1), Review("Bad, bad film", 0)], WordTokenizer())
        >>> corpus[1], corpus.labels
        (['bad', ',', 'bad', 'film'], [1, 0])
        >>> training = corpus.select([1]).truncate(3)
        >>> vocabulary = training.build_vocabulary()
        >>> vocabulary.decode(range(4)), corpus.encode(vocabulary)
        (['<pad>', '<unk>', 'bad', ','], [array('i', [1, 1]), array('i', [2, 3, 2, 1])])
    """

    def __init__(
        self,
        lexicon: list[str],
        numbers: Int32[np.ndarray, "tokens"],
        bounds: Int64[np.ndarray, "2 reviews"],
        labels: Int8[np.ndarray, "reviews"],
    ) -> None:
        self._lexicon = lexicon
        self._numbers = numbers
        self._bounds = bounds
        self._labels = labels

    @classmethod
    def build(cls, reviews: Sequence[Review], tokenizer: Tokenizer) -> "TokenizedCorpus":
        """Tokenize reviews.

        Args:
            reviews: The reviews.
            tokenizer: What splits a text.

        Returns:
            The corpus, in the order of the reviews.

        Raises:
            ValueError: If a review holds no words.
        """
        number_of: defaultdict[str, int] = defaultdict(count().__next__)
        parts = []
        for place, review in enumerate(reviews, start=1):
            tokens = tokenizer(review.text)
            if not tokens:
                raise ValueError(f"review {place} holds no words: {review.text[:40]!r}")
            parts.append(np.fromiter(map(number_of.__getitem__, tokens), np.int32, len(tokens)))
        ends = np.fromiter(accumulate(map(len, parts), initial=0), np.int64, len(parts) + 1)
        return cls(
            list(number_of),
            np.concatenate([np.empty(0, np.int32), *parts]),
            np.stack([ends[:-1], ends[1:]]),
            np.array([-1 if review.label is None else review.label for review in reviews], np.int8),
        )

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> list[str]:
        """Return the tokens of a review."""
        start, end = self._bounds[:, index]
        return [self._lexicon[number] for number in self._numbers[start:end]]

    @property
    def labels(self) -> list[int | None]:
        """The label of each review, as `Review` has it."""
        return [None if label < 0 else label for label in self._labels.tolist()]

    def select(self, rows: Sequence[int]) -> "TokenizedCorpus":
        """Return the corpus of some reviews, in the order of ``rows``.

        Raises:
            IndexError: If there is no such row.
        """
        index = np.array(rows, np.int64)
        return TokenizedCorpus(self._lexicon, self._numbers, self._bounds[:, index], self._labels[index])

    def hold_out(self) -> tuple["TokenizedCorpus", "TokenizedCorpus"]:
        """Return what is left to train on, and the dev split, those of the function `hold_out`.

        Raises:
            ValueError: As `hold_out`.
        """
        training, dev = hold_out(range(len(self)))
        return self.select(training), self.select(dev)

    def truncate(self, max_length: int) -> "TokenizedCorpus":
        """Return the corpus of the first ``max_length`` tokens of each review."""
        starts, ends = self._bounds
        bounds = np.stack([starts, np.minimum(ends, starts + max_length)])
        return TokenizedCorpus(self._lexicon, self._numbers, bounds, self._labels)

    def build_vocabulary(self, *, max_size: int | None = None, min_count: int = 1) -> Vocabulary:
        """Count the tokens and keep the most frequent, as `Vocabulary.build` does.

        Args:
            max_size: As in `Vocabulary.build`.
            min_count: As in `Vocabulary.build`.

        Returns:
            The vocabulary, most frequent token at id 2.

        Raises:
            ValueError: As in `Vocabulary.build`.
        """
        numbers = np.concatenate([self._numbers[:0], *self._reviews()])
        counts = np.bincount(numbers, minlength=len(self._lexicon)).tolist()
        counted = {token: count for token, count in zip(self._lexicon, counts, strict=True) if count}
        return Vocabulary.from_counts(counted, max_size=max_size, min_count=min_count)

    def encode(self, vocabulary: Vocabulary) -> list[Sequence[int]]:
        """Return the token ids of each review, those of ``vocabulary.encode``, as arrays of the standard library."""
        id_of = np.array(vocabulary.encode(self._lexicon), np.int32)
        return [array("i", id_of[numbers].tobytes()) for numbers in self._reviews()]

    def _reviews(self) -> list[Int32[np.ndarray, "length"]]:
        numbers = np.asarray(self._numbers)  # a memmap is slow to slice
        return [numbers[start:end] for start, end in self._bounds.T.tolist()]

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write arrays, the lexicon as text, and the checksums of both in JSON to a folder that exists."""
        folder = Path(folder)
        for name, values in zip(_FILES[:3], (self._numbers, self._bounds, self._labels), strict=True):
            np.save(folder / name, values, allow_pickle=False)
        (folder / _FILES[3]).write_bytes("".join(token + "\n" for token in self._lexicon).encode())
        (folder / "checksums.json").write_text(_checksums(folder), "utf-8")

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "TokenizedCorpus":
        """Read what `save` wrote; the arrays are mapped into memory.

        Raises:
            FileNotFoundError: If there is no such folder, or a file of it is missing.
            ValueError: If a file is damaged.
        """
        folder = Path(folder)
        if (folder / "checksums.json").read_text("utf-8") != _checksums(folder):
            raise ValueError(f"{folder} is damaged; delete it")
        numbers, bounds, labels = (np.load(folder / name, mmap_mode="r", allow_pickle=False) for name in _FILES[:3])
        lexicon = (folder / _FILES[3]).read_bytes().decode().split("\n")[:-1]
        return cls(lexicon, numbers, bounds, labels)


def _checksums(folder: Path) -> str:
    return json.dumps({name: sha256(folder / name) for name in _FILES}, indent=2) + "\n"


def tokenize_imdb(
    split: Split,
    root: str | os.PathLike[str] | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> TokenizedCorpus:
    """Tokenize a split of IMDB, once: what is made is kept, and mapped into memory the next time.

    What is kept depends on the split, on the tokenizer, and on the SHA-256 of the archive; of an aclImdb folder, on the
    names, sizes and times of its files. A damaged cache is made again. Two processes may make it at once.

    Args:
        split: As in `load_imdb`.
        root: As in `load_imdb`.
        tokenizer: What splits a text; ``None`` takes a `WordTokenizer`.
        cache: The folder to keep it in; ``None`` takes that of the environment variable ``COMPANION_CACHE``, or the
            user's cache folder.

    Returns:
        The corpus, in the order of `load_imdb`.

    Raises:
        FileNotFoundError: As in `load_imdb`.
        ValueError: As in `load_imdb`; or if a review holds no words.
        OSError: If the cache cannot be written; or as in `load_imdb`.

    Example:
        >>> from pathlib import Path
        >>> for name, text in (("neg/0_2.txt", "dull"), ("pos/0_9.txt", "a moving film")):
        ...     path = Path("aclImdb/train", name)
        ...     path.parent.mkdir(parents=True)
        ...     _ = path.write_text(text, "utf-8")
        >>> corpus = tokenize_imdb("train", root="aclImdb", cache="cache")
        >>> corpus[1], corpus.labels
        (['a', 'moving', 'film'], [0, 1])
    """
    check_split(split)
    tokenizer = tokenizer or WordTokenizer()
    source = imdb_source(root)
    settings = (_FORMAT, split, digest(source, split), tokenizer.fingerprint)
    name = f"imdb-{split}-{hashlib.sha256(repr(settings).encode()).hexdigest()[:16]}"
    folder = (cache_folder() if cache is None else Path(cache)) / name
    with contextlib.suppress(OSError, ValueError):  # not there yet, or damaged
        return TokenizedCorpus.load(folder)
    reviews = load_imdb(split, source)
    try:
        corpus = TokenizedCorpus.build(reviews, tokenizer)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    _keep(corpus, folder)
    return corpus


def _keep(corpus: TokenizedCorpus, folder: Path) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as temporary:
            made = Path(temporary, folder.name)
            made.mkdir()
            corpus.save(made)
            shutil.rmtree(folder, ignore_errors=True)  # a damaged one
            try:
                made.rename(folder)
            except OSError:
                if not folder.exists():  # otherwise another process was faster
                    raise
    except OSError as error:
        reason = error.strerror or error  # numpy's says how much was written
        raise OSError(
            f"{folder} cannot be written ({reason}); make room or let COMPANION_CACHE name another folder"
        ) from error
