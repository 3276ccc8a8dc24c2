"""torch.compile: the same models compiled and not, ours and torch.nn's."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.encoders import Shape, TorchEncoder, make_encoder
from benchmarks.turns import DEVICE, OURS, Comparison, largest_difference, sized

CASES = sized(
    cpu=((Shape(64, 2, 2), 32), (Shape(256, 4, 4), 8)), gpu=((Shape(256, 4, 4), 64), (Shape(1_024, 16, 8), 32))
)
LENGTH = 256


def comparisons() -> Iterator[Comparison]:
    """Yield a training step on full batches in float32, narrow and wide; it leaves compilation to the warm-up."""
    for shape, batch in CASES:
        torch.manual_seed(0)
        ours = make_encoder(shape)
        theirs = TorchEncoder(ours, shape).encoder.to(DEVICE)
        models = {
            OURS: ours,
            "companion, compiled": torch.compile(ours),
            "torch.nn": theirs,
            "torch.nn, compiled": torch.compile(theirs),
        }
        x = torch.randn(batch, LENGTH, shape.d_model, device=DEVICE)
        steps = {name: _step(model, x) for name, model in models.items()}
        mine, *others = [step() for step in steps.values()]
        yield Comparison(
            part="compiled",
            work=f"training step, {shape.d_model} wide, {shape.num_layers} layers, full batches, float32",
            amount=batch * LENGTH,
            unit="tokens",
            contenders=steps,
            difference=largest_difference(mine, others, 1e-4),
        )


def _step(model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    model.train()

    def step() -> Tensor:
        model.zero_grad()
        output = model(x)
        output.square().mean().backward()
        return output.detach()

    return step
