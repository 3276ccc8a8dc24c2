"""Text: tokenizers, a vocabulary, and pre-trained vectors of its words."""

import contextlib
import hashlib
import io
import os
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float
from sentencepiece import SentencePieceNormalizer, SentencePieceProcessor, SentencePieceTrainer
from torch import Tensor

from companion.files import atomic_path
from companion.imdb import Review as Review
from companion.imdb import hold_out as hold_out
from companion.imdb import load_imdb as load_imdb


class WordTokenizer:
    """Split English text into lower-case words and punctuation, as torchtext's ``basic_english`` does, but faster.

    Attributes:
        fingerprint: What names the tokenizer and its settings in the cache of `tokenize_imdb`.

    Example:
        >>> WordTokenizer()("It's good, not bad!<br />")
        ['it', "'", 's', 'good', ',', 'not', 'bad', '!']
    """

    fingerprint = "basic_english"

    def __call__(self, text: str) -> list[str]:
        """Return the tokens of ``text``, an empty list where it has none."""
        text = text.lower().replace('"', "").replace("<br />", " ").replace(";", " ").replace(":", " ")
        for mark in "'.,()!?":
            text = text.replace(mark, f" {mark} ")
        return text.split()


class SentencePieceTokenizer:
    """Split text into pieces of words as ALBERT does (Lan et al., 2020), with a SentencePiece model (Kudo, 2018).

    Accents and capitals are dropped, two backticks or apostrophes become ``"``, the model's own rules for characters
    follow, and each word is split into its likeliest pieces. The ids are those of transformers' ``AlbertTokenizer`` for
    the same file; as there, a piece such as ``9,`` stays whole, which Google's code splits again. In a text, ``[MASK]``
    is text like any other. `load` and `train` make a tokenizer.

    Args:
        model: The model, a unigram one; padding has id 0, the unknown piece id 1.

    Attributes:
        vocabulary: Its pieces in the order of their ids.
        continues_word: Bool, ``(vocabulary,)``: which pieces go on with a word that another piece began. A piece
            without a letter or a digit, such as a comma, is a word of its own.
        fingerprint: What names the tokenizer and its settings in the cache of `tokenize_imdb`.

    Raises:
        ValueError: If padding and the unknown piece have other ids, or the model is no unigram model.

    Example:
        >>> texts = [review.text for review in toy.reviews(500)]
        >>> tokenizer = SentencePieceTokenizer.train(texts, vocab_size=60, path="spiece.model")
        >>> "".join(tokenizer("Thé  Plot"))
        '▁the▁plot'
        >>> tokenizer.decode(tokenizer.encode("Thé  Plot")), len(tokenizer.vocabulary)
        ('the plot', 60)
        >>> tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id
        (2, 3, 4)

        Whole words can be masked:

        >>> continues = tokenizer.continues_word[tokenizer.encode("Thé Plot")]
        >>> (~continues).sum()  # begin a word
        tensor(2)
    """

    CLS, SEP, MASK = "[CLS]", "[SEP]", "[MASK]"

    def __init__(self, model: SentencePieceProcessor) -> None:
        ids = model.pad_id(), model.unk_id()
        if ids != (0, 1):
            raise ValueError(f"its ids of padding and the unknown piece are {ids}; expected (0, 1)")
        try:
            model.NBestEncodeAsIds("", nbest_size=1)
        except RuntimeError as error:
            raise ValueError("it is not a unigram model, as ALBERT's is; train one") from error
        proto = model.serialized_model_proto()
        rules = SentencePieceNormalizer(
            model_proto=proto, add_dummy_prefix=False, escape_whitespaces=False, remove_extra_whitespaces=False
        )
        pieces = [model.IdToPiece(index) for index in range(len(model))]
        special = [model.IsControl(index) or model.IsUnknown(index) for index in range(len(model))]
        lowest = min(model.GetScore(index) for index in range(len(model)))
        self._model = model
        self._characters = _Characters(rules.Normalize)
        self._id_of = {piece: index for index, piece in enumerate(pieces) if not special[index]}
        score_of = {piece: model.GetScore(index) for piece, index in self._id_of.items()}
        longest = max(map(len, score_of))
        self._split = lru_cache(_WORDS_KEPT)(partial(_likeliest_pieces, score_of, longest, lowest - _UNKNOWN_PENALTY))
        self.vocabulary = Vocabulary([Vocabulary.PAD, Vocabulary.UNKNOWN, *pieces[2:]])
        self.continues_word = torch.tensor([self._continues(piece) for piece in pieces])
        self.fingerprint = f"albert {hashlib.sha256(proto).hexdigest()}"

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, path: str | os.PathLike[str]) -> "SentencePieceTokenizer":
        """Train a model as ALBERT's: ``[CLS]``, ``[SEP]`` and ``[MASK]`` have ids 2, 3, 4; same texts, same model.

        Args:
            texts: The training texts.
            vocab_size: The most pieces, those with ids 0 to 4 included; a small corpus gives fewer.
            path: The file to write the model to, atomically.

        Returns:
            The tokenizer.

        Raises:
            ValueError: If ``vocab_size`` has no room for the characters of the texts, or there are no texts.
        """
        written = io.BytesIO()
        try:
            SentencePieceTrainer.train(  # torchtext's generate_sp_model knows no ids, and fails with SentencePiece 0.2
                sentence_iterator=map(_Characters(str).replace_in, texts),
                model_writer=written,
                vocab_size=vocab_size,
                hard_vocab_limit=False,
                normalization_rule_name="nmt_nfkc",
                max_sentence_length=1_000_000,
                pad_id=0,
                unk_id=1,
                bos_id=-1,
                eos_id=-1,
                control_symbols=[cls.CLS, cls.SEP, cls.MASK],
                minloglevel=2,
            )
        except RuntimeError as error:
            raise ValueError(f"vocab_size={vocab_size} does not do for these texts: {error}") from error
        with atomic_path(path) as temporary:
            temporary.write_bytes(written.getvalue())
        return cls.load(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "SentencePieceTokenizer":
        """Read a model.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is not a unigram model with padding at 0 and the unknown piece at 1.
        """
        from torchtext.data.functional import load_sp_model

        if not Path(path).is_file():
            raise FileNotFoundError(f"{path} does not exist; name a SentencePiece model")
        try:
            return cls(load_sp_model(os.fspath(path)))
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{path} is no SentencePiece model that would do: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model, atomically."""
        with atomic_path(path) as temporary:
            temporary.write_bytes(self._model.serialized_model_proto())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SentencePieceTokenizer) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __call__(self, text: str) -> list[str]:
        """Return the pieces of ``text``; one that begins a word begins with ``▁``."""
        words = self._characters.replace_in(text).split()
        return [piece for word in words for piece in self._split(word)]

    def encode(self, text: str) -> list[int]:
        """Return the ids of the pieces of ``text``, without ``[CLS]`` and ``[SEP]``."""
        return [self._id_of.get(piece, 1) for piece in self(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids, as it was split; an unknown piece becomes ``⁇``, ``[CLS]`` and its like nothing.

        Raises:
            IndexError: If an id is past the vocabulary.
        """
        return self._model.DecodeIds(list(ids))

    @property
    def cls_id(self) -> int:
        """The id of ``[CLS]``, with which an input begins; a `ValueError` if the model has no such piece."""
        return self._special_id(self.CLS)

    @property
    def sep_id(self) -> int:
        """The id of ``[SEP]``, with which a segment ends; a `ValueError` if the model has no such piece."""
        return self._special_id(self.SEP)

    @property
    def mask_id(self) -> int:
        """The id of ``[MASK]``, which stands for a piece to guess; a `ValueError` if the model has no such piece."""
        return self._special_id(self.MASK)

    def _continues(self, piece: str) -> bool:
        return not piece.startswith(_SPACE) and piece in self._id_of and any(map(str.isalnum, piece))

    def _special_id(self, piece: str) -> int:
        if piece not in self.vocabulary:
            raise ValueError(
                f"the SentencePiece model has no piece {piece}; `SentencePieceTokenizer.train` makes one that has"
            )
        return self._model.PieceToId(piece)


class _Characters(dict[int, str]):
    """What becomes of each character, by its code point: a table for `str.translate` that grows as characters come.

    A character's neighbours do not matter: a capital sigma at the end of a word becomes σ, a Korean syllable stays
    decomposed. That is what transformers makes of it, but for marks newer than Unicode 9, which it does not drop.
    """

    def __init__(self, rules: Callable[[str], str]) -> None:
        super().__init__()
        self._rules = rules  # of a SentencePiece model

    def __missing__(self, code: int) -> str:
        letters = [part for part in unicodedata.normalize("NFKD", chr(code)) if unicodedata.category(part)[0] != "M"]
        self[code] = "".join(self._rules(letter.lower()) for letter in letters)
        return self[code]

    def replace_in(self, text: str) -> str:
        return text.replace("``", '"').replace("''", '"').translate(self)


_SPACE = "\u2581"
"""What a piece that begins a word begins with."""

_UNKNOWN_PENALTY = 10.0
"""How much lower an unknown character scores than any piece, as in SentencePiece."""

_WORDS_KEPT = 1 << 17
"""Words whose pieces are remembered."""


def _likeliest_pieces(score_of: Mapping[str, float], longest: int, unknown: float, word: str) -> list[str]:
    """Find the pieces of a word with the highest total score (Viterbi); of equals, those whose last piece is longest.

    SentencePiece's own search adds up in float32, whose rounding decides between equals such as ``-`` + ``--`` and
    ``--`` + ``-``. In float64 the sums are exact.
    """
    word = _SPACE + word
    totals, starts = [0.0], [0]  # of the best path to each place: score, and where its last piece starts
    for end in range(1, len(word) + 1):
        best, best_start = totals[-1] + score_of.get(word[end - 1], unknown), end - 1
        for start in range(end - 2, max(0, end - longest) - 1, -1):
            score = score_of.get(word[start:end])
            if score is not None and totals[start] + score >= best:
                best, best_start = totals[start] + score, start
        totals.append(best)
        starts.append(best_start)
    pieces: list[str] = []
    end = len(word)
    while end:
        piece = word[starts[end] : end]
        if pieces and piece not in score_of and pieces[-1] not in score_of:
            pieces[-1] = piece + pieces[-1]  # unknown characters side by side are one piece
        else:
            pieces.append(piece)
        end = starts[end]
    return pieces[::-1]


Tokenizer = WordTokenizer | SentencePieceTokenizer
"""What splits a text into tokens. ``tokenizer(text)`` is a list of strings; ``tokenizer.fingerprint`` names it."""


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
        counts = Counter(token for tokens in texts for token in tokens)
        return cls.from_counts(counts, max_size=max_size, min_count=min_count)

    @classmethod
    def from_counts(cls, counts: Mapping[str, int], *, max_size: int | None = None, min_count: int = 1) -> "Vocabulary":
        """Do as `build` does, with tokens that are counted already.

        Args:
            counts: How often each token stands in the training texts.
            max_size: As in `build`.
            min_count: As in `build`.

        Returns:
            The vocabulary, most frequent token at id 2.

        Raises:
            ValueError: As in `build`.
        """
        if max_size is not None and max_size < 2:
            raise ValueError(f"max_size={max_size} has no room for {cls.PAD} and {cls.UNKNOWN}; choose 2 or more")
        if min_count < 1:
            raise ValueError(f"min_count={min_count}; choose 1 or more")
        from torchtext.vocab import Vocab

        room = None if max_size is None else max_size - 2
        return cls(Vocab(Counter(counts), room, min_count, specials=[cls.PAD, cls.UNKNOWN]).itos)

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


def load_vectors(path: str | os.PathLike[str], vocabulary: Vocabulary) -> Float[Tensor, "vocabulary d"]:
    """Read pre-trained word vectors, such as GloVe's (Pennington et al., 2014), for a vocabulary.

    Args:
        path: A text file, or a ``.gz`` of it: on each line a token and its numbers, three or more.
        vocabulary: Whose tokens to look up.

    Returns:
        float32, a row for each token; padding and a token without a vector get zeros.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file holds anything else, a number that is not finite, or none of the tokens.

    Example:
        >>> from pathlib import Path
        >>> _ = Path("vectors.txt").write_text("good 1 2 3", encoding="utf-8")
        >>> load_vectors("vectors.txt", Vocabulary.build([["good", "film"]]))
        tensor([[0., 0., 0.],
                [0., 0., 0.],
                [0., 0., 0.],
                [1., 2., 3.]])
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist; name a text file of word vectors")
    row_of, rows = _read_vectors(os.fspath(path))
    if not rows.isfinite().all():
        raise ValueError(f"{path} holds a number that is not finite; fetch it again")
    tokens = vocabulary.decode(range(len(vocabulary)))
    found = [index for index, token in enumerate(tokens) if index > 0 and token in row_of]
    if not found:
        raise ValueError(f"{path} has a vector for none of the {len(tokens)} tokens; is it for other text?")
    vectors = torch.zeros(len(tokens), rows.size(1))
    vectors[found] = rows[[row_of[tokens[index]] for index in found]]
    return vectors


def _read_vectors(path: str) -> tuple[dict[str, int], Tensor]:
    """Let torchtext read the file, and undo what else it does: a pickle beside it, chatter, unchecked certificates."""
    import ssl

    from torchtext.vocab import Vectors

    https_context = ssl._create_default_https_context
    try:
        with tempfile.TemporaryDirectory() as cache, contextlib.redirect_stderr(io.StringIO()):
            vectors = Vectors(path, cache=cache)
    except (RuntimeError, ValueError, TypeError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} holds no word vectors, a token and its numbers on each line ({reason})") from error
    finally:
        ssl._create_default_https_context = https_context
    return cast(tuple[dict[str, int], Tensor], (vectors.stoi, vectors.vectors))
