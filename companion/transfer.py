"""Transfer: an ALBERT is pre-trained on texts alone, and fine-tuned on texts with labels."""

import math
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import torch

from companion.albert import (
    AlbertConfig,
    AlbertForPreTraining,
    AlbertModel,
    AlbertTextClassifier,
    AlbertTextConfig,
    checkpoint_folder,
    load_albert,
)
from companion.cooccurrence import cooccurrence_vectors
from companion.positions import sinusoidal_encoding
from companion.records import read_json
from companion.runs import RunFolder
from companion.text import SentencePieceTokenizer


def warm_start(model: AlbertForPreTraining, sequences: Sequence[Sequence[int]]) -> None:
    """Begin a pre-training where counting leads to, instead of at random.

    The word embeddings become `cooccurrence_vectors`, the position embeddings sinusoids as large as they
    (`sinusoidal_encoding`), the bias of the masked-language head the logarithm of each token's share. The paper begins
    at random; on little text that takes longer.

    Args:
        model: The model, changed in place.
        sequences: Token ids of the texts to pre-train on.

    Raises:
        ValueError: If ``embedding_size`` is odd, or as `cooccurrence_vectors`.

    Example:
        >>> config = AlbertConfig(
        ...     vocab_size=10, embedding_size=4, hidden_size=8, num_attention_heads=2, intermediate_size=16
        ... )
        >>> model = AlbertForPreTraining(config)
        >>> warm_start(model, [[5, 6, 7], [5, 8, 7], [7, 9, 5]] * 9)
        >>> model.predictions.bias.exp()[5:]  # 5 and 7 stand there 27 times, the others 9
        tensor([0.3077, 0.1099, 0.3077, 0.1099, 0.1099], grad_fn=<SliceBackward0>)
    """
    config, embeddings, std = model.config, model.albert.embeddings, model.config.initializer_range
    counts = torch.ones(config.vocab_size)
    for sequence in sequences:
        counts.index_add_(0, torch.tensor(sequence), torch.ones(len(sequence)))
    with torch.no_grad():
        vectors = cooccurrence_vectors(sequences, config.vocab_size, config.embedding_size)
        embeddings.word.weight.copy_(std * vectors)
        positions = sinusoidal_encoding(config.max_position_embeddings, config.embedding_size)
        embeddings.position.weight.copy_(std * math.sqrt(2) * positions)
        model.predictions.bias.copy_((counts / counts.sum()).log())


class PreTrained(NamedTuple):
    """A pre-trained encoder and the tokenizer that goes with it.

    Attributes:
        model: The encoder.
        tokenizer: What makes its token ids.

    Example:
        >>> texts = [review.text for review in toy.reviews(500)]
        >>> tokenizer = SentencePieceTokenizer.train(texts, vocab_size=60, path="spiece.model")
        >>> config = AlbertConfig(vocab_size=60, hidden_size=8, num_attention_heads=2, intermediate_size=16)
        >>> pretrained = PreTrained(AlbertModel(config), tokenizer)
        >>> ids = torch.tensor([[tokenizer.cls_id, *tokenizer.encode("The plot"), tokenizer.sep_id]])
        >>> pretrained.model(ids).pooler_output.shape
        torch.Size([1, 8])
    """

    model: AlbertModel
    tokenizer: SentencePieceTokenizer


def load_pretrained(path: str | os.PathLike[str]) -> PreTrained:
    """Load what there is to fine-tune.

    Args:
        path: A run folder of ``pretrain albert``; or what `load_albert` takes, with a ``spiece.model`` beside it.

    Returns:
        The encoder and its tokenizer.

    Raises:
        FileNotFoundError: If the folder, or a file in it, is missing.
        ValueError: If a file is damaged or does not fit the others.

    Example:
        >>> texts = [review.text for review in toy.reviews(500)]
        >>> tokenizer = SentencePieceTokenizer.train(texts, vocab_size=60, path="checkpoint.model")
        >>> config = AlbertConfig(vocab_size=60, hidden_size=8, num_attention_heads=2, intermediate_size=16)
        >>> save_albert(AlbertModel(config), "checkpoint")
        >>> tokenizer.save("checkpoint/spiece.model")
        >>> load_pretrained("checkpoint").tokenizer == tokenizer
        True
    """
    run = RunFolder(path)
    entries = read_json(run.config) if run.config.exists() else {}
    if "model" not in entries:
        folder = checkpoint_folder(path)
        return _with_tokenizer(load_albert(folder), folder / run.pieces.name)
    shape = entries["model"]
    if not isinstance(shape, dict) or shape.get("kind") != AlbertForPreTraining.__name__:
        raise ValueError(f"{run.folder} is no run of pretrain albert; name one, or the folder of a checkpoint")
    if not run.weights.exists():
        raise FileNotFoundError(f"{run.weights} does not exist; pretrain albert has not finished an epoch there")

    def make() -> AlbertForPreTraining:
        return AlbertForPreTraining(AlbertConfig(**{name: shape[name] for name in shape if name != "kind"}))

    return _with_tokenizer(run.load_model(make, "an ALBERT").albert, run.pieces)


def _with_tokenizer(model: AlbertModel, pieces: Path) -> PreTrained:
    tokenizer = SentencePieceTokenizer.load(pieces)
    if len(tokenizer.vocabulary) != model.config.vocab_size:
        wanted = f"vocab_size={model.config.vocab_size}, the model's"
        raise ValueError(f"{pieces} has {len(tokenizer.vocabulary)} pieces; expected {wanted}")
    if model.config.pad_token_id != 0:
        raise ValueError(f"{pieces} has padding at 0; expected pad_token_id={model.config.pad_token_id}, the model's")
    return PreTrained(model, tokenizer)


def make_classifier(model: AlbertModel, **changes: Any) -> AlbertTextClassifier:
    """Put a fresh head on a pre-trained encoder, whose pooler is left out.

    Args:
        model: The encoder; it is copied.
        **changes: Fields of `AlbertTextConfig` that are to be others than those it was pre-trained with, such as the
            dropout.

    Returns:
        The classifier.

    Example:
        >>> config = AlbertConfig(vocab_size=9, hidden_size=8, num_attention_heads=2, intermediate_size=16)
        >>> model = AlbertModel(config)
        >>> classifier = make_classifier(model, max_length=1_000, hidden_dropout_prob=0.1)
        >>> torch.equal(classifier.albert.embedding_map.weight, model.embedding_map.weight)
        True
    """
    shape = {field.name: getattr(model.config, field.name) for field in fields(AlbertConfig)}
    classifier = AlbertTextClassifier(AlbertTextConfig(**shape | changes))
    weights = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("pooler.")}
    classifier.albert.load_state_dict(weights)
    return classifier
