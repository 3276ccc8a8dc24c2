"""IMDB: the Large Movie Review Dataset, from its archive or its folder."""

import hashlib
import io
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar, get_args

IMDB_URLS = (
    "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz",
    "https://s3.amazonaws.com/text-datasets/aclImdb_v1.tar.gz",
)
IMDB_MD5 = "7c2ac02c03563afcf9b574c7e56c153a"

_AnyItem = TypeVar("_AnyItem")

Split = Literal["train", "test", "unsup"]

_REVIEW_PATH = re.compile(r"(?:\./)?aclImdb/(train|test)/(neg|pos|unsup)/([0-9]{1,9})_[0-9]+\.txt")
_LARGEST_CONTENT = 2**30  # bytes, several times IMDB's
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
            archive (84 MB) is downloaded once, checked against its MD5 and kept in the user's cache folder, or in the
            one that ``COMPANION_CACHE`` names.

    Returns:
        The reviews of the split.

    Raises:
        FileNotFoundError: If there is no data at the place named.
        ValueError: If the split is unknown, the archive is cut, damaged or holds something else, or a review is empty
            or no UTF-8.
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
    check_split(split)
    source = imdb_source(root)
    ordered = sorted((number, kind, text) for kind, number, text in read_reviews(source, split))
    found = {kind for _, kind, _ in ordered}
    missing = ({"unsup"} if split == "unsup" else {"neg", "pos"}) - found
    if missing:
        raise ValueError(f"{source} holds no {split} reviews of kind {sorted(missing)}; is it the IMDB archive?")
    return [Review(text, _LABELS[kind]) for _, kind, text in ordered]


def hold_out(reviews: Sequence[_AnyItem]) -> tuple[list[_AnyItem], list[_AnyItem]]:
    """Hold a tenth of a training split out as the dev split.

    Every tenth run of 250 neighbours goes to the dev split. In `load_imdb`'s order the reviews of a film stand
    together, so that hardly any film is in both, as no film is in both the official training and test splits.

    Args:
        reviews: The training split, or whatever stands for it, such as the rows of a `TokenizedCorpus`.

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


def check_split(split: str) -> None:
    """Ask for a split of IMDB.

    Raises:
        ValueError: If there is none of that name.
    """
    if split not in get_args(Split):
        raise ValueError(f"split={split!r} is unknown; choose one of {get_args(Split)}")


def cache_folder() -> Path:
    """Return where downloads and what is made of them are kept: ``COMPANION_CACHE``, or the user's cache folder."""
    import pooch

    return Path(os.environ.get("COMPANION_CACHE") or pooch.os_cache("measured-transformer")).expanduser()


def imdb_source(root: str | os.PathLike[str] | None) -> Path:
    """Return the aclImdb folder or the archive that ``root`` or ``COMPANION_DATA`` stands for; else download it.

    Raises:
        FileNotFoundError: If there is no data at the place named.
        OSError: If the download fails at every source.
    """
    named = root if root is not None else os.environ.get("COMPANION_DATA")
    if not named:
        return _download()
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


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(source: Path, split: Split) -> str:
    """Return what changes with the reviews: an archive's SHA-256, or that of a folder's names, sizes and times.

    A file of the folder that is changed while its size and its time of modification are kept is not seen.
    """
    if source.is_file():
        return sha256(source)
    entries = [
        (kind, entry.name, entry.stat().st_size, entry.stat().st_mtime_ns)
        for kind, folder in _review_folders(source, split)
        if folder.is_dir()
        for entry in os.scandir(folder)
    ]
    return hashlib.sha256(repr(sorted(entries)).encode()).hexdigest()


def read_reviews(source: Path, split: Split) -> Iterator[tuple[str, int, str]]:
    """Yield the kind, the number and the text of each review of a split, in the order on disk.

    Raises:
        ValueError: If the archive is cut, damaged or of another kind, or a review is empty or no UTF-8.
    """
    return _read_folder(source, split) if source.is_dir() else _read_archive(source, split)


def _download() -> Path:
    import pooch

    failures = []
    for url in IMDB_URLS:
        try:
            path = pooch.retrieve(
                url,
                known_hash=f"md5:{IMDB_MD5}",
                fname="aclImdb_v1.tar.gz",
                path=cache_folder(),
                progressbar=True,
            )
            return Path(path)
        except (OSError, ValueError) as error:  # no connection, no room, or another file than the official one
            failures.append(f"{url}: {error}")
    raise OSError("IMDB could not be downloaded; set COMPANION_DATA to a copy. " + "; ".join(failures))


def _review_folders(source: Path, split: Split) -> list[tuple[str, Path]]:
    if split == "unsup":
        return [("unsup", source / "train" / "unsup")]
    return [(kind, source / split / kind) for kind in ("neg", "pos")]


def _read_folder(source: Path, split: Split) -> Iterator[tuple[str, int, str]]:
    for kind, folder in _review_folders(source, split):
        for path in folder.glob("*_*.txt"):
            number = path.name.partition("_")[0]
            if number.isdecimal():
                yield kind, int(number), _decode(path.read_bytes(), str(path))


def _read_archive(archive: Path, split: Split) -> Iterator[tuple[str, int, str]]:
    part = "train" if split == "unsup" else split
    content = _decompress(archive)
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
            for member in tar:
                match = _REVIEW_PATH.fullmatch(member.name)
                if match and member.isfile() and match[1] == part and (match[2] == "unsup") == (split == "unsup"):
                    review = content[member.offset_data : member.offset_data + member.size]
                    yield match[2], int(match[3]), _decode(review, f"{archive}: {member.name}")
    except (tarfile.TarError, OverflowError) as error:  # the latter of sizes past 64 bits
        raise _damaged(archive, error) from error


def _decompress(archive: Path) -> bytes:
    """Return the whole content, so that a cut or a damage shows before a review is read; a bomb's is too large."""
    import gzip
    import lzma
    import zlib

    pieces: list[bytes] = []
    room = _LARGEST_CONTENT
    try:
        with (
            archive.open("rb") as packed,
            lzma.open(packed) if packed.peek().startswith(b"\xfd7zXZ\x00") else gzip.open(packed) as file,
        ):
            while room >= 0 and (piece := file.read(2**20)):
                pieces.append(piece)
                room -= len(piece)
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise _damaged(archive, error) from error
    if room < 0:
        raise ValueError(f"{archive} holds more than {_LARGEST_CONTENT:,} bytes, several times IMDB's; fetch it again")
    return b"".join(pieces)


def _damaged(archive: Path, error: Exception) -> ValueError:
    return ValueError(f"{archive} is not a whole .tar.gz or .tar.xz archive ({error}); fetch it again")


def _decode(content: bytes, name: str) -> str:
    if not content.strip():
        raise ValueError(f"{name} is empty; fetch the archive again")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 text ({error.reason}); fetch the archive again") from error
