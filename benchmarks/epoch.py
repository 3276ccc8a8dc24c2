"""An epoch on the real IMDB from its token ids, start to finish: ours, torch.nn's usual loop, and Keras's example.

Keras computes on PyTorch here. All three train a Transformer block of the same shape: 64 wide, 2 heads, a feed-forward
network of 256, learned positions, the mean over the tokens, AdamW, dropout 0.1. Ours warms up and clips besides.
"""

import os
import random
from collections.abc import Iterator
from typing import Any

os.environ["KERAS_BACKEND"] = "torch"

import keras
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.encoders import PaddedClassifier, Shape, TorchEncoder
from benchmarks.imdb_batches import MAX_LENGTH, MAX_TOKENS, REVIEWS, VOCABULARY, training_reviews
from benchmarks.turns import DEVICE, OURS, Comparison, largest_difference, sized
from companion import (
    ClassifierConfig,
    TextClassifier,
    TrainingConfig,
    classification_loss,
    labelled_batches,
    pad_batch,
    train,
)

SHARE, SAMPLE = sized(cpu=("a twentieth", 1_250), gpu=("a quarter", 6_250))
"""Of an epoch, and its reviews, drawn from the training split; whole epochs, once each, stand beside it."""

Data = tuple[list[list[int]], list[float]]


def comparisons() -> Iterator[Comparison]:
    """Yield a share of an epoch, to take turns with; then with the batches of ours for torch.nn too."""
    data = sample(SAMPLE)
    work = f"{SHARE} of an epoch, start to finish"
    whole = _comparison(data, work)
    yield whole
    buckets = {OURS: whole.contenders[OURS], "torch.nn": lambda: with_torch(data, in_buckets=True)}
    yield whole._replace(work=f"{work}, in buckets of length", contenders=buckets, aim=None)


def whole_epochs() -> Iterator[Comparison]:
    """Yield a whole epoch."""
    yield _comparison(sample(25_000), "an epoch, start to finish")


def sample(count: int) -> Data:
    """Draw reviews of the training split."""
    ids, labels = training_reviews()
    rows = random.Random(0).sample(range(len(ids)), count)
    return [ids[row] for row in rows], [labels[row] for row in rows]


def _comparison(data: Data, work: str) -> Comparison:
    return Comparison(
        part="epoch",
        work=work,
        amount=sum(map(len, data[0])),
        unit="tokens",
        contenders={
            OURS: lambda: with_companion(data),
            "torch.nn": lambda: with_torch(data),
            "Keras": lambda: with_keras(data),
        },
        difference=compare_keras(data),
        aim=2.0,
        settings={"reviews": len(data[0])},
    )


def make_config() -> ClassifierConfig:
    """Return the shape that all have."""
    return ClassifierConfig(vocab_size=VOCABULARY, max_length=MAX_LENGTH)


def make_torch_model(ours: TextClassifier) -> PaddedClassifier:
    """Make torch.nn's model with the weights of ours."""
    return PaddedClassifier(ours, TorchEncoder(ours.encoder, Shape(64, 2, 1), dropout=0.1)).to(DEVICE)


def with_companion(data: Data) -> None:
    """Train as a user of the package does."""
    ids, labels = data
    batches = labelled_batches(ids, labels, max_tokens=MAX_TOKENS)
    train(TextClassifier(make_config()), batches, TrainingConfig(epochs=1), loss_fn=classification_loss)


def with_torch(data: Data, *, in_buckets: bool = False) -> None:
    """Train as a user of torch.nn does: batches of as many reviews, each padded to its longest; or our batches."""
    ours = TextClassifier(make_config())
    model = make_torch_model(ours)
    examples: Any = list(zip(*data, strict=True))
    loader: Any = DataLoader(examples, batch_size=REVIEWS, shuffle=True, collate_fn=_collate)
    if in_buckets:
        loader = ((batch.input_ids, batch.labels) for batch in labelled_batches(*data, max_tokens=MAX_TOKENS))
    optimizer = torch.optim.AdamW(model.parameters())
    for ids, labels in loader:
        loss = F.binary_cross_entropy_with_logits(model(ids.to(DEVICE)), labels.to(DEVICE))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def with_keras(data: Data) -> None:
    """Train as Keras's example does: all reviews padded to the same length, batches of as many."""
    ids, labels = data
    padded = keras.utils.pad_sequences(ids, maxlen=MAX_LENGTH, padding="post")
    model = make_keras_model()
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(), loss)
    model.fit(padded, np.array(labels), batch_size=REVIEWS, epochs=1, verbose=0)


class TokenAndPositionEmbedding(keras.layers.Layer):
    """What stands under the block in Keras's example."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name)
        self.words = keras.layers.Embedding(VOCABULARY, 64)
        self.positions = keras.layers.Embedding(MAX_LENGTH, 64)

    def call(self, ids: Any) -> Any:
        """Embed token ids."""
        return self.words(ids) + self.positions(keras.ops.arange(MAX_LENGTH))


def make_keras_model() -> keras.Model:
    """Make the block of Keras's example, "Text classification with Transformer", with the shape and mask of ours."""
    layers = keras.layers
    ids = keras.Input((MAX_LENGTH,), dtype="int32")
    tokens = keras.ops.not_equal(ids, 0)
    x = layers.Dropout(0.1)(TokenAndPositionEmbedding(name="embedding")(ids))
    attention = layers.MultiHeadAttention(2, 32, name="attention")
    attended = attention(x, x, attention_mask=keras.ops.expand_dims(tokens, 1))
    x = layers.LayerNormalization(epsilon=1e-5, name="norm_1")(x + layers.Dropout(0.1)(attended))
    inner = layers.Dropout(0.1)(layers.Dense(256, activation="gelu", name="inner")(x))
    outer = layers.Dropout(0.1)(layers.Dense(64, name="outer")(inner))
    x = layers.LayerNormalization(epsilon=1e-5, name="norm_2")(x + outer)
    mean = layers.GlobalAveragePooling1D()(x, mask=tokens)
    return keras.Model(ids, layers.Dense(1, name="output")(mean)[:, 0])


def compare_keras(data: Data) -> float:
    """Give Keras's model and torch.nn's the weights of ours; return the largest difference of their logits."""
    torch.manual_seed(0)
    ours, theirs = TextClassifier(make_config()).eval(), make_keras_model()
    copy_to_keras(ours, theirs)
    peer = make_torch_model(ours).eval()
    ours.to(DEVICE)
    ids = pad_batch(data[0][:REVIEWS]).to(DEVICE)
    padded = F.pad(ids, (0, MAX_LENGTH - ids.size(1)))
    with torch.inference_mode():
        return largest_difference(ours(ids), [theirs(padded, training=False), peer(ids)], 1e-5)


def copy_to_keras(ours: TextClassifier, theirs: keras.Model) -> None:
    """Copy the weights; Keras keeps a map as ``(in, out)``, heads apart."""
    layer: Any = ours.encoder.layers[0]
    q, k, v = (w.T.reshape(64, 2, 32) for w in layer.attention.in_proj.weight.chunk(3))
    bq, bk, bv = (b.reshape(2, 32) for b in layer.attention.in_proj.bias.chunk(3))
    out = layer.attention.out_proj
    weights: dict[str, list[Tensor]] = {
        "embedding": [ours.embedding.weight, next(ours.positions.parameters())],  # type: ignore[union-attr]
        "attention": [q, bq, k, bk, v, bv, out.weight.T.reshape(2, 32, 64), out.bias],
        "norm_1": [layer.attention_norm.weight, layer.attention_norm.bias],
        "inner": [layer.feed_forward.inner.weight.T, layer.feed_forward.inner.bias],
        "outer": [layer.feed_forward.outer.weight.T, layer.feed_forward.outer.bias],
        "norm_2": [layer.feed_forward_norm.weight, layer.feed_forward_norm.bias],
        "output": [ours.output.weight.T, ours.output.bias],
    }
    for name, tensors in weights.items():
        theirs.get_layer(name).set_weights([tensor.detach().numpy() for tensor in tensors])


def _collate(examples: list[tuple[list[int], float]]) -> tuple[Tensor, Tensor]:
    ids, labels = zip(*examples, strict=True)
    return pad_batch(ids), torch.tensor(labels)
