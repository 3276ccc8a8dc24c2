"""Models: the classifiers, of texts and of tokens, and the sequence-to-sequence model."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from companion.attention import causal_mask, padding_mask
from companion.cache import KeyValueCache
from companion.checks import check_ids
from companion.configs import ClassifierConfig, Seq2SeqConfig, TokenClassifierConfig
from companion.decoding import beam_search, greedy_search
from companion.layers import Encoder, EncoderDecoder
from companion.positions import LearnedPositionalEmbedding, RotaryEmbedding, SinusoidalPositionalEncoding, alibi_bias


def drop_words(input_ids: Tensor, probability: float, replacement: int, pad_id: int) -> Tensor:
    """Put ``replacement`` in the place of each token with a probability; padding stays."""
    dropped = torch.rand(input_ids.shape, device=input_ids.device) < probability
    return input_ids.masked_fill(dropped & (input_ids != pad_id), replacement)


class _Classifier(nn.Module):
    """What the classifiers have in common: embedding, positions, encoder, a map to the logits."""

    def __init__(self, config: ClassifierConfig, num_logits: int) -> None:
        super().__init__()
        self.config = config
        std = 1.0 if config.positions == "sinusoidal" else 0.02  # as large as what is added to it
        self.embedding = _make_embedding(config.num_embeddings, config, std)
        self.positions = _make_positions(config)
        self.dropout = nn.Dropout(config.embedding_dropout)
        self.encoder = Encoder(
            config.num_layers,
            config.d_model,
            config.num_heads,
            config.d_ff,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
            norm_first=config.norm_first,
            activation=config.activation,
            rotary=_make_rotary(config),
        )
        self.output = nn.Linear(config.d_model, num_logits)

    def _check(self, input_ids: Tensor) -> None:
        check_ids("input_ids", input_ids, self.embedding.weight, self.config.max_length)

    def _encode(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        x = _add_positions(self._embed(input_ids), self.positions)
        return self.encoder(self.dropout(x), mask, bias=_make_bias(self.config, x.size(1), x.size(1), x.device))

    def _embed(self, input_ids: Tensor) -> Tensor:
        if self.training and self.config.word_dropout > 0:
            input_ids = drop_words(input_ids, self.config.word_dropout, self.config.unknown_id, self.config.pad_id)
        return self.embedding(input_ids)


class TextClassifier(_Classifier):
    """Embedding, positions, encoder, the mean over the tokens, one logit.

    Args:
        config: Its shape.

    Example:
        >>> model = TextClassifier(ClassifierConfig(vocab_size=100))
        >>> model(torch.tensor([[5, 6, 7], [8, 0, 0]])).shape
        torch.Size([2])
    """

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__(config, num_logits=1)

    def forward(self, input_ids: Int[Tensor, "batch length"]) -> Float[Tensor, "batch"]:
        """Return the logit of the positive class; padding does not change it.

        Args:
            input_ids: Token ids, ``(batch, length)``, padded with ``config.pad_id``.

        Returns:
            Logits, ``(batch,)``; their sigmoid is the probability of label 1.

        Raises:
            TypeError: If the input is not of an integer dtype.
            ValueError: If it is not two-dimensional, longer than ``config.max_length``, or on another device.
        """
        self._check(input_ids)
        mask = padding_mask(input_ids, self.config.pad_id)
        return self.output(masked_mean(self._encode(input_ids, mask), mask[:, 0, 0])).squeeze(-1)


class TokenClassifier(_Classifier):
    """Embedding, positions, encoder, logits for each token; where causal, a language model.

    Args:
        config: Its shape.

    Example:
        >>> model = TokenClassifier(TokenClassifierConfig(vocab_size=12, num_labels=12, causal=True)).eval()
        >>> ids = torch.tensor([[5, 6, 7]])
        >>> torch.allclose(model(ids)[:, :2], model(ids[:, :2]), atol=1e-6)  # the last token changes nothing before it
        True
    """

    def __init__(self, config: TokenClassifierConfig) -> None:
        super().__init__(config, config.num_labels)
        self.causal = config.causal

    def forward(self, input_ids: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length labels"]:
        """Return the logits of each token's label; padding does not change those of the tokens.

        Args:
            input_ids: Token ids, ``(batch, length)``, padded with ``config.pad_id``.

        Returns:
            Logits, ``(batch, length, num_labels)``.

        Raises:
            TypeError: If the input is not of an integer dtype.
            ValueError: If it is not two-dimensional, longer than ``config.max_length``, or on another device.
        """
        self._check(input_ids)
        mask = padding_mask(input_ids, self.config.pad_id)
        if self.causal:
            mask = mask & causal_mask(input_ids.size(1), device=input_ids.device)
        return self.output(self._encode(input_ids, mask))


class Seq2SeqTransformer(nn.Module):
    """The encoder-decoder of Vaswani et al., 2017: ids of a source and of a target's beginning to what comes next.

    Args:
        config: Its shape.

    Example:
        >>> config = Seq2SeqConfig(source_vocab_size=10, target_vocab_size=12, d_model=16, num_heads=2, num_layers=1)
        >>> model, source = Seq2SeqTransformer(config).eval(), torch.tensor([[5, 6, 7]])
        >>> ids = model.generate(source, max_length=5)
        >>> torch.equal(model(source, ids[:, :-1])[0].argmax(dim=-1), ids[0, 1:])
        True
    """

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.config = config
        std = config.d_model**-0.5  # of unit variance after the product with sqrt(d_model)
        self.target_embedding = _make_embedding(config.target_vocab_size, config, std)
        shared = config.share_embeddings
        self.source_embedding = None if shared else _make_embedding(config.source_vocab_size, config, std)
        self.source_positions, self.target_positions = _make_positions(config), _make_positions(config)
        self.dropout = nn.Dropout(config.dropout)
        self.transformer = EncoderDecoder(
            config.num_layers,
            config.d_model,
            config.num_heads,
            config.d_ff,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
            norm_first=config.norm_first,
            norm=config.norm,
            activation=config.activation,
            head_dim=config.head_dim,
            num_kv_heads=config.num_kv_heads,
            rotary=_make_rotary(config, config.head_dim),
        )
        self.output = None if config.tie_output else nn.Linear(config.d_model, config.target_vocab_size, bias=False)

    def forward(
        self, source_ids: Int[Tensor, "batch source"], target_ids: Int[Tensor, "batch target"]
    ) -> Float[Tensor, "batch target vocab"]:
        """Return the logits of each next token of the target; padding, at the end of a row, does not change them.

        Args:
            source_ids: ``(batch, source)``, padded with ``config.pad_id``.
            target_ids: ``(batch, target)``, from ``config.bos_id`` on, padded with ``config.pad_id``.

        Returns:
            Logits, ``(batch, target, target_vocab_size)``; those at position i rest on the ids up to i.

        Raises:
            TypeError: If ids are not of an integer dtype.
            ValueError: If they are not two-dimensional, longer than ``config.max_length``, or on another device.
        """
        memory, memory_mask = self._encode(source_ids)
        return self._logits(self._decode(target_ids, memory, memory_mask, None))

    def loss(
        self, logits: Float[Tensor, "batch target vocab"], labels: Int[Tensor, "batch target"]
    ) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
        r"""Sum the cross-entropy with smoothed labels over the tokens that are not padding.

        A label's distribution is ``1 - config.label_smoothing`` at the label, plus ``config.label_smoothing`` spread
        evenly over the vocabulary (Szegedy et al., 2016, arXiv:1512.00567, section 7).

        Args:
            logits: What `forward` gave for ``target_ids[:, :-1]``.
            labels: The ids to predict, ``target_ids[:, 1:]``.

        Returns:
            The summed loss, in nats, and the number of tokens.

        Example:
            >>> config = Seq2SeqConfig(source_vocab_size=9, target_vocab_size=9, d_model=16, num_layers=1)
            >>> model, source, target = Seq2SeqTransformer(config), torch.tensor([[5, 6]]), torch.tensor([[2, 7, 3]])
            >>> loss_sum, count = model.loss(model(source, target[:, :-1]), target[:, 1:])
            >>> (loss_sum / count).backward()
        """
        pad_id = self.config.pad_id
        loss_sum = F.cross_entropy(
            logits.flatten(0, 1),
            labels.flatten().long(),
            ignore_index=pad_id,
            reduction="sum",
            label_smoothing=self.config.label_smoothing,
        )
        return loss_sum, (labels != pad_id).sum()

    @torch.no_grad()
    def generate(
        self,
        source_ids: Int[Tensor, "batch source"],
        *,
        max_length: int,
        num_beams: int = 1,
        length_penalty: float = 0.0,
        use_cache: bool = True,
    ) -> Int[Tensor, "batch target"]:
        """Decode a target for each source, in the model's mode: call ``eval()`` first, or dropout takes part.

        Args:
            source_ids: ``(batch, source)``, padded with ``config.pad_id``.
            max_length: The most ids a target may have, the first and the last one included.
            num_beams: 1 for `greedy_search`, more for `beam_search`.
            length_penalty: As in `beam_search`.
            use_cache: Project the keys and values of each token once, instead of at each step anew.

        Returns:
            Ids, ``(batch, target)``: ``config.bos_id``, tokens, ``config.eos_id`` unless ``max_length`` cut it off,
            then ``config.pad_id``.

        Raises:
            TypeError: If ids are not of an integer dtype.
            ValueError: If they do not fit, or ``max_length``, ``num_beams`` or ``length_penalty`` is out of range.

        Example:
            >>> config = Seq2SeqConfig(source_vocab_size=9, target_vocab_size=9, d_model=16, num_layers=1)
            >>> model, source = Seq2SeqTransformer(config).eval(), torch.tensor([[5, 6, 7], [8, 0, 0]])
            >>> ids = model.generate(source, max_length=6, num_beams=3)
            >>> torch.equal(ids, model.generate(source, max_length=6, num_beams=3, use_cache=False))
            True
        """
        if not 2 <= max_length <= self.config.max_length:
            raise ValueError(f"max_length={max_length}; choose 2 to {self.config.max_length}, the config's max_length")
        if num_beams < 1:
            raise ValueError(f"num_beams={num_beams}; choose 1 or more")
        if not length_penalty >= 0:
            raise ValueError(f"length_penalty={length_penalty}; choose 0 or more")
        memory, memory_mask = (x.repeat_interleave(num_beams, dim=0) for x in self._encode(source_ids))
        cache = KeyValueCache() if use_cache else None

        def next_log_probs(ids: Tensor, rows: Tensor | None) -> Tensor:
            if cache is not None:
                if rows is not None:
                    cache.reorder(rows)
                ids = ids[:, cache.length :]
            x = self._decode(ids, memory, memory_mask, cache)
            return self._logits(x[:, -1]).log_softmax(dim=-1)

        start = torch.full((len(source_ids), 1), self.config.bos_id, device=source_ids.device)
        ends: dict[str, Any] = {"max_length": max_length, "eos_id": self.config.eos_id, "pad_id": self.config.pad_id}
        if num_beams == 1:
            return greedy_search(next_log_probs, start, **ends)
        return beam_search(next_log_probs, start, num_beams=num_beams, length_penalty=length_penalty, **ends)

    def _encode(self, source_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the memory, ``(batch, source, d_model)``, and the mask that hides its padding."""
        embedding = self.target_embedding if self.source_embedding is None else self.source_embedding
        check_ids("source_ids", source_ids, embedding.weight, self.config.max_length)
        x = self._embed(source_ids, embedding, self.source_positions, 0)
        mask = padding_mask(source_ids, self.config.pad_id)
        bias = _make_bias(self.config, x.size(1), x.size(1), x.device)
        return self.transformer.encoder(x, mask, bias=bias), mask

    def _decode(self, target_ids: Tensor, memory: Tensor, memory_mask: Tensor, cache: KeyValueCache | None) -> Tensor:
        """Return what the decoder makes of the target ids that follow those in the cache."""
        check_ids("target_ids", target_ids, self.target_embedding.weight, self.config.max_length)
        offset = 0 if cache is None else cache.length
        length = offset + target_ids.size(1)
        x = self._embed(target_ids, self.target_embedding, self.target_positions, offset)
        # The last token may attend to all before it: a step with a cache needs no mask.
        mask = causal_mask(length, device=x.device)[offset:] if x.size(1) > 1 else None
        bias = _make_bias(self.config, x.size(1), length, x.device)
        return self.transformer.decoder(x, memory, mask, memory_mask, bias=bias, cache=cache)

    def _embed(self, ids: Tensor, embedding: nn.Embedding, positions: nn.Module | None, offset: int) -> Tensor:
        x = embedding(ids) * math.sqrt(self.config.d_model)
        return self.dropout(_add_positions(x, positions, offset))

    def _logits(self, x: Tensor) -> Tensor:
        return F.linear(x, self.target_embedding.weight) if self.output is None else self.output(x)


def _make_embedding(vocab_size: int, config: ClassifierConfig | Seq2SeqConfig, std: float) -> nn.Embedding:
    """Make normal vectors of this deviation; padding's is 0."""
    embedding = nn.Embedding(vocab_size, config.d_model, padding_idx=config.pad_id)
    nn.init.normal_(embedding.weight, std=std)
    nn.init.zeros_(embedding.weight[config.pad_id])
    return embedding


def _make_positions(config: ClassifierConfig | Seq2SeqConfig) -> nn.Module | None:
    if config.positions == "sinusoidal":
        return SinusoidalPositionalEncoding(config.max_length, config.d_model)
    if config.positions == "learned":
        return LearnedPositionalEmbedding(config.max_length, config.d_model)
    return None


def _add_positions(x: Tensor, positions: nn.Module | None, offset: int = 0) -> Tensor:
    return x if positions is None else positions(x, offset)


def _make_rotary(config: ClassifierConfig | Seq2SeqConfig, head_dim: int | None = None) -> nn.Module | None:
    return RotaryEmbedding(head_dim or config.d_model // config.num_heads) if config.positions == "rotary" else None


def _make_bias(
    config: ClassifierConfig | Seq2SeqConfig, query_length: int, key_length: int, device: torch.device
) -> Tensor | None:
    if config.positions != "alibi":
        return None
    return alibi_bias(config.num_heads, query_length, key_length, device=device)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Average over the positions where ``mask``; zeros where there is none."""
    weights = mask.unsqueeze(-1).to(x.dtype)
    return (x * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)
