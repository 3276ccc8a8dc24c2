"""Text: the IMDB reviews, a word tokenizer, a vocabulary."""

import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, cast, get_args

from companion.files import atomic_path

IMDB_URLS = (
    "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz",
    "https://s3.amazonaws.com/text-datasets/aclImdb_v1.tar.gz",
)
IMDB_MD5 = "7c2ac02c03563afcf9b574c7e56c153a"

Split = Literal["train", "test", "unsup"]

_REVIEW_PATH = re.compile(r"(?:^|/)aclImdb/(train|test)/(neg|pos|unsup)/(\d+)_\d+\.txt$")
_LABELS = {"neg": 0, "pos": 1, "unsup": None}


class Review(NamedTuple):
    """One review.

    Attributes:
        text: The raw text.
        label: 0 = negative, 1 = positive, ``None`` = not labelled.

    Example:
        >>> reviews = [Review("a moving film", 1), Review("dull", 0), Review("seen twice", None)]
        >>> [review.text for review in reviews if review.label == 1]
        ['a moving film']
    """

    text: str
    label: int | None


def load_imdb(split: Split, root: str | os.PathLike[str] | None = None) -> list[Review]:
    """Load the Large Movie Review Dataset (Maas et al., ACL 2011).

    The reviews are read straight out of the archive; nothing is extracted, so no member can land outside a folder
    and nothing half-written can stay behind. They come in the order of their number, negative before positive
    within a number, so the labels take turns and reviews of one film stay together.

    Args:
        split: ``"train"`` or ``"test"``, 25,000 labelled reviews each, or ``"unsup"``, 50,000 without a label.
        root: An ``aclImdb`` folder, a ``.tar.gz`` or ``.tar.xz`` of it, or a folder that holds one of them. Left
            out, the environment variable ``COMPANION_DATA`` says where; where that is not set either, the official
            archive (84 MB) is downloaded once, checked against its MD5 and kept in the user's cache folder.

    Returns:
        The reviews of the split.

    Raises:
        FileNotFoundError: If there is no data at the place named.
        ValueError: If the split is unknown, or the archive is cut, damaged or holds something else.
        OSError: If the download fails at every source.

    Example:
        >>> from pathlib import Path
        >>> for name, text in (("neg/0_2.txt", "dull"), ("pos/0_9.txt", "a moving film")):
        ...     path = Path("aclImdb/train", name)
        ...     path.parent.mkdir(parents=True)
        ...     _ = path.write_text(text, "utf-8")
        >>> load_imdb("train", root="aclImdb")
        [Review(text='dull', label=0), Review(text='a moving film', label=1)]
    """
    if split not in get_args(Split):
        raise ValueError(f"split={split!r} is unknown; choose one of {get_args(Split)}")
    source = _imdb_source(root)
    texts = _read_folder(source, split) if source.is_dir() else _read_archive(source, split)
    ordered = sorted((number, kind, text) for kind, number, text in texts)
    found = {kind for _, kind, _ in ordered}
    missing = ({"unsup"} if split == "unsup" else {"neg", "pos"}) - found
    if missing:
        raise ValueError(f"{source} holds no {split} reviews of kind {sorted(missing)}; is it the IMDB archive?")
    return [Review(text, _LABELS[kind]) for _, kind, text in ordered]


def hold_out(reviews: Sequence[Review]) -> tuple[list[Review], list[Review]]:
    """Hold a tenth of a training split out as the dev split.

    Every tenth run of 250 neighbours goes to the dev split. In `load_imdb`'s order the reviews of a film stand
    together, so that hardly any film is in both, as no film is in both the official training and test splits.

    Args:
        reviews: The training split.

    Returns:
        What is left to train on, and the dev split.

    Raises:
        ValueError: If there are too few reviews for a dev split.

    Example:
        >>> training, dev = hold_out(toy.reviews(2_500))
        >>> len(training), len(dev)
        (2250, 250)
    """
    blocks = [reviews[start : start + 250] for start in range(0, len(reviews), 250)]
    held_out = [review for block in blocks[4::10] for review in block]
    if not held_out:
        raise ValueError(f"{len(reviews)} reviews are too few to hold some out; it takes more than 1,000")
    kept = [review for number, block in enumerate(blocks) if number % 10 != 4 for review in block]
    return kept, held_out


def _imdb_source(root: str | os.PathLike[str] | None) -> Path:
    """Return the aclImdb folder or the archive that ``root`` or ``COMPANION_DATA`` stands for."""
    named = root if root is not None else os.environ.get("COMPANION_DATA")
    if not named:
        return _download_imdb()
    place = Path(named).expanduser()
    if not place.exists():
        origin = "root" if root is not None else "COMPANION_DATA"
        raise FileNotFoundError(f"{origin}={place} does not exist; name the aclImdb folder or its archive")
    if place.is_file():
        return place
    if place.name == "aclImdb" or (place / "train").is_dir():
        return place
    candidates = [place / "aclImdb", *sorted(place.glob("aclImdb*.tar.[gx]z"))]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    raise FileNotFoundError(f"{place} holds neither an aclImdb folder nor an aclImdb*.tar.gz or .tar.xz")


def _download_imdb() -> Path:
    import pooch

    failures = []
    for url in IMDB_URLS:
        try:
            path = pooch.retrieve(
                url,
                known_hash=f"md5:{IMDB_MD5}",
                fname="aclImdb_v1.tar.gz",
                path=pooch.os_cache("measured-transformer"),
                progressbar=True,
            )
            return Path(path)
        except (OSError, ValueError) as error:  # no connection, or another file than the official one
            failures.append(f"{url}: {error}")
    raise OSError("IMDB could not be downloaded; set COMPANION_DATA to a copy. " + "; ".join(failures))


def _read_folder(folder: Path, split: Split) -> Iterator[tuple[str, int, str]]:
    part = "train" if split == "unsup" else split
    kinds = ("unsup",) if split == "unsup" else ("neg", "pos")
    for kind in kinds:
        for path in (folder / part / kind).glob("*_*.txt"):
            number = path.name.partition("_")[0]
            if number.isdecimal():
                yield kind, int(number), _decode(path.read_bytes(), str(path))


def _read_archive(archive: Path, split: Split) -> Iterator[tuple[str, int, str]]:
    part = "train" if split == "unsup" else split
    with _decompressed(archive) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        for member in tar:
            match = _REVIEW_PATH.search(member.name)
            if match and member.isfile() and match[1] == part and (match[2] == "unsup") == (split == "unsup"):
                content = tar.extractfile(member)
                assert content is not None
                yield match[2], int(match[3]), _decode(content.read(), member.name)
        while stream.read(1 << 20):  # tarfile takes a cut between members for the end; the checksum does not
            pass


@contextmanager
def _decompressed(archive: Path) -> Iterator[BinaryIO]:
    """Open an archive; what tarfile and the decompressors raise on a bad one becomes one ValueError."""
    import gzip
    import lzma
    import zlib

    try:
        with open(archive, "rb") as file:
            is_xz = file.read(6) == b"\xfd7zXZ\x00"
        with lzma.open(archive) if is_xz else gzip.open(archive) as stream:
            yield cast(BinaryIO, stream)
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise ValueError(f"{archive} is not a whole .tar.gz or .tar.xz archive ({error}); fetch it again") from error


def _decode(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 text ({error.reason}); fetch the archive again") from error


class WordTokenizer:
    """Split English text into lower-case words and punctuation: torchtext's ``basic_english``.

    Example:
        >>> WordTokenizer()("It's good, not bad!<br />")
        ['it', "'", 's', 'good', ',', 'not', 'bad', '!']
    """

    def __init__(self) -> None:
        from torchtext.data import get_tokenizer

        self._tokenize = cast(Callable[[str], list[str]], get_tokenizer("basic_english"))

    def __call__(self, text: str) -> list[str]:
        """Return the tokens of ``text``, an empty list where it has none."""
        return self._tokenize(text)


class Vocabulary:
    """Tokens and their ids: torchtext's ``Vocab`` behind a face whose look-ups never change it.

    Id 0 is padding, id 1 stands for every unknown token. Build it from the training split only.

    Args:
        tokens: All tokens in the order of their ids, ``<pad>`` and ``<unk>`` first.

    Raises:
        ValueError: If the first two are others, or a token stands twice or holds a line break.

    Example:
        >>> vocabulary = Vocabulary.build([["good", "film"], ["good"]])
        >>> vocabulary.encode(["good", "unheard", "film"])
        [2, 1, 3]
    """

    PAD, UNKNOWN = "<pad>", "<unk>"

    def __init__(self, tokens: Sequence[str]) -> None:
        from torchtext.vocab import Vocab

        if list(tokens[:2]) != [self.PAD, self.UNKNOWN]:
            raise ValueError(f"a vocabulary begins with {self.PAD} and {self.UNKNOWN}; got {list(tokens[:2])}")
        repeated = [token for token, count in Counter(tokens).items() if count > 1]
        if repeated:
            raise ValueError(f"a vocabulary holds each token once; repeated: {repeated[:5]}")
        broken = [token for token in tokens if "\n" in token]
        if broken:
            raise ValueError(f"a token holds no line break; got {broken[0]!r}")
        self._vocab = Vocab(Counter(), specials=list(tokens))

    @classmethod
    def build(cls, texts: Iterable[Iterable[str]], *, max_size: int | None = None, min_count: int = 1) -> "Vocabulary":
        """Count tokens and keep the most frequent, ties in alphabetical order.

        Args:
            texts: The tokenized training texts.
            max_size: The largest size, padding and unknown included; ``None`` = no bound.
            min_count: The count below which a token is left out.

        Returns:
            The vocabulary, most frequent token at id 2.

        Raises:
            ValueError: If ``max_size`` leaves no room for padding and unknown, or ``min_count`` is below 1.
        """
        if max_size is not None and max_size < 2:
            raise ValueError(f"max_size={max_size} has no room for {cls.PAD} and {cls.UNKNOWN}; choose 2 or more")
        if min_count < 1:
            raise ValueError(f"min_count={min_count}; choose 1 or more")
        from torchtext.vocab import Vocab

        counts = Counter(token for tokens in texts for token in tokens)
        room = None if max_size is None else max_size - 2
        return cls(Vocab(counts, room, min_count, specials=[cls.PAD, cls.UNKNOWN]).itos)

    def encode(self, tokens: Iterable[str]) -> list[int]:
        """Return the id of each token, 1 for an unknown one."""
        return [self._vocab[token] for token in tokens]  # pyright: ignore[reportReturnType]

    def decode(self, ids: Iterable[int]) -> list[str]:
        """Return the token of each id.

        Raises:
            IndexError: If an id is past the vocabulary.
        """
        return [self._vocab.itos[index] for index in ids]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one token a line, in the order of the ids, as UTF-8; atomically."""
        with atomic_path(path) as temporary:
            temporary.write_text("".join(token + "\n" for token in self._vocab.itos), "utf-8", newline="\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Vocabulary":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is not a vocabulary.
        """
        try:
            with open(path, encoding="utf-8", newline="\n") as file:
                return cls([line.removesuffix("\n") for line in file])
        except ValueError as error:
            raise ValueError(f"{path} is not a vocabulary: {error}") from error

    def __len__(self) -> int:
        return len(self._vocab.itos)

    def __contains__(self, token: str) -> bool:
        return token in self._vocab.stoi

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self._vocab.itos == other._vocab.itos

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} tokens)"
