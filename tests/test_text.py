import functools
import gzip
import hashlib
import os
import re
import ssl
import tempfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tqdm import tqdm

from companion import toy
from companion.text import SentencePieceTokenizer, Vocabulary, WordTokenizer, load_imdb, load_vectors

DATA = os.environ.get("COMPANION_DATA") or Path(__file__).parents[2] / "shared" / "data" / "aclImdb_v1.tar.xz"


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Good film", ["good", "film"]),
        ("It's GOOD, not bad!", ["it", "'", "s", "good", ",", "not", "bad", "!"]),
        ("Is this (really) a film?", ["is", "this", "(", "really", ")", "a", "film", "?"]),
        ("one<br />two<br /><br />three", ["one", "two", "three"]),
        ('He said "no": fine; next...', ["he", "said", "no", "fine", "next", ".", ".", "."]),
        ("well-made, 10/10", ["well-made", ",", "10/10"]),
        ("Été\u00a0à  Paris\n\tagain", ["été", "à", "paris", "again"]),
        ("", []),
        (" \n\t ", []),
        ("<br />", []),
    ],
)
def test_word_tokenizer(text, tokens):
    assert WordTokenizer()(text) == tokens


# Tags cut by marks, quotes within tags, odd spaces, letters whose lower case is longer.
ODD = "'\".,()!?;:<>/ brBR\n\t\x1c\x85\u00a0\u2003\u2028\ufeff\u200bİßΣſ"
nasty = st.lists(
    st.sampled_from(["<br />", "<BR />", "<br", "/>", *ODD]) | st.characters(exclude_categories=["Cs"])
).map("".join)


@given(text=nasty)
@example(text='<br" />')
@example(text="<br' />")
@example(text="<br;/>")
@example(text="<br:/>")
@example(text="<br<br /> />")
def test_word_tokenizer_is_torchtexts_basic_english(text):
    from torchtext.data import get_tokenizer

    assert WordTokenizer()(text) == get_tokenizer("basic_english")(text)


def test_word_tokenizer_is_torchtexts_on_the_real_reviews():
    from torchtext.data import get_tokenizer

    if not Path(DATA).exists():
        pytest.skip(f"no IMDB reviews: set COMPANION_DATA, or put the archive at {DATA}")
    tokenize, expected = WordTokenizer(), get_tokenizer("basic_english")
    reviews = load_imdb("test", DATA)
    assert len(reviews) == 25_000
    for text, _ in reviews:
        assert tokenize(text) == expected(text)


TEXTS = [review.text for review in toy.reviews(400)]


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    path = tmp_path_factory.mktemp("pieces") / "spiece.model"
    return SentencePieceTokenizer.train(TEXTS, 60, path), path


@pytest.mark.parametrize("text", ["the plot was good, not bad at all.", "漢字 deja vu 😀", "", " \n", "<pad> <unk>"])
def test_pieces_and_ids_are_sentencepieces_own(pieces, text):
    from sentencepiece import SentencePieceProcessor

    tokenizer, path = pieces
    model = SentencePieceProcessor(model_file=str(path))
    assert tokenizer(text) == model.encode(text, out_type=str)
    assert tokenizer.encode(text) == model.encode(text, out_type=int)
    assert tokenizer.decode(tokenizer.encode(text)) == model.decode(model.encode(text))


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_the_vocabulary_of_pieces_gives_the_same_ids(pieces, text):
    tokenizer, _ = pieces
    assert tokenizer.vocabulary.encode(tokenizer(text)) == tokenizer.encode(text)
    assert 0 not in tokenizer.encode(text)


def test_pieces_have_the_ids_of_the_models(pieces):
    tokenizer, _ = pieces
    assert len(tokenizer.vocabulary) == 60
    assert tokenizer.vocabulary.decode([0, 1]) == ["<pad>", "<unk>"]
    assert tokenizer.encode("漢") == [*tokenizer.vocabulary.encode(["▁"]), 1]
    for text in TEXTS:
        assert 1 not in tokenizer.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text.lower()


def test_decode_refuses_an_id_past_the_pieces(pieces):
    with pytest.raises(IndexError):
        pieces[0].decode([2, 60])


def test_cases_accents_and_quotes_are_folded(pieces):
    assert pieces[0]("THE  Plót’ ``ﬁlm''") == pieces[0]('the plot’ "film"')


def test_training_folds_what_encoding_folds(pieces, tmp_path):
    texts = [text.upper().replace("A", "Ä").replace("E", "e\u0301") for text in TEXTS]
    SentencePieceTokenizer.train(texts, 60, tmp_path / "upper.model")
    assert (tmp_path / "upper.model").read_bytes() == pieces[1].read_bytes()


def test_the_same_texts_give_the_same_model_and_others_another_one(pieces, tmp_path):
    tokenizer, path = pieces
    again = SentencePieceTokenizer.train(iter(TEXTS), 60, tmp_path / "again.model")
    assert (tmp_path / "again.model").read_bytes() == path.read_bytes()
    assert (again, hash(again)) == (tokenizer, hash(tokenizer))
    other = SentencePieceTokenizer.train(TEXTS, 50, tmp_path / "other.model")
    assert other != tokenizer
    assert other.fingerprint != tokenizer.fingerprint
    assert tokenizer != tokenizer.fingerprint


def test_a_cache_of_tokens_with_accents_stays_aside(pieces):
    """Until accents were dropped, the fingerprint was the digest of the model."""
    tokenizer, path = pieces
    assert tokenizer.fingerprint != hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_saved_model_comes_back_equal(pieces, tmp_path):
    tokenizer, path = pieces
    tokenizer.save(tmp_path / "copy.model")
    assert (tmp_path / "copy.model").read_bytes() == path.read_bytes()
    loaded = SentencePieceTokenizer.load(tmp_path / "copy.model")
    assert loaded == tokenizer
    assert [loaded.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]


def test_a_small_corpus_gives_fewer_pieces_than_allowed(tmp_path):
    tokenizer = SentencePieceTokenizer.train(TEXTS, 30_000, tmp_path / "spiece.model")
    assert 60 < len(tokenizer.vocabulary) < 1_000


def test_a_long_text_is_trained_on_too(tmp_path):
    """SentencePiece leaves lines of more than 4,192 bytes out unless it is told otherwise."""
    tokenizer = SentencePieceTokenizer.train([*TEXTS, "zebra " * 1_000], 80, tmp_path / "spiece.model")
    assert 1 not in tokenizer.encode("zebra")


@pytest.mark.parametrize(
    ("texts", "vocab_size", "reason"), [(TEXTS, 9, "Vocabulary size is smaller"), ([], 60, ""), ([""], 60, "")]
)
def test_texts_without_room_for_their_characters_are_refused(tmp_path, texts, vocab_size, reason, capfd):
    with pytest.raises(ValueError, match=f"vocab_size={vocab_size} does not do for these texts: .*{reason}"):
        SentencePieceTokenizer.train(texts, vocab_size, tmp_path / "spiece.model")
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def train_by_hand(path, **settings):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_prefix=str(path.with_suffix("")), vocab_size=60, minloglevel=2, **settings
    )


IDS = {"pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1}


def test_a_model_without_special_pieces_does_too(tmp_path):
    """Those trained before there were any, for instance."""
    from sentencepiece import SentencePieceProcessor

    path = tmp_path / "spiece.model"
    train_by_hand(path, **IDS, normalization_rule_name="nmt_nfkc_cf")
    tokenizer, model = SentencePieceTokenizer.load(path), SentencePieceProcessor(model_file=str(path))
    for text in TEXTS:
        assert tokenizer.encode(text) == model.encode(text)
    assert tokenizer.continues_word.tolist() == [
        index > 1 and model.id_to_piece(index).isalnum() for index in range(60)
    ]
    for name, piece in (("cls_id", "[CLS]"), ("sep_id", "[SEP]"), ("mask_id", "[MASK]")):
        message = f"has no piece {piece}; `SentencePieceTokenizer.train` makes one that has"
        with pytest.raises(ValueError, match=re.escape(message)):
            getattr(tokenizer, name)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.write_bytes(b""), ""),
        (lambda path: path.write_bytes(b"not a model"), ""),
        (lambda path: path.write_bytes(path.read_bytes()[:199]), ""),
        (train_by_hand, r"its ids of padding and the unknown piece are (-1, 0); expected (0, 1)"),
        (functools.partial(train_by_hand, **IDS, model_type="bpe"), "it is not a unigram model, as ALBERT's is; train"),
    ],
    ids=["empty", "text", "cut", "other ids", "pairs of bytes"],
)
def test_a_file_that_is_no_such_model_is_named(pieces, tmp_path, damage, reason, capfd):
    path = tmp_path / "spiece.model"
    pieces[0].save(path)
    damage(path)
    with pytest.raises(ValueError, match=re.escape(f"{path} is no SentencePiece model that would do: {reason}")):
        SentencePieceTokenizer.load(path)
    assert capfd.readouterr().err == ""


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(f"{tmp_path / 'no.model'} does not exist")):
        SentencePieceTokenizer.load(tmp_path / "no.model")


VECTORS = "the 0.5 -1 2e-3\nfilm 1 2 3\n<pad> 7 7 7\n<unk> 4 5 6\ndéjà -0.25 0 9\n"
EXPECTED = [[0, 0, 0], [4, 5, 6], [1, 2, 3], [0, 0, 0], [-0.25, 0, 9], [0.5, -1, 2e-3]]
WORDS = Vocabulary(["<pad>", "<unk>", "film", "unheard", "déjà", "the"])


@pytest.mark.parametrize("header", ["", "5 3\n"])
@pytest.mark.parametrize("name", ["vectors.txt", "vectors.vec", "vectors.gz"])
def test_vectors_stand_in_the_rows_of_their_tokens(tmp_path, capfd, monkeypatch, header, name):
    monkeypatch.setattr("torchtext.vocab.tqdm", functools.partial(tqdm, disable=False))
    path = tmp_path / name
    content = (header + VECTORS).encode()
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    vectors = load_vectors(path, WORDS)
    assert vectors.dtype == torch.float32
    assert torch.equal(vectors, torch.tensor(EXPECTED))
    assert capfd.readouterr() == ("", "")


def test_reading_vectors_leaves_no_pickle_and_certificates_checked(tmp_path, monkeypatch):
    """Torchtext's reader writes a pickle and switches the check of certificates off for the whole process."""
    path = tmp_path / "vectors.txt"
    path.write_text(VECTORS, "utf-8")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "load", None)
    load_vectors("vectors.txt", WORDS)
    path.write_text("damaged", "utf-8")
    with pytest.raises(ValueError, match=r"vectors\.txt"):
        load_vectors("vectors.txt", WORDS)
    assert ssl._create_default_https_context is ssl.create_default_context
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["temporary", "vectors.txt"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "holds no word vectors"),
        (b"\n\n", "holds no word vectors"),
        (b"film\n", "holds no word vectors"),
        (b"film 1 2\n", "holds no word vectors"),
        (b"5 3\n", "holds no word vectors"),
        (b"film 1 2 3\nthe 1 2\n", "holds no word vectors.*has 2 dimensions, but"),
        (b"film 1 2 3\nthe 1 2 3 4\n", "holds no word vectors.*has 4 dimensions, but"),
        (b"film 1 2 3\n\nthe 1 2 3\n", "holds no word vectors"),
        (b"film good bad ugly\n", "holds no word vectors.*could not convert"),
        (bytes(range(256)) * 40, "holds no word vectors"),
        (gzip.compress(VECTORS.encode()), "holds no word vectors"),
        (b"film 1 nan 3\n", "holds a number that is not finite"),
        (b"film 1 inf 3\n", "holds a number that is not finite"),
        (b"pomme 1 2 3\n", "has a vector for none of the 6 tokens"),
        (b"<pad> 1 2 3\n", "has a vector for none of the 6 tokens"),
    ],
)
@pytest.mark.parametrize("name", ["vectors.txt", "vectors.gz"])
def test_a_file_of_anything_else_is_named(tmp_path, capfd, content, reason, name):
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    with pytest.raises(ValueError, match=re.escape(str(path)) + f" {reason}") as raised:
        load_vectors(path, WORDS)
    assert len(str(raised.value).splitlines()) == 1
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("cut", [1, 20, -4])
def test_a_cut_archive_of_vectors_is_named(tmp_path, cut):
    path = tmp_path / "vectors.gz"
    path.write_bytes(gzip.compress(VECTORS.encode())[:cut])
    with pytest.raises(ValueError, match=re.escape(f"{path} holds no word vectors")):
        load_vectors(path, WORDS)


def test_missing_vectors_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(f"{tmp_path / 'no.txt'} does not exist")):
        load_vectors(tmp_path / "no.txt", WORDS)


def test_build_orders_by_count_and_then_by_the_alphabet():
    texts = [["b", "c", "c"], ["a", "d", "d", "c"], [], ["é", "B"]]
    expected = ["<pad>", "<unk>", "c", "d", "B", "a", "b", "é"]
    vocabulary = Vocabulary.build(iter(texts))
    assert vocabulary.decode(range(8)) == expected
    assert vocabulary.encode(expected) == list(range(8))
    assert len(vocabulary) == 8


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        ({"max_size": 2}, []),
        ({"max_size": 3}, ["c"]),
        ({"max_size": 5}, ["c", "b", "a"]),
        ({"max_size": 9}, ["c", "b", "a", "d"]),
        ({"min_count": 2}, ["c", "b"]),
        ({"min_count": 3}, ["c"]),
        ({"min_count": 4}, []),
        ({"max_size": 3, "min_count": 2}, ["c"]),
    ],
)
def test_build_keeps_within_its_limits(limits, kept):
    vocabulary = Vocabulary.build([["c", "c", "c", "b", "b", "d", "a"]], **limits)
    assert vocabulary == Vocabulary(["<pad>", "<unk>", *kept])


@given(st.lists(st.lists(st.sampled_from("abcdé"))), st.sampled_from([None, 2, 4]), st.integers(1, 3))
def test_counted_tokens_give_the_vocabulary_of_the_texts(texts, max_size, min_count):
    counts = dict(Counter(token for tokens in texts for token in tokens))
    limits = {"max_size": max_size, "min_count": min_count}
    assert Vocabulary.from_counts(counts, **limits) == Vocabulary.build(texts, **limits)
    assert counts == Counter(token for tokens in texts for token in tokens)


def test_build_does_not_count_the_specials_that_stand_in_a_text():
    vocabulary = Vocabulary.build([["<pad>", "<unk>", "<unk>", "a", "b", "b"]])
    assert vocabulary == Vocabulary(["<pad>", "<unk>", "b", "a"])
    assert vocabulary.encode(["<pad>", "<unk>"]) == [0, 1]


tokens = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"))


@given(known=st.sets(tokens), looked_up=st.lists(tokens))
def test_looking_up_never_changes_a_vocabulary(known, looked_up):
    known = sorted(known - {"<pad>", "<unk>"})
    vocabulary = Vocabulary(["<pad>", "<unk>", *known])
    expected = [known.index(token) + 2 if token in known else int(token != "<pad>") for token in looked_up]
    for _ in range(2):
        assert vocabulary.encode(looked_up) == expected
        assert [token in vocabulary for token in looked_up] == [
            token in known or token in ("<pad>", "<unk>") for token in looked_up
        ]
    assert len(vocabulary) == len(known) + 2
    assert vocabulary == Vocabulary(["<pad>", "<unk>", *known])


@given(known=st.sets(tokens))
@example(known={"", "\x85", "\u2028", "\r", "\r\t", "\x0b", "\x1c", " ", "\ufeff", "😀"})
def test_a_saved_vocabulary_comes_back_equal(tmp_path_factory, known):
    path = tmp_path_factory.mktemp("vocabulary") / "vocabulary.txt"
    vocabulary = Vocabulary(["<pad>", "<unk>", *sorted(known - {"<pad>", "<unk>"})])
    vocabulary.save(path)
    loaded = Vocabulary.load(path)
    assert loaded == vocabulary
    assert loaded.decode(range(len(loaded))) == vocabulary.decode(range(len(vocabulary)))
    assert path.read_bytes().count(b"\n") == len(vocabulary)


def test_a_vocabulary_is_saved_as_one_token_a_line(tmp_path):
    Vocabulary(["<pad>", "<unk>", "très", "bon"]).save(tmp_path / "vocabulary.txt")
    assert (tmp_path / "vocabulary.txt").read_bytes() == "<pad>\n<unk>\ntrès\nbon\n".encode()


def test_vocabularies_are_equal_when_their_tokens_and_ids_are():
    one = Vocabulary(["<pad>", "<unk>", "a", "b"])
    assert one == Vocabulary.build([["a", "b"]])
    assert one != Vocabulary(["<pad>", "<unk>", "b", "a"])
    assert one != ["<pad>", "<unk>", "a", "b"]


def test_decode_refuses_an_id_past_the_vocabulary():
    with pytest.raises(IndexError):
        Vocabulary(["<pad>", "<unk>", "a"]).decode([2, 3])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], r"begins with <pad> and <unk>; got \[\]"),
        (["<unk>", "<pad>"], r"begins with <pad> and <unk>; got \['<unk>', '<pad>'\]"),
        (["<pad>", "<unk>", "a", "b", "a"], r"each token once; repeated: \['a'\]"),
        (["<pad>", "<unk>", "<pad>"], r"each token once; repeated: \['<pad>'\]"),
        (["<pad>", "<unk>", "a\nb"], r"no line break; got 'a\\nb'"),
    ],
)
def test_a_malformed_vocabulary_is_refused(tmp_path, words, message):
    with pytest.raises(ValueError, match=message):
        Vocabulary(words)


@pytest.mark.parametrize("content", [b"", b"the\na\n", b"<pad>\n<unk>\na\na\n", b"<pad>\n<unk>\n\xff\xfe\n"])
def test_a_file_that_is_not_a_vocabulary_is_named(tmp_path, content):
    path = tmp_path / "vocabulary.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{path} is not a vocabulary")):
        Vocabulary.load(path)


@pytest.mark.parametrize("limits", [{"max_size": 1}, {"max_size": -3}, {"min_count": 0}])
def test_build_names_a_limit_out_of_range(limits):
    ((name, value),) = limits.items()
    with pytest.raises(ValueError, match=f"{name}={value}.*choose|{name}={value} has no room"):
        Vocabulary.build([["a"]], **limits)
