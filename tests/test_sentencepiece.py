"""Pieces of words, against Hugging Face's ``transformers``: its ``AlbertTokenizer`` reads the very same file."""

import os
import random
import re
import sys
import unicodedata
from pathlib import Path

import pytest
import transformers
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from companion import toy
from companion.text import SentencePieceTokenizer, load_imdb

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

DATA = os.environ.get("COMPANION_DATA") or Path(__file__).parents[2] / "shared" / "data" / "aclImdb_v1.tar.xz"

# Later versions of Unicode have marks that `tokenizers`, which drops those of version 9, does not drop.
OLD = [
    character
    for character in map(chr, range(sys.maxunicode + 1))
    if unicodedata.ucd_3_2_0.category(character) not in ("Cn", "Co", "Cs")
]
TEXT = """
    the The THE a film movie Movie's don't well-made 10/10 (really) great! <br /> naïve café CAFÉ Señor façade Ångström
    straße STRASSE ΟΔΟΣ Σίσυφος İstanbul ısı Ǆ ǅ ŉ ſ ﬁlm eﬀect cafe\u0301 a\u0308\u0323 Ёлка Й שָׁלוֹם मूवी ไทยกำ ½ ² ™ ℃
    漢字 仮名 かな カナ が か\u3099 ｶﾞ 映画 한국어 각 값이 ㄱ ❤\ufe0f 👍🏽 👨\u200d👩\u200d👧
    🇬🇧 1\ufe0f\u20e3 soft\u00adhyphen … – —
"""
WORDS = TEXT.split()
RARE = TEXT + "\0\x01\x08\x1b\x1c\x1f\x7f\x8f\x9f\u034f\u200c\u200d\u2060\ufe0f\ufff9\ufffd<>[]`'´"
SPACES = [*" " * 40, *"\t\n\r\x0b\x0c\x85\xa0\u1680\u2009\u2028\u2029\u3000\u200b\u200e\ufeff\u2581", "  ", "\r\n"]
QUOTES = ["``{}''", "''{}''", "```{}'''", "“{}”", "‘{}’,", "'{}'", '"{}".', "´{}`", "«{}»", "({})", "[{}]"]


def lines(n, seed, kinds=8):
    """Write lines with accents, cases, digits and commas, quotes, runs of one mark, odd spaces, CJK and the rest."""
    draw = random.Random(seed)

    def letters(kind, least, most):
        return "".join(draw.choices(kind, k=draw.randint(least, most)))

    def token():
        kind = draw.randrange(kinds)
        if kind == 0:
            return letters("0123456789,,.", 1, 9)
        if kind == 1:
            return draw.choice(QUOTES).format(draw.choice(WORDS))
        if kind == 2:
            return draw.choice("-.!?*_ao0") * draw.randint(1, 30)
        if kind == 3:
            return letters(RARE, 1, 6)
        if kind == 7:
            return letters(OLD, 1, 3)
        return draw.choice(WORDS)

    for _ in range(n):
        yield "".join(token() + draw.choice(["", draw.choice(SPACES), *" " * 4]) for _ in range(draw.randint(0, 20)))


@pytest.fixture(autouse=True)
def no_threads(monkeypatch):
    """A process that forks after `tokenizers` has started threads prints a warning."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("albert")
    texts = [*(review.text for review in toy.reviews(500)), *lines(2_000, seed=1, kinds=7)]
    return SentencePieceTokenizer.train(texts, 1_000, folder / "spiece.model"), theirs(folder)


def theirs(folder):
    assert [path.name for path in folder.iterdir()] == ["spiece.model"]
    return transformers.AlbertTokenizer.from_pretrained(folder)


def differing(texts, ours, theirs):
    """Compare ids, and find the texts where they differ."""
    expected = theirs(texts, add_special_tokens=False)["input_ids"]
    return [text for text, ids in zip(texts, expected, strict=True) if ours.encode(text) != ids]


def test_ten_thousand_odd_lines_get_the_ids_of_transformers(both):
    ours, theirs = both
    texts = list(lines(10_000, seed=2))
    assert differing(texts, ours, theirs) == []
    pieces = [piece for text in texts for piece in ours(text)]
    assert {"7,", "漢字", "▁映画", "ß", "σ", "ς", '▁"'} <= set(pieces)
    assert 0.01 < ours.vocabulary.encode(pieces).count(1) / len(pieces) < 0.2


def test_every_character_of_unicode_3_gets_the_ids_of_transformers(both):
    texts = [" ".join(f"{character}m{character}" for character in OLD[start::997]) for start in range(997)]
    assert differing(texts, *both) == []


def test_pieces_are_those_of_transformers(both):
    ours, theirs = both
    for text in lines(1_000, seed=3):
        assert ours(text) == theirs.tokenize(text)


def test_ten_thousand_beginnings_of_reviews_get_the_ids_of_transformers(tmp_path):
    if not Path(DATA).exists():
        pytest.skip(f"no IMDB reviews: set COMPANION_DATA, or put the archive at {DATA}")
    texts = [text[:400] for text, _ in load_imdb("train", DATA)]
    ours = SentencePieceTokenizer.train(texts[:2_000], 4_000, tmp_path / "spiece.model")
    assert differing(texts[-10_000:], ours, theirs(tmp_path)) == []


def test_an_unknown_character_is_the_last_resort(tmp_path):
    """All ways through a word have as many of them where each character of a piece is one too; here § is not."""
    words = ["bad", "dull", "fresh", "clever", "boring", "tedious", "dialogue", "neighbour", "convincing"]
    SentencePieceTrainer.train(
        sentence_iterator=iter([first + second for first in words for second in words]),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=400,
        control_symbols=["[CLS]", "[SEP]", "[MASK]"],
        user_defined_symbols=["§" + letter for letter in "bcdfnt"],
        **{"pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1, "hard_vocab_limit": False, "minloglevel": 2},
    )
    ours = SentencePieceTokenizer.load(tmp_path / "spiece.model")
    model = SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    scores = [(model.id_to_piece(index), model.get_score(index)) for index in range(len(model))]
    texts = ["§" + word for word in words]
    assert differing(texts, ours, transformers.AlbertTokenizer(vocab=scores)) == []


def test_an_input_of_two_segments_is_put_together_as_in_transformers(both):
    ours, theirs = both
    assert (ours.cls_id, ours.sep_id, ours.mask_id) == (2, 3, 4)
    assert ours.vocabulary.decode(range(5)) == ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
    assert theirs.convert_ids_to_tokens([ours.cls_id, ours.sep_id, ours.mask_id]) == [ours.CLS, ours.SEP, ours.MASK]
    first, second = ours.encode("The plot."), ours.encode("Not bad!")
    expected = theirs("The plot.", "Not bad!")["input_ids"]
    assert [ours.cls_id, *first, ours.sep_id, *second, ours.sep_id] == expected


@pytest.mark.parametrize("piece", ["<pad>", "<PAD>", "<unk>", "[CLS]", "[SEP]", "[MASK]", "＜pad＞"])
def test_the_name_of_a_special_piece_is_plain_text(both, piece):
    ours, theirs = both
    pieces = ours(f"a {piece} b")
    assert "".join(pieces) == f"▁a▁{unicodedata.normalize('NFKC', piece).lower()}▁b"
    ids = [index for index in ours.encode(f"a {piece} b") if index < 5]
    assert set(ids) <= {1}
    assert theirs.convert_tokens_to_ids(pieces) == ours.encode(f"a {piece} b")


def test_a_piece_continues_a_word_unless_it_begins_one_or_is_special(both):
    ours, theirs = both
    pieces = theirs.convert_ids_to_tokens(range(len(theirs)))
    assert len(pieces) == len(ours.vocabulary) == len(ours.continues_word)
    assert ours.continues_word[:5].tolist() == [False] * 5
    within = [piece[0] != "▁" and re.search(r"[^\W_]", piece) is not None for piece in pieces[5:]]
    assert ours.continues_word[5:].tolist() == within
    assert not ours.continues_word[pieces.index(",")]
    continues = ours.continues_word[ours.encode("A filmfilm , 10,000  cafés")]
    assert len(continues) > (~continues).sum() == 5


def test_decoding_leaves_special_pieces_out(both):
    ours, theirs = both
    ids = theirs("The plot, a film!", "“Naïve”")["input_ids"]
    assert ours.decode([0, *ids, 4, 0]) == "the plot, a film! “naive”"
    assert ours.decode([]) == ""
