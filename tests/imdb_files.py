"""A small IMDB, as a folder or an archive."""

import hashlib
import io
import tarfile
from pathlib import Path

from companion.imdb import Review

REVIEWS = {
    "train/neg/0_2.txt": "dull",
    "train/neg/2_1.txt": "flat\r\nand grey",
    "train/neg/10_4.txt": "tired",
    "train/pos/0_9.txt": "fresh",
    "train/pos/2_10.txt": "déjà vu, and yet \u201cfunny\u201d",
    "train/pos/10_7.txt": "grand",
    "train/unsup/7_0.txt": "no verdict",
    "train/unsup/11_0.txt": "none either",
    "test/neg/1_1.txt": "bad <br /> film",
    "test/pos/1_8.txt": "good film",
}
OTHERS = {
    "README": "Read me",
    "imdb.vocab": "the\na\n",
    "train/urls_pos.txt": "http://",
    "train/pos/notes.txt": "-",
    "train/pos/notes_1.txt": "-",
}
TRAIN = [
    Review("dull", 0),
    Review("fresh", 1),
    Review("flat\r\nand grey", 0),
    Review("déjà vu, and yet \u201cfunny\u201d", 1),
    Review("tired", 0),
    Review("grand", 1),
]


def write_folder(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    return folder


def write_archive(path: Path, files: dict[str, str], prefix: str = "aclImdb/") -> Path:
    """Write the members in an order that has nothing to do with that of the reviews."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, f"w:{path.suffix[1:]}") as tar:
        for name, text in sorted(files.items(), key=lambda item: hashlib.md5(item[0].encode()).digest()):
            add_member(tar, prefix + name, text.encode())
    return path


def add_member(tar: tarfile.TarFile, name: str, content: bytes = b"", **fields) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for field, value in fields.items():
        setattr(member, field, value)
    tar.addfile(member, io.BytesIO(content))


def listing(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
