"""The sequence-to-sequence model: encoder, decoder, and how it writes."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from companion.attention import causal_mask, padding_mask
from companion.cache import KeyValueCache
from companion.checks import check_ids
from companion.configs import Seq2SeqConfig
from companion.decoding import beam_search, greedy_search
from companion.dropout import Dropout
from companion.layers import EncoderDecoder
from companion.linear import Linear, linear
from companion.models.inputs import add_positions, make_bias, make_embedding, make_positions, make_rotary
from companion.packing import encode_tokens


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
        self.target_embedding = make_embedding(config.target_vocab_size, config, std)
        shared = config.share_embeddings
        self.source_embedding = None if shared else make_embedding(config.source_vocab_size, config, std)
        self.source_positions, self.target_positions = make_positions(config), make_positions(config)
        self.dropout = Dropout(config.dropout)
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
            rotary=make_rotary(config, config.head_dim),
        )
        self.output = None if config.tie_output else Linear(config.d_model, config.target_vocab_size, bias=False)

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
        with torch.inference_mode():
            ids = self._search(source_ids, max_length, num_beams, length_penalty, use_cache=use_cache)
        return ids.clone()  # an ordinary tensor, with which a model may be trained

    def _search(
        self, source_ids: Tensor, max_length: int, num_beams: int, length_penalty: float, *, use_cache: bool
    ) -> Tensor:
        memory, tokens = (x.repeat_interleave(num_beams, dim=0) for x in self._encode(source_ids))
        memory_mask = None if tokens.all() else tokens  # a mask that hides nothing would cost time at each step
        cache = KeyValueCache() if use_cache else None

        def next_log_probs(ids: Tensor, rows: Tensor | None) -> Tensor:
            if cache is not None:
                if rows is not None:
                    cache.reorder(rows)
                ids = ids[:, cache.length :]
            logits = self._logits(self._decode(ids, memory, memory_mask, cache)[:, -1])
            return logits if num_beams == 1 else logits.log_softmax(dim=-1)  # the largest is the same

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
        bias = make_bias(self.config, x.size(1), x.size(1), x.device)
        mask = padding_mask(source_ids, self.config.pad_id)
        return encode_tokens(self.transformer.encoder, x, mask[:, 0, 0], bias=bias), mask

    def _decode(
        self, target_ids: Tensor, memory: Tensor, memory_mask: Tensor | None, cache: KeyValueCache | None
    ) -> Tensor:
        """Return what the decoder makes of the target ids that follow those in the cache."""
        check_ids("target_ids", target_ids, self.target_embedding.weight, self.config.max_length)
        offset = 0 if cache is None else cache.length
        length = offset + target_ids.size(1)
        x = self._embed(target_ids, self.target_embedding, self.target_positions, offset)
        # The last token may attend to all before it: a step with a cache needs no mask.
        mask = causal_mask(length, device=x.device)[offset:] if x.size(1) > 1 else None
        bias = make_bias(self.config, x.size(1), length, x.device)
        return self.transformer.decoder(x, memory, mask, memory_mask, bias=bias, cache=cache)

    def _embed(self, ids: Tensor, embedding: nn.Embedding, positions: nn.Module | None, offset: int) -> Tensor:
        x = embedding(ids) * math.sqrt(self.config.d_model)
        return self.dropout(add_positions(x, positions, offset))

    def _logits(self, x: Tensor) -> Tensor:
        return linear(x, self.target_embedding.weight) if self.output is None else self.output(x)
