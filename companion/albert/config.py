"""The shape of an ALBERT, and how many parameters it has."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from companion.configs import check_choices, check_ids, check_layers, check_positive, check_probabilities
from companion.feed_forward import Activation

Sharing = Literal["all", "attention", "ffn", "none"]


@dataclass(frozen=True, kw_only=True)
class AlbertConfig:
    """The shape of an ALBERT, in the field names of Hugging Face's ``config.json``; by default that of the base model.

    Attributes:
        vocab_size: Number of tokens, V.
        embedding_size: Width of the embeddings, E.
        hidden_size: Width of the layers, H.
        num_hidden_layers: Layers.
        num_hidden_groups: Groups of layers; the layers of a group have one set of parameters.
        num_attention_heads: Attention heads a layer.
        intermediate_size: Inner width of the feed-forward networks; the paper's is 4H.
        inner_group_num: Pairs of attention and feed-forward network, one behind the other, that make a layer.
        hidden_act: The activation of the feed-forward networks and the masked-language head, as in `FeedForward`.
        hidden_dropout_prob: Dropout probability of the embeddings and after each sublayer.
        attention_probs_dropout_prob: That of the attention weights; it keeps a CPU from the fused kernel.
        max_position_embeddings: The longest input, in tokens.
        type_vocab_size: Number of token types, such as the first and the second segment.
        initializer_range: Standard deviation of the initial weights.
        layer_norm_eps: What the normalisations add to the variance.
        classifier_dropout_prob: Dropout probability before the classifier of `AlbertForSequenceClassification`.
        pad_token_id: The id of padding.
        bos_token_id: The id of ``[CLS]``, with which an input begins.
        eos_token_id: The id of ``[SEP]``, with which a segment ends.
        num_labels: Labels of `AlbertForSequenceClassification`.
        sharing: What the layers of a group share: ``"all"``, only the ``"attention"``, only the ``"ffn"``
            (feed-forward network), or ``"none"``; table 4 of the paper. ``transformers`` knows ``"all"`` alone.

    Raises:
        ValueError: If a value is out of range; the message names the field and what would do.

    Example:
        >>> AlbertConfig.xxlarge().hidden_size
        4096
        >>> AlbertConfig(num_hidden_layers=4, num_hidden_groups=6)
        Traceback (most recent call last):
        ValueError: num_hidden_groups=6; choose at most num_hidden_layers=4
    """

    vocab_size: int = 30_000
    embedding_size: int = 128
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_hidden_groups: int = 1
    num_attention_heads: int = 12
    intermediate_size: int = 3_072
    inner_group_num: int = 1
    hidden_act: Activation = "gelu_new"
    hidden_dropout_prob: int | float = 0.0
    attention_probs_dropout_prob: int | float = 0.0
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    classifier_dropout_prob: int | float = 0.1
    pad_token_id: int = 0
    bos_token_id: int = 2
    eos_token_id: int = 3
    num_labels: int = 2
    sharing: Sharing = "all"

    def __post_init__(self) -> None:
        check_positive(
            self,
            "vocab_size",
            "embedding_size",
            "hidden_size",
            "num_hidden_layers",
            "num_hidden_groups",
            "num_attention_heads",
            "intermediate_size",
            "inner_group_num",
            "max_position_embeddings",
            "type_vocab_size",
            "num_labels",
        )
        check_layers(self, "num_hidden_layers", "inner_group_num")
        if self.num_hidden_groups > self.num_hidden_layers:
            layers = f"num_hidden_layers={self.num_hidden_layers}"
            raise ValueError(f"num_hidden_groups={self.num_hidden_groups}; choose at most {layers}")
        if self.hidden_size % self.num_attention_heads:
            heads = f"num_attention_heads={self.num_attention_heads}"
            raise ValueError(f"{heads} does not divide hidden_size={self.hidden_size}")
        check_probabilities(self, "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout_prob")
        for field in ("initializer_range", "layer_norm_eps"):
            if not 0 < getattr(self, field) <= 1:
                raise ValueError(f"{field}={getattr(self, field)}; choose more than 0, at most 1")
        check_ids(self, "vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")
        check_choices(self, hidden_act=Activation, sharing=Sharing)
        if self.hidden_act == "swiglu":
            known = tuple(name for name in get_args(Activation) if name != "swiglu")
            raise ValueError(f"hidden_act='swiglu' has no weights in ALBERT's checkpoints; choose one of {known}")

    @classmethod
    def base(cls, **changes: Any) -> "AlbertConfig":
        """Return ALBERT-base (table 1), with what ``changes`` says."""
        return cls(**changes)

    @classmethod
    def large(cls, **changes: Any) -> "AlbertConfig":
        """Return ALBERT-large (table 1), with what ``changes`` says."""
        return cls(**_SIZES["large"] | changes)

    @classmethod
    def xlarge(cls, **changes: Any) -> "AlbertConfig":
        """Return ALBERT-xlarge (table 1), changed likewise, with the release's 16 heads; the paper's rule gives 32."""
        return cls(**_SIZES["xlarge"] | changes)

    @classmethod
    def xxlarge(cls, **changes: Any) -> "AlbertConfig":
        """Return ALBERT-xxlarge (table 1), changed likewise, of 12 layers, as in the paper's text and the release."""
        return cls(**_SIZES["xxlarge"] | changes)

    def group(self, layer: int) -> int:
        """Return the group of a layer, both counted from 0, as Hugging Face reckons it, float division and all."""
        return int(layer / (self.num_hidden_layers / self.num_hidden_groups))

    def attention_sets(self) -> int:
        """Return how many sets of parameters the attention has, all layers together."""
        return self._sets(self.sharing in ("all", "attention"))

    def feed_forward_sets(self) -> int:
        """Return how many sets of parameters the feed-forward networks have, all layers together."""
        return self._sets(self.sharing in ("all", "ffn"))

    def _sets(self, shared: bool) -> int:
        return self.inner_group_num * (self.num_hidden_groups if shared else self.num_hidden_layers)


_SIZES: dict[str, dict[str, Any]] = {
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    "xlarge": {"hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 8192},
    "xxlarge": {"hidden_size": 4096, "num_attention_heads": 64, "intermediate_size": 16384},
}


def num_parameters(config: AlbertConfig) -> int:
    r"""Count the parameters of an `AlbertModel` without building it.

    With :math:`P` positions, :math:`T` token types and :math:`F` the inner width, they are those of the embeddings and
    their normalisation :math:`(V + P + T + 2) E`, of the map to the layers' width :math:`E H + H`, of each set of
    attention :math:`4 (H^2 + H) + 2 H`, of each set of feed-forward networks :math:`2 H F + F + H + 2 H`, and of the
    pooler :math:`H^2 + H`.

    The map is counted where E = H too, as Hugging Face has it; Google's code has none there.

    Args:
        config: The shape.

    Returns:
        The number of parameters.

    Example:
        >>> num_parameters(AlbertConfig.base())
        11683584
        >>> num_parameters(AlbertConfig.base(sharing="none"))
        89650176
    """
    return sum(count_parameters(config).values())


def count_parameters(config: AlbertConfig) -> dict[str, int]:
    """Count the parameters of each part of a `companion.AlbertModel`.

    Args:
        config: The shape.

    Returns:
        The number of parameters of ``"embeddings"`` (with positions, token types and normalisation), of
        ``"embedding_map"``, ``"attention"``, ``"feed_forward"`` (with their normalisations) and ``"pooler"``.

    Example:
        >>> from companion.albert.config import count_parameters
        >>> count_parameters(AlbertConfig.base())["embedding_map"]  # 128 x 768 + 768
        99072
    """
    embedding, hidden, inner = config.embedding_size, config.hidden_size, config.intermediate_size
    rows = config.vocab_size + config.max_position_embeddings + config.type_vocab_size
    return {
        "embeddings": (rows + 2) * embedding,
        "embedding_map": embedding * hidden + hidden,
        "attention": config.attention_sets() * (4 * (hidden**2 + hidden) + 2 * hidden),
        "feed_forward": config.feed_forward_sets() * (2 * hidden * inner + inner + 3 * hidden),
        "pooler": hidden**2 + hidden,
    }
