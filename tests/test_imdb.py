import contextlib
import errno
import hashlib
import http.server
import io
import itertools
import os
import random
import re
import shutil
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from imdb_files import OTHERS, REVIEWS, TRAIN, add_member, listing, write_archive, write_folder

import companion.imdb
from companion.imdb import Review, digest, hold_out, load_imdb

DATA = os.environ.get("COMPANION_DATA") or Path(__file__).parents[2] / "shared" / "data" / "aclImdb_v1.tar.xz"


@pytest.fixture
def files():
    return REVIEWS | OTHERS


@pytest.fixture(autouse=True)
def no_data_in_the_environment(monkeypatch):
    for name in ("COMPANION_DATA", "COMPANION_CACHE"):
        monkeypatch.delenv(name, raising=False)


PLACES = {
    "the folder": lambda top, files: write_folder(top / "aclImdb", files),
    "the folder under another name": lambda top, files: write_folder(top / "reviews", files),
    "its parent": lambda top, files: write_folder(top / "aclImdb", files).parent,
    "a .tar.gz": lambda top, files: write_archive(top / "aclImdb_v1.tar.gz", files),
    "a .tar.xz under another name": lambda top, files: write_archive(top / "data.tar.xz", files),
    "the folder of a .tar.gz": lambda top, files: write_archive(top / "aclImdb_v1.tar.gz", files).parent,
    "the folder of a .tar.xz": lambda top, files: write_archive(top / "aclImdb.tar.xz", files).parent,
    "an archive of ./aclImdb": lambda top, files: write_archive(top / "a.tar.gz", files, "./aclImdb/"),
}


@pytest.mark.parametrize("place", PLACES)
def test_reads_every_split_in_the_order_of_the_numbers(tmp_path, files, place):
    root = PLACES[place](tmp_path, files)
    assert load_imdb("train", root) == TRAIN
    assert load_imdb("test", str(root)) == [Review("bad <br /> film", 0), Review("good film", 1)]
    assert load_imdb("unsup", root) == [Review("no verdict", None), Review("none either", None)]


def test_the_order_does_not_depend_on_the_order_on_disk(tmp_path, files, monkeypatch):
    root = write_folder(tmp_path / "aclImdb", files)
    glob = Path.glob
    monkeypatch.setattr(Path, "glob", lambda self, pattern: reversed(list(glob(self, pattern))))
    assert load_imdb("train", root) == TRAIN


def test_root_goes_before_the_environment_variable(tmp_path, monkeypatch, files):
    named = write_archive(tmp_path / "named.tar.gz", files)
    other = write_folder(tmp_path / "other" / "aclImdb", files | {"train/neg/0_2.txt": "another one"})
    monkeypatch.setenv("COMPANION_DATA", str(other))
    assert load_imdb("train")[0].text == "another one"
    assert load_imdb("train", named)[0].text == "dull"
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path / "nowhere"))
    assert load_imdb("train", named)[0].text == "dull"


def test_a_tilde_stands_for_the_home_folder(tmp_path, monkeypatch, files):
    write_folder(tmp_path / "aclImdb", files)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COMPANION_DATA", "~/aclImdb")
    assert load_imdb("train") == TRAIN


def test_a_missing_place_is_named_with_its_origin(tmp_path, monkeypatch):
    nowhere = tmp_path / "nowhere"
    with pytest.raises(FileNotFoundError, match=re.escape(f"root={nowhere} does not exist")):
        load_imdb("train", nowhere)
    monkeypatch.setenv("COMPANION_DATA", str(nowhere))
    with pytest.raises(FileNotFoundError, match=re.escape(f"COMPANION_DATA={nowhere} does not exist")):
        load_imdb("train")


def test_a_folder_without_data_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(f"{tmp_path} holds neither an aclImdb folder")):
        load_imdb("train", tmp_path)


@pytest.mark.parametrize("form", ["folder", ".tar.gz", ".tar.xz"])
@pytest.mark.parametrize(
    ("kept", "split", "missing"),
    [
        (["train/pos"], "train", ["neg"]),
        (["train/neg"], "train", ["pos"]),
        (["train"], "test", ["neg", "pos"]),
        (["train/neg", "train/pos"], "unsup", ["unsup"]),
    ],
)
def test_a_split_that_lacks_a_class_is_refused(tmp_path, files, form, kept, split, missing):
    left = {name: text for name, text in files.items() if name.startswith((*kept, "README"))}
    root = tmp_path / f"aclImdb{form}"
    root = write_folder(tmp_path / "aclImdb", left) if form == "folder" else write_archive(root, left)
    with pytest.raises(ValueError, match=re.escape(f"{root} holds no {split} reviews of kind {missing}")):
        load_imdb(split, root)


@pytest.mark.unhooked
def test_an_unknown_split_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"split='dev' is unknown; choose one of \('train', 'test', 'unsup'\)"):
        load_imdb("dev", tmp_path)


@pytest.fixture(scope="module", params=["gz", "xz"])
def long_archive(request, tmp_path_factory):
    """Hold reviews that do not compress, so that a cut anywhere takes some of them away."""
    words = random.Random(0)
    files = {
        f"train/{kind}/{number}_1.txt": "".join(
            words.choices("abcdefghijklmnopqrstuvwxyz ,.", k=words.randint(10, 900))
        )
        for kind, number in itertools.product(("neg", "pos"), range(50))
    }
    return write_archive(tmp_path_factory.mktemp("data") / f"aclImdb.tar.{request.param}", files)


def test_an_archive_cut_anywhere_is_refused(long_archive, tmp_path):
    whole = long_archive.read_bytes()
    assert len(load_imdb("train", long_archive)) == 100
    cut = tmp_path / long_archive.name
    points = [0, 1, 3, 11, len(whole) - 1, *range(50, len(whole), len(whole) // 150)]
    for point in points:
        cut.write_bytes(whole[:point])
        with pytest.raises(ValueError, match=re.escape(f"{cut} is not a whole .tar.gz or .tar.xz archive")):
            load_imdb("train", cut)


def test_an_archive_with_a_flipped_bit_is_refused(long_archive, tmp_path):
    whole = long_archive.read_bytes()
    damaged = tmp_path / long_archive.name
    for position in range(100, len(whole), len(whole) // 40):
        damaged.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        with pytest.raises(ValueError, match=r"fetch (it|the archive) again"):
            load_imdb("train", damaged)


@pytest.mark.parametrize("content", [b"", b"not an archive\n", b"PK\x03\x04" + bytes(600), bytes(10_240)])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    path = tmp_path / "aclImdb_v1.tar.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{path} is not a whole .tar.gz or .tar.xz archive")):
        load_imdb("train", path)


def test_an_archive_of_something_else_is_refused(tmp_path):
    path = write_archive(tmp_path / "aclImdb_v1.tar.gz", {"train/data.csv": "1,2\n", "train/pos/1.txt": "1"}, "mnist/")
    with pytest.raises(ValueError, match=r"holds no train reviews of kind \['neg', 'pos'\]; is it the IMDB archive"):
        load_imdb("train", path)


@pytest.mark.parametrize("form", ["folder", "archive"])
def test_a_review_that_is_not_utf_8_is_named(tmp_path, form):
    if form == "folder":
        root = write_folder(tmp_path / "aclImdb", REVIEWS)
        (root / "train/pos/2_10.txt").write_bytes("déjà vu".encode("latin-1"))
    else:
        root = tmp_path / "aclImdb.tar.gz"
        with tarfile.open(root, "w:gz") as tar:
            add_member(tar, "aclImdb/train/pos/2_10.txt", "déjà vu".encode("latin-1"))
    with pytest.raises(ValueError, match=r"aclImdb/train/pos/2_10\.txt is not UTF-8 text"):
        load_imdb("train", root)


@pytest.mark.parametrize("content", ["", " \n\t"])
@pytest.mark.parametrize("form", ["folder", ".tar.gz", ".tar.xz"])
def test_an_empty_review_is_named(tmp_path, files, form, content):
    files["train/pos/2_10.txt"] = content
    root = tmp_path / f"aclImdb{form}"
    root = write_folder(tmp_path / "aclImdb", files) if form == "folder" else write_archive(root, files)
    named = "aclImdb/train/pos/2_10.txt is empty; fetch the archive again"
    with pytest.raises(ValueError, match=re.escape(str(root)) + ".*" + re.escape(named.removeprefix("aclImdb"))):
        load_imdb("train", root)
    assert len(load_imdb("test", root)) == 2


def test_an_archive_with_members_of_ill_will_writes_nothing(tmp_path, monkeypatch):
    inside = tmp_path / "working"
    inside.mkdir()
    monkeypatch.chdir(inside)
    path = tmp_path / "aclImdb.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        add_member(tar, "../evil.txt", b"evil")
        add_member(tar, f"{tmp_path}/absolute.txt", b"evil")
        for start in ("..", "x/..", "aclImdb/..", str(tmp_path), "/", "x"):
            add_member(tar, f"{start}/aclImdb/train/pos/6_9.txt", b"evil")
        add_member(tar, "aclImdb/train/pos/../../../6_9.txt", b"evil")
        add_member(tar, "aclImdb/train/pos/5_9.txt", b"fresh")
        add_member(tar, "./aclImdb/train/neg/5_1.txt", b"dull")
        for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE)):
            add_member(tar, f"aclImdb/train/neg/{number}_1.txt", type=kind, linkname="/etc/passwd")
        for number, kind in enumerate((tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)):
            add_member(tar, f"aclImdb/train/pos/{number}_9.txt", type=kind)
    before = listing(tmp_path)
    assert load_imdb("train", path) == [Review("dull", 0), Review("fresh", 1)]
    assert listing(tmp_path) == before


@pytest.fixture
def cache(tmp_path, monkeypatch):
    pooch = pytest.importorskip("pooch")
    folder = tmp_path / "cache"
    monkeypatch.setattr(pooch, "os_cache", lambda project: folder / project)
    return folder / "measured-transformer"


def answer_downloads(monkeypatch, answers: dict[str, Path | Exception]) -> list[dict]:
    """Let pooch.retrieve give these answers; return the list of what it is asked."""
    asked = []

    def retrieve(url, **options):
        asked.append({"url": url, **options})
        if isinstance(answers[url], Exception):
            raise answers[url]
        return str(answers[url])

    monkeypatch.setattr("pooch.retrieve", retrieve)
    return asked


def test_the_download_turns_to_the_second_source_when_the_first_fails(tmp_path, monkeypatch, cache, files):
    first, second = companion.imdb.IMDB_URLS
    archive = write_archive(tmp_path / "aclImdb_v1.tar.gz", files)
    asked = answer_downloads(monkeypatch, {first: ConnectionError("refused"), second: archive})
    assert load_imdb("train") == TRAIN
    assert [one["url"] for one in asked] == [first, second]
    for one in asked:
        assert one["known_hash"] == "md5:7c2ac02c03563afcf9b574c7e56c153a"
        assert one["path"] == cache
        assert one["progressbar"] is True


def test_the_download_stops_at_the_first_source_that_works(tmp_path, monkeypatch, cache, files):
    archive = write_archive(tmp_path / "aclImdb_v1.tar.gz", files)
    asked = answer_downloads(monkeypatch, dict.fromkeys(companion.imdb.IMDB_URLS, archive))
    assert load_imdb("test") == [Review("bad <br /> film", 0), Review("good film", 1)]
    assert [one["url"] for one in asked] == [companion.imdb.IMDB_URLS[0]]


def test_a_download_that_fails_everywhere_is_one_error_with_the_mend(monkeypatch, cache):
    first, second = companion.imdb.IMDB_URLS
    answer_downloads(monkeypatch, {first: ConnectionError("refused"), second: ValueError("wrong hash")})
    with pytest.raises(OSError, match="set COMPANION_DATA to a copy") as raised:
        load_imdb("train")
    assert f"{first}: refused" in str(raised.value)
    assert f"{second}: wrong hash" in str(raised.value)


def test_the_environment_names_the_folder_of_the_download(tmp_path, monkeypatch, files):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COMPANION_CACHE", "~/kept")
    archive = write_archive(tmp_path / "aclImdb_v1.tar.gz", files)
    asked = answer_downloads(monkeypatch, dict.fromkeys(companion.imdb.IMDB_URLS, archive))
    assert load_imdb("train") == TRAIN
    assert [one["path"] for one in asked] == [tmp_path / "kept"]


@contextlib.contextmanager
def serve(folder: Path):
    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def served(tmp_path, monkeypatch, files):
    """Serve an archive over HTTP, and give its path."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    path = write_archive(tmp_path / "served" / "aclImdb_v1.tar.gz", files)
    with serve(path.parent) as address:
        monkeypatch.setattr(companion.imdb, "IMDB_URLS", (f"{address}/gone.tar.gz", f"{address}/{path.name}"))
        yield path


def test_a_download_is_kept_and_not_repeated(served, monkeypatch, cache):
    monkeypatch.setattr(companion.imdb, "IMDB_MD5", hashlib.md5(served.read_bytes()).hexdigest())
    assert load_imdb("train") == TRAIN
    assert (cache / "aclImdb_v1.tar.gz").read_bytes() == served.read_bytes()
    served.unlink()
    assert load_imdb("train") == TRAIN


def test_a_download_of_another_file_is_refused_and_not_kept(served, cache):
    with pytest.raises(OSError, match=r"does not match the known hash"):
        load_imdb("train")
    assert listing(cache) == {}


def test_a_disk_that_fills_up_during_the_download_leaves_nothing(served, monkeypatch, cache):
    written = []

    class FullDisk(io.BufferedRandom):
        def write(self, chunk):
            written.append(super().write(chunk[:10]))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def open_on_full_disk(name, mode):
        return FullDisk(io.FileIO(name, mode))

    monkeypatch.setattr("pooch.downloaders.open", open_on_full_disk, raising=False)
    with pytest.raises(OSError, match="No space left on device") as raised:
        load_imdb("train")
    assert "set COMPANION_DATA to a copy" in str(raised.value)
    assert written == [10]
    assert listing(cache) == {}


def test_the_digest_of_an_archive_is_its_sha256(tmp_path, files):
    path = write_archive(tmp_path / "aclImdb.tar.gz", files)
    assert digest(path, "train") == digest(path, "unsup") == hashlib.sha256(path.read_bytes()).hexdigest()


def longer(path):
    path.write_text(path.read_text() + ".")


CHANGES = {
    "another length": longer,
    "another time": lambda path: os.utime(path, ns=(1, 1)),
    "another name": lambda path: path.rename(path.with_name("99_9.txt")),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    ("split", "name"),
    [
        ("train", "train/pos/2_10.txt"),
        ("train", "train/neg/0_2.txt"),
        ("unsup", "train/unsup/7_0.txt"),
        ("test", "test/neg/1_1.txt"),
    ],
)
def test_the_digest_of_a_folder_changes_with_the_reviews_of_the_split(tmp_path, files, split, name, change):
    folder = write_folder(tmp_path / "aclImdb", files)
    before = {one: digest(folder, one) for one in ("train", "test", "unsup")}
    assert len(set(before.values())) == 3
    CHANGES[change](folder / name)
    assert [one for one in before if digest(folder, one) != before[one]] == [split]


def test_a_folder_without_a_class_has_a_digest_of_its_own(tmp_path, files):
    folder = write_folder(tmp_path / "aclImdb", files)
    before = digest(folder, "train")
    shutil.rmtree(folder / "train" / "neg")
    assert digest(folder, "train") != before


class Original(NamedTuple):
    """What the archive or folder holds, read without the package."""

    train: list[Review]
    films: list[str]


@pytest.fixture(scope="module")
def original():
    """Read the real training reviews in the order of their numbers, and the film that each is about."""
    place = Path(DATA)
    if not place.exists():
        pytest.skip(f"no IMDB reviews: set COMPANION_DATA, or put the archive at {place}")
    texts, films = {}, {}
    for name, content in members(place):
        if match := re.search(r"aclImdb/train/(neg|pos)/(\d+)_\d+\.txt$", name):
            texts[int(match[2]), match[1]] = content.decode()
        elif match := re.search(r"aclImdb/train/urls_(neg|pos)\.txt$", name):
            for number, line in enumerate(content.decode().splitlines()):
                films[number, match[1]] = re.search(r"tt\d+", line)[0]
    assert set(texts) == set(films) == set(itertools.product(range(12_500), ("neg", "pos")))
    train = [Review(text, int(kind == "pos")) for (_, kind), text in sorted(texts.items())]
    return Original(train, [film for _, film in sorted(films.items())])


def members(place: Path) -> Iterator[tuple[str, bytes]]:
    place = next(place.glob("aclImdb*.tar.?z"), place)
    if place.is_file():
        with tarfile.open(place, "r|*") as tar:
            for member in tar:
                if member.name == "aclImdb/test":
                    return
                if member.isfile() and "unsup" not in member.name:
                    yield member.name, tar.extractfile(member).read()
    else:
        top = place if (place / "train").is_dir() else place / "aclImdb"
        for path in (top / "train").rglob("*.txt"):
            yield f"aclImdb/{path.relative_to(top)}", path.read_bytes()


@pytest.fixture(scope="module")
def loaded(original):
    return load_imdb("train", DATA)


def test_the_real_training_reviews_are_the_original_ones(original, loaded):
    assert loaded == original.train
    assert [review.label for review in loaded] == [0, 1] * 12_500


@pytest.mark.parametrize(
    ("split", "labels", "size"),
    [
        ("train", {0: 12_500, 1: 12_500}, 33_132_823),
        ("test", {0: 12_500, 1: 12_500}, 32_350_685),
        ("unsup", {None: 50_000}, 66_506_794),
    ],
)
def test_the_real_splits_have_the_published_counts(request, split, labels, size):
    loaded = request.getfixturevalue("loaded")
    reviews = loaded if split == "train" else load_imdb(split, DATA)
    assert Counter(review.label for review in reviews) == labels
    assert sum(len(review.text.encode()) for review in reviews) == size


def share_on_films_of_the_other_part(kept: list[Review], held_out: list[Review]) -> float:
    trained_on = {review.text for review in kept}
    return sum(review.text in trained_on for review in held_out) / len(held_out)


def test_the_real_dev_split_shares_fewer_films_with_training_than_a_random_tenth(original):
    numbered = [Review(film, number) for number, film in enumerate(original.films)]
    kept, held_out = hold_out(numbered)
    assert Counter(review.label % 2 for review in held_out) == {0: 1_250, 1: 1_250}
    assert share_on_films_of_the_other_part(kept, held_out) < 0.6
    shuffled = random.Random(0).sample(numbered, len(numbered))
    assert share_on_films_of_the_other_part(*hold_out(shuffled)) > 0.9


@pytest.mark.parametrize("size", [1_001, 1_250, 1_300, 2_500, 25_000])
def test_hold_out_shares_the_reviews_out(size):
    reviews = [Review(str(number), number % 2) for number in range(size)]
    kept, held_out = hold_out(reviews)
    expected = [number for start in range(1_000, size, 2_500) for number in range(start, min(start + 250, size))]
    assert [int(review.text) for review in held_out] == expected
    assert [int(review.text) for review in kept] == sorted(set(range(size)) - set(expected))


@pytest.mark.parametrize("size", [0, 1_000])
def test_hold_out_refuses_too_few_reviews(size):
    with pytest.raises(ValueError, match=f"{size} reviews are too few"):
        hold_out([Review("good", 1)] * size)
