"""ALBERT's encoder: factorised embeddings, and layers that share their parameters."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from companion.albert.config import AlbertConfig
from companion.attention import MultiHeadAttention
from companion.checks import check_device, check_ids
from companion.dropout import Dropout
from companion.feed_forward import FeedForward
from companion.packing import encode_tokens


class AlbertOutput(NamedTuple):
    """What an `AlbertModel` returns.

    Attributes:
        last_hidden_state: The last layer's output, ``(batch, length, hidden_size)``.
        pooler_output: ``tanh(pooler(first token))``, ``(batch, hidden_size)``; ``None`` without a pooler.

    Example:
        >>> model = AlbertModel(AlbertConfig(vocab_size=9, hidden_size=8, num_attention_heads=2, intermediate_size=16))
        >>> hidden, pooled = model(torch.tensor([[2, 5, 6, 3]]))
        >>> torch.equal(pooled, model.pooler(hidden[:, 0]).tanh())
        True
    """

    last_hidden_state: Tensor
    pooler_output: Tensor | None


class AlbertEmbeddings(nn.Module):
    """Embeddings of width E: of the words, of their positions, of the segments they are in.

    Args:
        config: The model's shape.
    """

    def __init__(self, config: AlbertConfig) -> None:
        super().__init__()
        self.word = nn.Embedding(config.vocab_size, config.embedding_size, padding_idx=config.pad_token_id)
        self.position = nn.Embedding(config.max_position_embeddings, config.embedding_size)
        self.token_type = nn.Embedding(config.type_vocab_size, config.embedding_size)
        self.norm = nn.LayerNorm(config.embedding_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(
        self, input_ids: Int[Tensor, "batch length"], token_type_ids: Int[Tensor, "batch length"] | None
    ) -> Float[Tensor, "batch length embedding"]:
        """Compute ``dropout(norm(word + token type + position))``; without ``token_type_ids`` all are of type 0."""
        types = self.token_type.weight[0] if token_type_ids is None else self.token_type(token_type_ids)
        x = self.word(input_ids) + types + self.position.weight[: input_ids.size(1)]
        return self.dropout(self.norm(x))


class AttentionSublayer(nn.Module):
    """Self-attention in a residual connection, post-norm: ``norm(x + dropout(attention(x)))``.

    Args:
        config: The model's shape.
    """

    def __init__(self, config: AlbertConfig) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(
            config.hidden_size, config.num_attention_heads, dropout=float(config.attention_probs_dropout_prob)
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(
        self, x: Float[Tensor, "batch length hidden"], mask: Tensor | None, lengths: Sequence[int] | None = None
    ) -> Float[Tensor, "batch length hidden"]:
        """Apply it; ``mask`` and ``lengths`` are `MultiHeadAttention`'s."""
        return self.norm(x + self.dropout(self.attention(x, mask=mask, lengths=lengths).output))


class FeedForwardSublayer(nn.Module):
    """A feed-forward network in a residual connection, post-norm: ``norm(x + dropout(feed_forward(x)))``.

    The dropout is that of Google's code; Hugging Face's model has the module and does not apply it.

    Args:
        config: The model's shape.
    """

    def __init__(self, config: AlbertConfig) -> None:
        super().__init__()
        self.feed_forward = FeedForward(config.hidden_size, config.intermediate_size, activation=config.hidden_act)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, x: Float[Tensor, "batch length hidden"]) -> Float[Tensor, "batch length hidden"]:
        """Apply it, position by position."""
        return self.norm(x + self.dropout(self.feed_forward(x)))


class AlbertModel(nn.Module):
    r"""ALBERT's encoder (Lan et al., 2020, section 3.1).

    The embeddings are E wide and mapped to the layers' width H once, so that the vocabulary costs ``V E + E H``
    parameters instead of ``V H``. A layer is attention and a feed-forward network, post-norm as in BERT; which layers
    share which parameters is the config's ``num_hidden_groups``, ``inner_group_num`` and ``sharing``.

    Args:
        config: Its shape.
        add_pooling_layer: Whether there is a pooler, for heads that classify the whole input.

    Example:
        >>> config = AlbertConfig(hidden_size=64, num_attention_heads=4, intermediate_size=256)
        >>> model = AlbertModel(config).eval()
        >>> ids = torch.tensor([[2, 7, 8, 3], [2, 9, 3, 0]])
        >>> hidden, pooled = model(ids, attention_mask=ids != 0)
        >>> hidden.shape, torch.allclose(hidden[1, :3], model(ids[1:, :3]).last_hidden_state[0], atol=1e-5)
        (torch.Size([2, 4, 64]), True)
        >>> sum(parameter.numel() for parameter in model.parameters()) == num_parameters(config)
        True
    """

    def __init__(self, config: AlbertConfig, *, add_pooling_layer: bool = True) -> None:
        super().__init__()
        self.config = config
        self.embeddings = AlbertEmbeddings(config)
        self.embedding_map = nn.Linear(config.embedding_size, config.hidden_size)
        self.attentions = nn.ModuleList([AttentionSublayer(config) for _ in range(config.attention_sets())])
        self.feed_forwards = nn.ModuleList([FeedForwardSublayer(config) for _ in range(config.feed_forward_sets())])
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size) if add_pooling_layer else None
        initialize(self, config)

    def forward(
        self,
        input_ids: Int[Tensor, "batch length"],
        attention_mask: Tensor | None = None,
        token_type_ids: Int[Tensor, "batch length"] | None = None,
        *,
        skip_padding: bool = False,
    ) -> AlbertOutput:
        """Encode token ids, ``[CLS] A [SEP]`` or ``[CLS] A [SEP] B [SEP]``.

        Args:
            input_ids: Token ids, ``(batch, length)``.
            attention_mask: Bool or 0/1, ``(batch, length)``: where a token stands that may be attended to; ``None`` =
                everywhere, padding too.
            token_type_ids: Below ``config.type_vocab_size``, ``(batch, length)``: 0 in segment A, 1 in segment B;
                ``None`` = 0 everywhere.
            skip_padding: Compute nothing for what ``attention_mask`` hides behind the tokens, for a caller that looks
                at nothing there: on a CPU it comes out as zeros.

        Returns:
            The last layer's output, and the pooler's.

        Raises:
            TypeError: If an argument is not of an integer (or bool) dtype.
            ValueError: If a shape or a device does not fit, or the input is longer than
                ``config.max_position_embeddings``.
        """
        self._check(input_ids, attention_mask, token_type_ids)
        x = self.embedding_map(self.embeddings(input_ids, token_type_ids))
        if attention_mask is None:
            last = self._encode(x)
        elif skip_padding:
            last = encode_tokens(self._encode, x, attention_mask.bool())
        else:
            last = self._encode(x, attention_mask.bool()[:, None, None, :])
        return AlbertOutput(last, None if self.pooler is None else self.pooler(last[:, 0]).tanh())

    def hidden_states(
        self,
        input_ids: Int[Tensor, "batch length"],
        attention_mask: Tensor | None = None,
        token_type_ids: Int[Tensor, "batch length"] | None = None,
    ) -> list[Float[Tensor, "batch length hidden"]]:
        """Return what goes into the first layer, and what each layer makes of it.

        Args:
            input_ids: As in `forward`.
            attention_mask: As in `forward`.
            token_type_ids: As in `forward`.

        Returns:
            ``config.num_hidden_layers + 1`` tensors, ``(batch, length, hidden_size)``; the last one is `forward`'s.

        Raises:
            TypeError: As `forward`.
            ValueError: As `forward`.
        """
        self._check(input_ids, attention_mask, token_type_ids)
        mask = None if attention_mask is None else attention_mask.bool()[:, None, None, :]
        states = [self.embedding_map(self.embeddings(input_ids, token_type_ids))]
        states.extend(self._layers(states[0], mask))
        return states

    def _encode(self, x: Tensor, mask: Tensor | None = None, *, lengths: Sequence[int] | None = None) -> Tensor:
        *_, last = self._layers(x, mask, lengths)
        return last

    def _layers(self, x: Tensor, mask: Tensor | None, lengths: Sequence[int] | None = None) -> Iterator[Tensor]:
        for layer in range(self.config.num_hidden_layers):
            for attention, feed_forward in self.sublayers(layer):
                x = feed_forward(attention(x, mask, lengths))
            yield x

    def sublayers(self, layer: int) -> list[tuple[AttentionSublayer, FeedForwardSublayer]]:
        """Return the pairs of attention and feed-forward network that make a layer, counted from 0."""
        config, group = self.config, self.config.group(layer)
        attention = group if config.sharing in ("all", "attention") else layer
        feed_forward = group if config.sharing in ("all", "ffn") else layer
        inner = config.inner_group_num
        pairs = zip(
            self.attentions[attention * inner : (attention + 1) * inner],
            self.feed_forwards[feed_forward * inner : (feed_forward + 1) * inner],
            strict=True,
        )
        return cast(list[tuple[AttentionSublayer, FeedForwardSublayer]], list(pairs))

    def _check(self, input_ids: Tensor, attention_mask: Tensor | None, token_type_ids: Tensor | None) -> None:
        table = self.embeddings.word.weight
        check_ids("input_ids", input_ids, table, self.config.max_position_embeddings, "max_position_embeddings")
        integers = (torch.int64, torch.int32)
        for name, x, dtypes, expected in (
            (
                "attention_mask",
                attention_mask,
                (*integers, torch.bool),
                "torch.bool or torch.int64, where tokens stand",
            ),
            ("token_type_ids", token_type_ids, integers, "torch.int64"),
        ):
            if x is None:
                continue
            if x.dtype not in dtypes:
                raise TypeError(f"{name} has dtype {x.dtype}; expected {expected}")
            if x.shape != input_ids.shape:
                raise ValueError(f"{name} has shape {tuple(x.shape)}; expected {tuple(input_ids.shape)}, input_ids'")
            check_device(name, x, table, "embedding")


def initialize(model: nn.Module, config: AlbertConfig) -> None:
    """Draw all weights from a normal distribution cut at two deviations, as Google's code; biases are 0.

    Args:
        model: A model whose linear maps and embeddings are to be drawn anew; padding's embedding is 0.
        config: Its shape.
    """
    std = config.initializer_range
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            nn.init.zeros_(module.weight[module.padding_idx])
