import errno
import hashlib
import multiprocessing
import os
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from imdb_files import OTHERS, REVIEWS, listing, write_archive, write_folder

import companion.corpus
from companion import toy
from companion.corpus import TokenizedCorpus, tokenize_imdb
from companion.imdb import Review, hold_out, load_imdb
from companion.text import SentencePieceTokenizer, Vocabulary, WordTokenizer

DATA = os.environ.get("COMPANION_DATA") or Path(__file__).parents[2] / "shared" / "data" / "aclImdb_v1.tar.xz"
FILES = {"bounds.npy", "checksums.json", "labels.npy", "lexicon.txt", "numbers.npy"}


@pytest.fixture(autouse=True)
def no_folders_in_the_environment(monkeypatch):
    for name in ("COMPANION_DATA", "COMPANION_CACHE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def archive(tmp_path):
    return write_archive(tmp_path / "data" / "aclImdb_v1.tar.gz", REVIEWS | OTHERS)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def built(monkeypatch):
    """Count the times that a corpus is made, not read from the cache."""
    calls = []
    build = TokenizedCorpus.build

    def counted(reviews, tokenizer):
        calls.append(len(reviews))
        return build(reviews, tokenizer)

    monkeypatch.setattr(TokenizedCorpus, "build", counted)
    return calls


def tokens_of(corpus: TokenizedCorpus) -> list[list[str]]:
    return [corpus[index] for index in range(len(corpus))]


def assert_is(corpus: TokenizedCorpus, reviews: list[Review]) -> None:
    assert tokens_of(corpus) == [WordTokenizer()(review.text) for review in reviews]
    assert corpus.labels == [review.label for review in reviews]


reviews_of_a_few_words = st.lists(
    st.builds(
        lambda words, label: Review(" ".join(words), label),
        st.lists(st.sampled_from(["a", "b", "c", "d", "é", "<pad>", "<unk>"]), min_size=1),
        st.sampled_from([0, 1, None]),
    )
)


@given(reviews_of_a_few_words, st.data())
def test_everything_is_as_with_lists_of_tokens(reviews, data):
    rows = data.draw(st.lists(st.integers(0, len(reviews) - 1)) if reviews else st.just([]))
    max_length = data.draw(st.integers(1, 5))
    limits = {"max_size": data.draw(st.sampled_from([None, 2, 4])), "min_count": data.draw(st.integers(1, 3))}
    texts = [reviews[row].text.split()[:max_length] for row in rows]

    corpus = TokenizedCorpus.build(reviews, WordTokenizer())
    assert_is(corpus, reviews)
    for chosen in (corpus.select(rows).truncate(max_length), corpus.truncate(max_length).select(rows)):
        assert len(chosen) == len(rows)
        assert tokens_of(chosen) == texts
        assert chosen.labels == [reviews[row].label for row in rows]
        vocabulary = chosen.build_vocabulary(**limits)
        assert vocabulary == Vocabulary.build(texts, **limits)
        assert list(map(list, chosen.encode(vocabulary))) == [vocabulary.encode(tokens) for tokens in texts]
    assert_is(corpus, reviews)


def test_a_selection_is_saved_and_comes_back(tmp_path):
    reviews = [Review("good film", 1), Review("dull\u2028film", 0), Review("seen twice", None)]
    corpus = TokenizedCorpus.build(reviews, WordTokenizer()).select([2, 0]).truncate(1)
    corpus.save(str(tmp_path))
    loaded = TokenizedCorpus.load(str(tmp_path))
    assert (tokens_of(loaded), loaded.labels) == ([["seen"], ["good"]], [None, 1])
    assert loaded._lexicon == corpus._lexicon


def test_a_row_that_is_not_there_is_refused():
    corpus = TokenizedCorpus.build([Review("good", 1)], WordTokenizer())
    with pytest.raises(IndexError):
        corpus.select([1])


def test_what_is_held_out_is_what_hold_out_holds_out():
    reviews = toy.reviews(1_300)
    corpus = TokenizedCorpus.build(reviews, WordTokenizer())
    for split, expected in zip(corpus.hold_out(), hold_out(reviews), strict=True):
        assert_is(split, expected)
    with pytest.raises(ValueError, match="300 reviews are too few to hold some out"):
        corpus.select(range(300)).hold_out()


def test_a_review_without_words_is_named_by_its_place():
    with pytest.raises(ValueError, match=re.escape("review 2 holds no words: '<br />;'")):
        TokenizedCorpus.build([Review("good", 1), Review("<br />;", 0)], WordTokenizer())


@pytest.mark.parametrize("place", ["archive", "folder"])
@pytest.mark.parametrize("split", ["train", "test", "unsup"])
def test_the_cache_gives_what_was_made_and_maps_it_into_memory(tmp_path, archive, cache, built, place, split):
    root = archive if place == "archive" else write_folder(tmp_path / "aclImdb", REVIEWS | OTHERS)
    expected = load_imdb(split, root)
    for _ in range(3):
        assert_is(tokenize_imdb(split, root, cache=cache), expected)
    assert built == [len(expected)]
    numbers = tokenize_imdb(split, root, cache=cache)._numbers
    assert isinstance(numbers, np.memmap)
    assert (numbers.dtype, numbers.flags.writeable) == (np.int32, False)
    (folder,) = cache.iterdir()
    assert set(listing(folder)) == FILES


def test_the_environment_and_then_the_users_folder_hold_the_cache(tmp_path, archive, monkeypatch, built):
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / "of the user" / project)
    tokenize_imdb("train", archive)
    (folder,) = (tmp_path / "of the user" / "measured-transformer").iterdir()
    monkeypatch.setenv("COMPANION_CACHE", str(tmp_path / "named"))
    tokenize_imdb("train", archive)
    assert [path.name for path in (tmp_path / "named").iterdir()] == [folder.name]
    tokenize_imdb("train", archive, cache=tmp_path / "argument")
    assert [path.name for path in (tmp_path / "argument").iterdir()] == [folder.name]
    assert built == [6, 6, 6]


def test_other_content_is_another_entry_and_the_same_content_elsewhere_is_not(tmp_path, archive, cache, built):
    tokenize_imdb("train", archive, cache=cache)
    copy = shutil.copy(archive, tmp_path / "aclImdb.tar.gz")
    tokenize_imdb("train", copy, cache=cache)
    assert len(built) == 1
    write_archive(archive, REVIEWS | {"train/neg/0_2.txt": "grey"})
    assert tokenize_imdb("train", archive, cache=cache)[0] == ["grey"]
    assert tokenize_imdb("train", copy, cache=cache)[0] == ["dull"]
    assert len(built) == 2


def test_a_changed_folder_is_another_entry(tmp_path, cache):
    folder = write_folder(tmp_path / "aclImdb", REVIEWS)
    assert tokenize_imdb("train", folder, cache=cache)[0] == ["dull"]
    os.utime(folder / "train/neg/0_2.txt", ns=(0, 0))
    (folder / "train/neg/0_2.txt").write_text("grey")
    assert tokenize_imdb("train", folder, cache=cache)[0] == ["grey"]


def test_another_tokenizer_is_another_entry(tmp_path, archive, cache, built):
    texts = [review.text for review in toy.reviews(300)]
    tokenizers = [WordTokenizer()] + [
        SentencePieceTokenizer.train(texts, size, tmp_path / f"{size}.model") for size in (50, 60)
    ]
    reviews = load_imdb("train", archive)
    for _ in range(2):
        for tokenizer in tokenizers:
            corpus = tokenize_imdb("train", archive, tokenizer=tokenizer, cache=cache)
            assert tokens_of(corpus) == [tokenizer(review.text) for review in reviews]
    assert len(built) == len(list(cache.iterdir())) == 3
    ids = corpus.encode(tokenizers[-1].vocabulary)
    assert list(map(list, ids)) == [tokenizers[-1].encode(review.text) for review in reviews]


def flip_a_bit(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


DAMAGES = {
    "a flipped bit": flip_a_bit,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-2]),
    "empty": lambda path: path.write_bytes(b""),
    "not JSON of this kind": lambda path: path.write_text("[1]"),
    "gone": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", sorted(FILES))
def test_a_damaged_cache_is_seen_and_made_again(archive, cache, built, name, damage):
    tokenize_imdb("train", archive, cache=cache)
    (folder,) = cache.iterdir()
    before = listing(folder)
    DAMAGES[damage](folder / name)
    assert_is(tokenize_imdb("train", archive, cache=cache), load_imdb("train", archive))
    assert built == [6, 6]
    assert listing(cache) == {folder.name: None} | {
        f"{folder.name}/{name}": content for name, content in before.items()
    }


def test_a_cache_that_pickles_is_made_again(archive, cache, built):
    tokenize_imdb("train", archive, cache=cache)
    (folder,) = cache.iterdir()
    np.save(folder / "labels.npy", np.array([{}] * 6, object), allow_pickle=True)
    text = (folder / "checksums.json").read_text()
    whole = hashlib.sha256((folder / "labels.npy").read_bytes()).hexdigest()
    (folder / "checksums.json").write_text(re.sub(r'("labels.npy": ")\w+', rf"\g<1>{whole}", text))
    assert_is(tokenize_imdb("train", archive, cache=cache), load_imdb("train", archive))
    assert built == [6, 6]


@pytest.mark.parametrize("full", [1, 2, 3, 4, 5])
def test_a_disk_that_fills_up_leaves_nothing_and_is_named_with_the_mend(archive, cache, monkeypatch, full):
    written = []

    def until_full(write):
        def writing(path, *args, **options):
            written.append(path.name)
            write(path, *args, **options)
            if len(written) == full:
                os.truncate(path, 10)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        return writing

    with monkeypatch.context() as patch:
        patch.setattr(companion.corpus.np, "save", until_full(np.save))
        patch.setattr(Path, "write_bytes", until_full(Path.write_bytes))
        patch.setattr(Path, "write_text", until_full(Path.write_text))
        with pytest.raises(
            OSError,
            match=re.escape(str(cache)) + r"/imdb-train-\w+ cannot be written \(No space left on device\); "
            "make room or let COMPANION_CACHE name another folder",
        ):
            tokenize_imdb("train", archive, cache=cache)
    assert written == ["numbers.npy", "bounds.npy", "labels.npy", "lexicon.txt", "checksums.json"][:full]
    assert listing(cache) == {}
    assert_is(tokenize_imdb("train", archive, cache=cache), load_imdb("train", archive))


def test_a_damaged_cache_on_a_full_disk_is_an_error_too(archive, cache, monkeypatch):
    tokenize_imdb("train", archive, cache=cache)
    (folder,) = cache.iterdir()
    flip_a_bit(folder / "labels.npy")

    def full(*args, **options):
        raise OSError("28 requested and 3 written")  # as numpy says it

    monkeypatch.setattr(companion.corpus.np, "save", full)
    with pytest.raises(OSError, match=r"cannot be written \(28 requested and 3 written\); make room"):
        tokenize_imdb("train", archive, cache=cache)
    assert [path.name for path in cache.iterdir()] == [folder.name]


def test_a_file_in_the_place_of_the_cache_is_named(archive, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match=re.escape(f"{tmp_path / 'file'}/imdb-train-") + r"\w+ cannot be written"):
        tokenize_imdb("train", archive, cache=tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("damaged", [False, True])
def test_a_process_that_is_slower_takes_its_own_and_leaves_the_others(archive, cache, monkeypatch, damaged):
    """While one process writes, another finishes: between the last look at the folder and the renaming."""
    if damaged:
        tokenize_imdb("train", archive, cache=cache)
        flip_a_bit(next(cache.iterdir()) / "labels.npy")
    rmtree, seen = shutil.rmtree, []

    def overtaken(path, **options):
        rmtree(path, **options)
        if not seen and Path(path).parent == cache:
            seen.append(path)
            tokenize_imdb("train", archive, cache=cache)

    monkeypatch.setattr(companion.corpus.shutil, "rmtree", overtaken)
    assert_is(tokenize_imdb("train", archive, cache=cache), load_imdb("train", archive))
    assert len(seen) == 1
    (folder,) = cache.iterdir()
    assert set(listing(folder)) == FILES
    assert_is(TokenizedCorpus.load(folder), load_imdb("train", archive))


def _tokenize_together(barrier, archive, cache, answers) -> None:
    barrier.wait()
    corpus = tokenize_imdb("train", archive, cache=cache)
    answers.put((tokens_of(corpus), corpus.labels))


def test_processes_that_begin_at_once_all_get_the_corpus(tmp_path, cache):
    files = {f"train/{('neg', 'pos')[label]}/{n}_1.txt": text for n, (text, label) in enumerate(toy.reviews(2_000))}
    archive = write_archive(tmp_path / "aclImdb.tar.gz", files)
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(4), context.Queue()
    processes = [context.Process(target=_tokenize_together, args=(barrier, archive, cache, answers)) for _ in range(4)]
    for process in processes:
        process.start()
    found = [answers.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    reviews = load_imdb("train", archive)
    expected = [WordTokenizer()(review.text) for review in reviews], [review.label for review in reviews]
    assert all(one == expected for one in found)
    (folder,) = cache.iterdir()
    assert set(listing(folder)) == FILES


@pytest.mark.parametrize(
    ("root", "split", "named"),
    [
        ("nowhere", "train", "does not exist"),
        ("cut.tar.gz", "train", "is not a whole"),
        ("cut.tar.gz", "dev", "split="),
    ],
)
@pytest.mark.unhooked
def test_bad_data_is_refused_as_by_load_imdb_and_leaves_no_cache(tmp_path, archive, cache, root, split, named):
    (tmp_path / "cut.tar.gz").write_bytes(archive.read_bytes()[:-20])
    with pytest.raises((ValueError, FileNotFoundError), match=named) as raised:
        tokenize_imdb(split, tmp_path / root, cache=cache)
    with pytest.raises(raised.type, match=re.escape(str(raised.value))):
        load_imdb(split, tmp_path / root)
    assert not cache.exists()


def test_the_real_reviews_get_the_ids_of_before(tmp_path):
    """The ids of torchtext's own tokenizer and of a count of lists, as `companion train imdb` used to make them."""
    from torchtext.data import get_tokenizer
    from torchtext.vocab import Vocab

    if not Path(DATA).exists():
        pytest.skip(f"no IMDB reviews: set COMPANION_DATA, or put the archive at {DATA}")
    tokenize = get_tokenizer("basic_english")
    kept, dev = hold_out(load_imdb("train", DATA))
    texts = [tokenize(review.text)[:1_024] for review in kept]
    expected = Vocab(Counter(token for tokens in texts for token in tokens), 9_998, specials=["<pad>", "<unk>"])

    for _ in range(2):  # made, and then from the cache
        corpus = tokenize_imdb("train", DATA, cache=tmp_path).truncate(1_024)
        training, held_out = corpus.hold_out()
        vocabulary = training.build_vocabulary(max_size=10_000)
        assert vocabulary.decode(range(len(vocabulary))) == expected.itos
        assert list(map(list, training.encode(vocabulary))) == [
            [expected[token] for token in tokens] for tokens in texts
        ]
        assert training.labels == [review.label for review in kept]
        assert list(map(list, held_out.encode(vocabulary))) == [
            [expected[token] for token in tokenize(review.text)[:1_024]] for review in dev
        ]
