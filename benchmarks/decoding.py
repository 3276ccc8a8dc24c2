"""Greedy decoding with a key-value cache: this package, and ``generate`` of transformers with the same weights."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from transformers import MarianConfig, MarianMTModel

from benchmarks.turns import DEVICE, OURS, Comparison, sized
from companion import Seq2SeqConfig, Seq2SeqTransformer, sinusoidal_encoding
from companion.attention import MultiHeadAttention
from companion.layers import DecoderLayer

TOKENS, VOCABULARY, SOURCE_LENGTH = 256, 8_000, 64
WIDTHS = sized(cpu=((64, 2), (256, 4)), gpu=((512, 8),))
"""Of the models, and their numbers of heads."""


def pair(
    d_model: int, num_heads: int, d_ff: int, num_layers: int, vocab_size: int, source_length: int
) -> tuple[Seq2SeqTransformer, MarianMTModel]:
    """Make this package's model and transformers' with its weights; neither ever ends a target.

    The rows of padding and of the end are 0 in the output: among thousands of logits theirs are never the largest. The
    output is not tied to the embedding, since an untrained model that ties them repeats one token.
    """
    config = Seq2SeqConfig(
        source_vocab_size=vocab_size,
        target_vocab_size=vocab_size,
        d_model=d_model,
        num_heads=num_heads,
        d_ff=d_ff,
        num_layers=num_layers,
        max_length=max(source_length, 1 + TOKENS),
        share_embeddings=True,
        tie_output=False,
    )
    torch.manual_seed(0)
    ours = Seq2SeqTransformer(config).eval()
    assert ours.output is not None
    ours.output.weight.data[[config.pad_id, config.eos_id]] = 0.0
    return ours.to(DEVICE), as_marian(ours).to(DEVICE)


def as_marian(model: Seq2SeqTransformer) -> MarianMTModel:
    """Copy a model that shares one embedding, not with its output, is post-norm, and adds sinusoids to its inputs."""
    config = model.config
    settings: dict[str, Any] = {
        "vocab_size": config.target_vocab_size,
        "d_model": config.d_model,
        "max_position_embeddings": config.max_length,
        "encoder_layers": config.num_layers,
        "encoder_attention_heads": config.num_heads,
        "encoder_ffn_dim": config.d_ff,
        "decoder_layers": config.num_layers,
        "decoder_attention_heads": config.num_heads,
        "decoder_ffn_dim": config.d_ff,
        "activation_function": config.activation,
        "scale_embedding": True,
        "tie_word_embeddings": False,
        "pad_token_id": config.pad_id,
        "decoder_start_token_id": config.bos_id,
        "eos_token_id": config.eos_id,
        "forced_eos_token_id": None,
        "attn_implementation": "sdpa",
    }
    assert model.output is not None
    marian: Any = MarianMTModel(MarianConfig(**settings))
    stacks = (marian.model.encoder, model.transformer.encoder), (marian.model.decoder, model.transformer.decoder)
    with torch.no_grad():
        marian.lm_head.load_state_dict(model.output.state_dict())
        for theirs, ours in stacks:
            theirs.embed_tokens.weight.copy_(model.target_embedding.weight)
            theirs.embed_positions.weight.copy_(sinusoidal_encoding(config.max_length, config.d_model))
            for layers in zip(theirs.layers, ours.layers, strict=True):
                _copy_layer(*layers)
    return marian.eval()


def _copy_layer(theirs: Any, layer: Any) -> None:
    _copy_attention(theirs.self_attn, layer.attention)
    theirs.self_attn_layer_norm.load_state_dict(layer.attention_norm.state_dict())
    if isinstance(layer, DecoderLayer):
        _copy_attention(theirs.encoder_attn, layer.cross_attention)
        theirs.encoder_attn_layer_norm.load_state_dict(layer.cross_attention_norm.state_dict())
    theirs.fc1.load_state_dict(layer.feed_forward.inner.state_dict())
    theirs.fc2.load_state_dict(layer.feed_forward.outer.state_dict())
    theirs.final_layer_norm.load_state_dict(layer.feed_forward_norm.state_dict())


def _copy_attention(theirs: Any, attention: MultiHeadAttention) -> None:
    projections = (theirs.q_proj, theirs.k_proj, theirs.v_proj)
    weights, biases = attention.in_proj.weight.chunk(3), attention.in_proj.bias.chunk(3)
    for projection, weight, bias in zip(projections, weights, biases, strict=True):
        projection.weight.copy_(weight)
        projection.bias.copy_(bias)
    theirs.out_proj.load_state_dict(attention.out_proj.state_dict())


def decode_with_companion(model: Seq2SeqTransformer, source: Tensor) -> Tensor:
    """Return the ids, ``(batch, 1 + TOKENS)``, that `Seq2SeqTransformer.generate` decodes greedily."""
    return model.generate(source, max_length=1 + TOKENS)


def decode_with_transformers(model: MarianMTModel, source: Tensor) -> Tensor:
    """Return the ids, ``(batch, 1 + TOKENS)``, that ``MarianMTModel.generate`` decodes greedily."""
    with torch.inference_mode():
        return cast(Any, model).generate(
            source,
            attention_mask=torch.ones_like(source),
            max_length=1 + TOKENS,
            num_beams=1,
            do_sample=False,
            use_cache=True,
        )


def contestants(
    models: tuple[Seq2SeqTransformer, MarianMTModel], batch_size: int, source_length: int
) -> dict[str, Callable[[], Tensor]]:
    """Return what decodes one batch of random sources, without padding, with either model."""
    ours, theirs = models
    first = 1 + max(ours.config.pad_id, ours.config.bos_id, ours.config.eos_id)
    generator = torch.Generator().manual_seed(0)
    shape = (batch_size, source_length)
    source = torch.randint(first, ours.config.source_vocab_size, shape, generator=generator).to(DEVICE)
    return {
        OURS: partial(decode_with_companion, ours, source),
        "transformers": partial(decode_with_transformers, theirs, source),
    }


def comparisons() -> Iterator[Comparison]:
    """Yield 256 tokens for one source and for sixteen, by models of each width."""
    for d_model, num_heads in WIDTHS:
        models = pair(d_model, num_heads, 4 * d_model, 3, VOCABULARY, SOURCE_LENGTH)
        for batch_size in (1, 16):
            contenders = contestants(models, batch_size, SOURCE_LENGTH)
            ours, theirs = (decode() for decode in contenders.values())
            assert torch.equal(ours, theirs), "the ids differ"
            yield Comparison(
                part="decoding",
                work=f"{TOKENS} tokens, greedily, d {d_model}, batch {batch_size}",
                amount=TOKENS * batch_size,
                unit="tokens",
                contenders=contenders,
                difference=0.0,
                aim=2.0,
                settings={"d_model": d_model, "batch": batch_size},
            )
