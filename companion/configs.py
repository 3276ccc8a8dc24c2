"""Configs: the shape of each model, as frozen dataclasses that check themselves."""

import math
from dataclasses import dataclass
from numbers import Integral
from typing import Literal, get_args

from companion.feed_forward import Activation
from companion.layers import Norm

Positions = Literal["sinusoidal", "learned", "rotary", "alibi", "none"]

LARGEST_SIZE, MOST_LAYERS = 2**20, 1_000
"""Bounds of every size and of the layers, beyond what has been trained: only a damaged file asks for more."""


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """The shape of a `TextClassifier`.

    Attributes:
        vocab_size: Number of tokens; on the command line, the most that the vocabulary may hold.
        d_model: Width.
        num_heads: Attention heads a layer.
        d_ff: Inner width of the feed-forward networks.
        num_layers: Encoder layers; 0 leaves a bag of words, the mean of their embeddings.
        max_length: The longest input, in tokens.
        dropout: Dropout probability of the layers, as in `EncoderLayer`.
        attention_dropout: That of the attention weights; it keeps a CPU from the fused kernel.
        embedding_dropout: That of the embeddings.
        word_dropout: The probability with which training replaces a token by the unknown one.
        positions: How positions enter: added to the embeddings, ``"sinusoidal"`` or ``"learned"``; by turning queries
            and keys, ``"rotary"``; by biasing scores, ``"alibi"``; or ``"none"``.
        norm_first: Pre-norm instead of post-norm.
        activation: The feed-forward networks', as in `FeedForward`.
        pad_id: The id of padding.
        unknown_id: The id of the unknown token.

    Raises:
        ValueError: If a value is out of range; the message names the field and what would do.

    Example:
        >>> ClassifierConfig(d_model=64, num_heads=3)
        Traceback (most recent call last):
        ValueError: num_heads=3 does not divide d_model=64
    """

    vocab_size: int = 30_000
    d_model: int = 64
    num_heads: int = 2
    d_ff: int = 256
    num_layers: int = 1
    max_length: int = 512
    dropout: float = 0.1
    attention_dropout: float = 0.0
    embedding_dropout: float = 0.1
    word_dropout: float = 0.0
    positions: Positions = "learned"
    norm_first: bool = False
    activation: Activation = "gelu"
    pad_id: int = 0
    unknown_id: int = 1

    def __post_init__(self) -> None:
        check_positive(self, "vocab_size", "d_model", "num_heads", "d_ff", "max_length")
        check_layers(self, "num_layers")
        if self.num_layers < 0:
            raise ValueError(f"num_layers={self.num_layers}; choose 0 or more")
        _check_heads(self)
        check_probabilities(self, "dropout", "attention_dropout", "embedding_dropout", "word_dropout")
        check_ids(self, "vocab_size", "pad_id", "unknown_id")
        check_choices(self, positions=Positions, activation=Activation)

    @property
    def num_embeddings(self) -> int:
        """Rows of the embedding."""
        return self.vocab_size


@dataclass(frozen=True, kw_only=True)
class TokenClassifierConfig(ClassifierConfig):
    """The shape of a `TokenClassifier`: that of a classifier, and two settings more.

    Attributes:
        num_labels: Number of labels, 0 included, which marks what has none.
        causal: Each token sees only those up to itself, as in a language model.

    Raises:
        ValueError: If a value is out of range; the message names the field and what would do.

    Example:
        >>> TokenClassifierConfig(vocab_size=12, num_labels=0)
        Traceback (most recent call last):
        ValueError: num_labels=0; choose 1 or more
    """

    num_labels: int
    causal: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "num_labels")


@dataclass(frozen=True, kw_only=True)
class SpanConfig(ClassifierConfig):
    """The shape of a `SpanExtractor`: that of a classifier, and what parts question and text.

    Attributes:
        separator_id: The id of the token after which the text begins.

    Raises:
        ValueError: If a value is out of range; the message names the field and what would do.

    Example:
        >>> SpanConfig(vocab_size=12, separator_id=12)
        Traceback (most recent call last):
        ValueError: separator_id=12; choose 0 <= separator_id < vocab_size=12
    """

    separator_id: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ids(self, "vocab_size", "separator_id")
        if self.separator_id in (self.pad_id, self.unknown_id):
            taken = f"pad_id={self.pad_id} and unknown_id={self.unknown_id}"
            raise ValueError(f"separator_id={self.separator_id}; choose another one than {taken}")


@dataclass(frozen=True, kw_only=True)
class NGramConfig(ClassifierConfig):
    """The shape of an `NGramClassifier`: that of a classifier, and its table's.

    ``word_dropout`` is the probability with which training leaves out an n-gram.

    Attributes:
        max_n: The n-grams are those of 1 to ``max_n`` tokens.
        num_ngrams: Number of n-grams in the table.
        weighted: An n-gram's embedding is multiplied by the magnitude of its log-count ratio.

    Raises:
        ValueError: If a value is out of range; the message names the field and what would do.

    Example:
        >>> NGramConfig(num_ngrams=0)
        Traceback (most recent call last):
        ValueError: num_ngrams=0; choose 1 or more
    """

    max_n: int = 3
    num_ngrams: int = 1
    weighted: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "max_n")
        check_positive(self, "num_ngrams", largest=2**31)
        if self.vocab_size**self.max_n >= 2**63:
            raise ValueError(f"vocab_size={self.vocab_size} to the power of max_n={self.max_n} is past 64 bits")
        if self.pad_id != 0:
            raise ValueError(f"pad_id={self.pad_id}; choose 0, which keeps n-grams of different n apart")

    @property
    def num_embeddings(self) -> int:
        """Rows of the embedding: the first one, 0, stands for what is not in the table."""
        return self.num_ngrams + 1


@dataclass(frozen=True, kw_only=True)
class ArticleConfig:
    """The shape of an `ArticleClassifier`: the article's, and the pieces that it lacks, each of them off.

    Attributes:
        vocab_size: Number of tokens.
        d_model: Width.
        num_heads: Attention heads.
        head_dim: Width of a head; Keras's ``key_dim``.
        max_length: The longest input, in tokens.
        pad_id: The id of padding.
        unknown_id: The id of the unknown token.
        mask: Padding is neither attended to nor averaged.
        positions: The embeddings are multiplied by the root of their width and get sinusoids added, as in sections
            3.4 and 3.5 of Vaswani et al., 2017. (Without the product the sinusoids would be 25 times as large.)
        residual_norm: A residual connection with LayerNorm around the attention, in the place of the concatenation.
        feed_forward: A feed-forward network within a residual connection with LayerNorm, in the place of the dense
            layer; only with ``residual_norm``.
        d_ff: Its inner width.

    Raises:
        ValueError: If a value is out of range; the message names the field and what would do.

    Example:
        >>> ArticleConfig(feed_forward=True)
        Traceback (most recent call last):
        ValueError: feed_forward=True needs residual_norm=True
    """

    vocab_size: int = 10_000
    d_model: int = 64
    num_heads: int = 2
    head_dim: int = 64
    max_length: int = 512
    pad_id: int = 0
    unknown_id: int = 1
    mask: bool = False
    positions: bool = False
    residual_norm: bool = False
    feed_forward: bool = False
    d_ff: int = 256

    def __post_init__(self) -> None:
        check_positive(self, "vocab_size", "d_model", "num_heads", "head_dim", "max_length", "d_ff")
        check_ids(self, "vocab_size", "pad_id", "unknown_id")
        if self.positions and self.d_model % 2:
            raise ValueError(f"d_model={self.d_model} is odd; positions need an even one")
        if self.feed_forward and not self.residual_norm:
            raise ValueError("feed_forward=True needs residual_norm=True")


@dataclass(frozen=True, kw_only=True)
class Seq2SeqConfig:
    """The shape of a `Seq2SeqTransformer`; what is left out is as in the base model of Vaswani et al., 2017, table 3.

    Attributes:
        source_vocab_size: Number of tokens of the source.
        target_vocab_size: Number of tokens of the target.
        d_model: Width.
        num_heads: Attention heads a layer.
        d_ff: Inner width of the feed-forward networks.
        num_layers: Encoder layers, and as many decoder layers.
        max_length: The longest source, and the longest target, in tokens.
        dropout: Dropout probability of the layers, as in `EncoderLayer`, and of the embeddings.
        attention_dropout: That of the attention weights; it keeps a CPU from the fused kernel.
        label_smoothing: The share of a label's probability that the loss spreads over the vocabulary (section 5.4).
        positions: As in `ClassifierConfig`. What turns or biases does so in self-attention, of either stack.
        norm_first: Pre-norm instead of post-norm.
        norm: ``"layer_norm"`` or ``"rms_norm"``.
        activation: The feed-forward networks', as in `FeedForward`.
        head_dim: Width of a head; ``None`` = ``d_model / num_heads``.
        num_kv_heads: Heads of keys and values; ``None`` = ``num_heads``.
        share_embeddings: One embedding for source and target, which must then have one vocabulary (section 3.4).
        tie_output: The output projection is the target's embedding (section 3.4), not a matrix of its own.
        pad_id: The id of padding.
        bos_id: The id that begins a target.
        eos_id: The id that ends it.

    Raises:
        ValueError: If a value is out of range; the message names the field and what would do.

    Example:
        >>> config = Seq2SeqConfig(source_vocab_size=37_000, target_vocab_size=37_000, share_embeddings=True)
        >>> with torch.device("meta"):
        ...     model = Seq2SeqTransformer(config)
        >>> sum(parameter.numel() for parameter in model.parameters())  # the paper's table 3 says 65 million
        63082496
    """

    source_vocab_size: int
    target_vocab_size: int
    d_model: int = 512
    num_heads: int = 8
    d_ff: int = 2048
    num_layers: int = 6
    max_length: int = 512
    dropout: float = 0.1
    attention_dropout: float = 0.0
    label_smoothing: float = 0.1
    positions: Positions = "sinusoidal"
    norm_first: bool = False
    norm: Norm = "layer_norm"
    activation: Activation = "relu"
    head_dim: int | None = None
    num_kv_heads: int | None = None
    share_embeddings: bool = False
    tie_output: bool = True
    pad_id: int = 0
    bos_id: int = 2
    eos_id: int = 3

    def __post_init__(self) -> None:
        sizes = ("source_vocab_size", "target_vocab_size", "d_model", "num_heads", "d_ff", "num_layers", "max_length")
        check_positive(self, *sizes)
        check_layers(self, "num_layers")
        _check_heads(self, self.head_dim, self.num_kv_heads)
        check_probabilities(self, "dropout", "attention_dropout", "label_smoothing")
        check_ids(self, "source_vocab_size", "pad_id")
        check_ids(self, "target_vocab_size", "pad_id", "bos_id", "eos_id")
        if len({self.pad_id, self.bos_id, self.eos_id}) < 3:
            ids = f"pad_id={self.pad_id}, bos_id={self.bos_id}, eos_id={self.eos_id}"
            raise ValueError(f"{ids}; choose three that differ")
        check_choices(self, positions=Positions, norm=Norm, activation=Activation)
        if self.share_embeddings and self.source_vocab_size != self.target_vocab_size:
            raise ValueError(
                f"share_embeddings=True with source_vocab_size={self.source_vocab_size} and "
                f"target_vocab_size={self.target_vocab_size}; choose equal ones, or share_embeddings=False"
            )


def check_positive(config: object, *fields: str, largest: int = LARGEST_SIZE) -> None:
    """Ask for a whole number from 1 to ``largest`` in each field.

    Raises:
        ValueError: If one holds another.
    """
    for field in fields:
        value = _whole_number(config, field)
        if value < 1:
            raise ValueError(f"{field}={value}; choose 1 or more")
        if value > largest:
            raise ValueError(f"{field}={value}; choose at most {largest:,}")


def check_layers(config: object, *fields: str) -> None:
    """Ask for fields whose product, the layers, is no more than `MOST_LAYERS`.

    Raises:
        ValueError: If it is more.
    """
    layers = math.prod(_whole_number(config, field) for field in fields)
    if layers > MOST_LAYERS:
        raise ValueError(f"{' times '.join(fields)} is {layers}; choose at most {MOST_LAYERS:,} layers")


def _whole_number(config: object, field: str) -> int:
    value = getattr(config, field)
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise ValueError(f"{field}={value!r} is no whole number")
    return int(value)


def _check_heads(
    config: ClassifierConfig | Seq2SeqConfig, head_dim: int | None = None, num_kv_heads: int | None = None
) -> None:
    d_model, num_heads = config.d_model, config.num_heads
    if head_dim is None and d_model % num_heads:
        raise ValueError(f"num_heads={num_heads} does not divide d_model={d_model}")
    head_dim = d_model // num_heads if head_dim is None else head_dim
    if head_dim < 1:
        raise ValueError(f"head_dim={head_dim}; choose 1 or more")
    if num_kv_heads is not None and (num_kv_heads < 1 or num_heads % num_kv_heads):
        raise ValueError(f"num_kv_heads={num_kv_heads} does not divide num_heads={num_heads}")
    if config.positions == "sinusoidal" and d_model % 2:
        raise ValueError(f"d_model={d_model} is odd; sinusoidal positions need an even one")
    if config.positions == "rotary" and head_dim % 2:
        raise ValueError(f"head_dim={head_dim} is odd; rotary positions need an even one")


def check_probabilities(config: object, *fields: str) -> None:
    """Ask for a probability below 1 in each field.

    Raises:
        ValueError: If one is not.
    """
    for field in fields:
        if not 0.0 <= getattr(config, field) < 1.0:
            raise ValueError(f"{field}={getattr(config, field)}; choose 0 <= {field} < 1")


def check_ids(config: object, vocab_size: str, *fields: str) -> None:
    """Ask for ids below the field ``vocab_size`` names, in each field.

    Raises:
        ValueError: If one is not.
    """
    size = getattr(config, vocab_size)
    for field in fields:
        value = _whole_number(config, field)
        if not 0 <= value < size:
            raise ValueError(f"{field}={value}; choose 0 <= {field} < {vocab_size}={size}")


def check_choices(config: object, **choices: object) -> None:
    """Ask for one of a literal's values in each field.

    Raises:
        ValueError: If it has another.
    """
    for field, literal in choices.items():
        if getattr(config, field) not in get_args(literal):
            raise ValueError(f"{field}={getattr(config, field)!r}; choose one of {get_args(literal)}")
