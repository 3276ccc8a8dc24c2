"""Encoders that compute the same: ours, and with its weights those of torch.nn, transformers and x-transformers."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
import x_transformers
from torch import Tensor, nn
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertEncoder

from benchmarks.turns import DEVICE, OURS
from companion import ClassifierConfig, Encoder, EncoderLayer, TextClassifier


class Shape(NamedTuple):
    """Of a post-norm encoder with GELU, its feed-forward networks four times as wide as it."""

    d_model: int
    num_heads: int
    num_layers: int
    attention_dropout: float = 0.0


def make_encoder(shape: Shape) -> Encoder:
    """Make ours, which lends the others its weights. Attention has biases of 0: x-transformers has none."""
    d_model, num_heads, num_layers, attention_dropout = shape
    return Encoder(num_layers, d_model, num_heads, 4 * d_model, attention_dropout=attention_dropout).to(DEVICE)


class TorchEncoder(nn.Module):
    """``torch.nn.TransformerEncoder``; in inference it may take its fast path, on nested tensors."""

    def __init__(self, ours: Encoder, shape: Shape, *, dropout: float = 0.0, fast_path: bool = False) -> None:
        super().__init__()
        self.fast_path = fast_path
        layer = nn.TransformerEncoderLayer(
            shape.d_model, shape.num_heads, 4 * shape.d_model, dropout=dropout, activation="gelu", batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, shape.num_layers)
        for mine, theirs in zip(_layers(ours), self.encoder.layers, strict=True):
            theirs.self_attn.dropout = shape.attention_dropout
            theirs.self_attn.in_proj_weight.data.copy_(mine.attention.in_proj.weight.data)
            theirs.self_attn.in_proj_bias.data.copy_(mine.attention.in_proj.bias.data)
            _copy(mine.attention.out_proj, theirs.self_attn.out_proj)
            _copy(mine.feed_forward.inner, theirs.linear1)
            _copy(mine.feed_forward.outer, theirs.linear2)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Encode; without padding no mask is given, which is faster. The fast path fails under autocast."""
        torch.backends.mha.set_fastpath_enabled(self.fast_path and not torch.is_autocast_enabled(DEVICE.type))
        return self.encoder(x, src_key_padding_mask=None if tokens.all() else ~tokens)


class BertEncoderPeer(nn.Module):
    """The layers of transformers' BERT, on its ``sdpa`` attention."""

    def __init__(self, ours: Encoder, shape: Shape) -> None:
        super().__init__()
        config = BertConfig(
            hidden_size=shape.d_model,
            num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.num_heads,
            intermediate_size=4 * shape.d_model,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=shape.attention_dropout,
            layer_norm_eps=1e-5,
            attn_implementation="sdpa",
        )
        self.encoder = BertEncoder(config)
        for mine, theirs in zip(_layers(ours), self.encoder.layer, strict=True):
            attention = theirs.attention.self
            _copy_projections(mine, attention.query, attention.key, attention.value)
            _copy(mine.attention.out_proj, theirs.attention.output.dense)
            _copy(mine.feed_forward.inner, theirs.intermediate.dense)
            _copy(mine.feed_forward.outer, theirs.output.dense)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Encode."""
        mask = None if tokens.all() else tokens[:, None, None, :].expand(-1, 1, x.size(1), -1)
        return self.encoder(x, attention_mask=mask).last_hidden_state


class XTransformersEncoder(nn.Module):
    """x-transformers' encoder, on its flash attention."""

    def __init__(self, ours: Encoder, shape: Shape) -> None:
        super().__init__()
        self.encoder = x_transformers.Encoder(
            dim=shape.d_model,
            depth=shape.num_layers,
            heads=shape.num_heads,
            attn_dim_head=shape.d_model // shape.num_heads,
            ff_mult=4,
            pre_norm=False,
            attn_flash=True,
            attn_dropout=shape.attention_dropout,
        )
        sublayers = [block for _, block, _ in self.encoder.layers]
        for mine, attention, network in zip(_layers(ours), sublayers[::2], sublayers[1::2], strict=True):
            _copy_projections(mine, attention.to_q, attention.to_k, attention.to_v)
            attention.to_out.weight.data.copy_(mine.attention.out_proj.weight.data)
            _copy(mine.feed_forward.inner, network.ff[0][0])
            _copy(mine.feed_forward.outer, network.ff[2])

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Encode."""
        return self.encoder(x, mask=None if tokens.all() else tokens)


PEERS: dict[str, Callable[[Encoder, Shape], nn.Module]] = {
    "torch.nn": TorchEncoder,
    "transformers": BertEncoderPeer,
    "x-transformers": XTransformersEncoder,
}
READERS = {**PEERS, "torch.nn, fast path": partial(TorchEncoder, fast_path=True)}
"""What computes in inference."""


class PaddedClassifier(nn.Module):
    """A `TextClassifier` as others write it: embedding, positions, an encoder, the mean over the tokens, one logit."""

    def __init__(self, ours: TextClassifier, encoder: nn.Module) -> None:
        super().__init__()
        self.dropout = nn.Dropout(ours.dropout.p)
        self.embedding = nn.Embedding(ours.config.vocab_size, ours.config.d_model, padding_idx=0)
        self.positions = nn.Embedding(ours.config.max_length, ours.config.d_model)
        self.encoder = encoder
        self.output = nn.Linear(ours.config.d_model, 1)
        _copy(ours.embedding, self.embedding)
        self.positions.weight.data.copy_(next(ours.positions.parameters()).data)  # type: ignore[union-attr]
        _copy(ours.output, self.output)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return the logits, ``(batch,)``."""
        tokens = input_ids != 0
        x = self.dropout(self.embedding(input_ids) + self.positions.weight[: input_ids.size(1)])
        x = self.encoder(x, tokens) * tokens.unsqueeze(-1)
        return self.output(x.sum(dim=1) / tokens.sum(dim=1, keepdim=True)).squeeze(-1)


def make_classifiers(
    shape: Shape, vocab_size: int, max_length: int, peers: Mapping[str, Callable[[Encoder, Shape], nn.Module]]
) -> dict[str, nn.Module]:
    """Make the classifiers, ours first, all of one set of weights, with dropout on the attention weights at most."""
    d_model, num_heads, num_layers, attention_dropout = shape
    config = ClassifierConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        num_heads=num_heads,
        d_ff=4 * d_model,
        num_layers=num_layers,
        max_length=max_length,
        dropout=0.0,
        attention_dropout=attention_dropout,
        embedding_dropout=0.0,
    )
    torch.manual_seed(0)
    ours = TextClassifier(config)
    others = {name: PaddedClassifier(ours, make(ours.encoder, shape)) for name, make in peers.items()}
    return {name: model.to(DEVICE) for name, model in {OURS: ours, **others}.items()}


def _layers(encoder: Encoder) -> list[EncoderLayer]:
    return list(encoder.layers)  # type: ignore[arg-type]


def _copy_projections(layer: EncoderLayer, *linears: nn.Linear) -> None:
    """Copy the maps of queries, keys and values; a bias, where there is one, is 0."""
    for rows, linear in zip(layer.attention.in_proj.weight.data.chunk(3), linears, strict=True):
        linear.weight.data.copy_(rows)
        if linear.bias is not None:
            linear.bias.data.zero_()


def _copy(source: nn.Module, target: nn.Module) -> None:
    target.load_state_dict(source.state_dict())
