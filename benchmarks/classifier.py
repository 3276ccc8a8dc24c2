"""The IMDB classifier: training steps and inference on real reviews, beside three other libraries."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.encoders import PEERS, READERS, Shape, make_classifiers
from benchmarks.imdb_batches import MAX_LENGTH, VOCABULARY, Batches, as_they_come, in_buckets
from benchmarks.turns import Comparison, largest_difference, sized

TOLERANCE = sized(cpu=1e-5, gpu=1e-4)
"""Of logits, and of gradients that sum over all tokens of a batch."""

CASES: list[tuple[int, float, Callable[[int], Batches], str, int, float | None]] = [
    (1, 0.0, as_they_come, "as they come", 4, 1.5),
    (2, 0.0, as_they_come, "as they come", 4, 1.5),
    (2, 0.1, as_they_come, "as they come", 2, 1.3),
    (1, 0.0, in_buckets, "in buckets of length", 4, 1.5),
    (2, 0.0, in_buckets, "in buckets of length", 4, 1.5),
    (2, 0.1, in_buckets, "in buckets of length", 2, 1.3),
]
"""Layers, attention dropout, the batches and how they are drawn, their number, the aim of a training step."""


def comparisons() -> Iterator[Comparison]:
    """Yield the training steps, and for each that drops nothing the inference."""
    for num_layers, dropout, draw, drawn, count, aim in CASES:
        batches = draw(count)
        shape = Shape(64, 2, num_layers, dropout)
        work = f"{num_layers} layer{'s' * (num_layers > 1)}, batches {drawn}"
        settings = {"layers": num_layers, "batches": drawn, "padding": round(batches.padding, 3), "dropout": dropout}
        models = make_classifiers(shape, VOCABULARY, MAX_LENGTH, PEERS)
        difference = _compare(models, batches[0])
        yield Comparison(
            part="classifier",
            work=f"training step, {work}" + (f", attention dropout {dropout}" if dropout else ""),
            amount=batches.tokens,
            unit="tokens",
            contenders={name: _trainer(model, batches) for name, model in models.items()},
            difference=difference,
            aim=aim,
            settings={**settings, "mode": "training"},
        )
        if not dropout:
            models = make_classifiers(shape, VOCABULARY, MAX_LENGTH, READERS)
            yield Comparison(
                part="classifier",
                work=f"inference, {work}",
                amount=batches.tokens,
                unit="tokens",
                contenders={name: _reader(model, batches) for name, model in models.items()},
                difference=_compare(models, batches[0]),
                aim=1.5,
                settings={**settings, "mode": "inference"},
            )


def _compare(models: dict[str, nn.Module], batch: tuple[Tensor, Tensor]) -> float:
    """Compare logits in inference, and the gradients of the embeddings with dropout off."""
    with torch.inference_mode():
        ours, *others = [model.eval()(batch[0]) for model in models.values()]
    difference = largest_difference(ours, others, TOLERANCE)
    ours, *others = [_gradient(model, batch) for model in models.values()]
    return max(difference, largest_difference(ours, others, TOLERANCE))


def _gradient(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    ids, labels = batch
    F.binary_cross_entropy_with_logits(model.eval()(ids), labels, reduction="sum").backward()
    gradient = model.get_parameter("embedding.weight").grad
    assert gradient is not None
    model.zero_grad()
    return gradient


def _trainer(model: nn.Module, batches: Batches) -> Callable[[], None]:
    """Take a step on each batch with AdamW, fused for all."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def train() -> None:
        for ids, labels in batches:
            F.binary_cross_entropy_with_logits(model(ids), labels).backward()
            optimizer.step()
            optimizer.zero_grad()

    return train


def _reader(model: nn.Module, batches: Batches) -> Callable[[], None]:
    model.eval()

    @torch.inference_mode()
    def read() -> None:
        for ids, _ in batches:
            model(ids)

    return read
