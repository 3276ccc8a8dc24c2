"""Wide encoders on full batches, in float32 and bfloat16, beside the matrix products of the same shapes alone."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.encoders import PEERS, Shape, make_encoder
from benchmarks.turns import OURS, Comparison, largest_difference

SHAPE, BATCH, LENGTH = Shape(256, 4, 4), 8, 256
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.06}
"""Of outputs of variance 1; bfloat16 rounds them to 2^-8, four layers one after the other."""


def comparisons() -> Iterator[Comparison]:
    """Yield the training step in either precision."""
    for dtype, aim in ((torch.float32, None), (torch.bfloat16, 1.2)):
        torch.manual_seed(0)
        ours = make_encoder(SHAPE)
        models = {OURS: ours, **{name: make(ours, SHAPE) for name, make in PEERS.items()}}
        x = torch.randn(BATCH, LENGTH, SHAPE.d_model)
        steps = {name: _step(name, model, x, dtype) for name, model in models.items()}
        mine, *others = [step() for step in steps.values()]
        precision = str(dtype).removeprefix("torch.")
        yield Comparison(
            part="wide",
            work=f"training step, {precision}",
            amount=BATCH * LENGTH,
            unit="tokens",
            contenders={**steps, "products alone": products(SHAPE, BATCH * LENGTH, dtype)},
            difference=largest_difference(mine, others, TOLERANCES[dtype]),
            aim=aim,
            settings={"precision": precision, "operations": operations(SHAPE, BATCH * LENGTH)},
        )


def operations(shape: Shape, tokens: int) -> int:
    """Count the floating-point operations of a step's products with weights, 2 to a multiply-add, backward 2 of 3."""
    return 3 * 2 * tokens * 12 * shape.d_model**2 * shape.num_layers


def products(shape: Shape, tokens: int, dtype: torch.dtype) -> Callable[[], None]:
    """Return what computes these products and nothing else: for each map the output, and both gradients."""
    width = shape.d_model
    maps = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
    operands = [
        (torch.randn(tokens, i, dtype=dtype), torch.randn(i, o, dtype=dtype), torch.randn(tokens, o, dtype=dtype))
        for i, o in maps
    ]

    def compute() -> None:
        for _ in range(shape.num_layers):
            for x, weight, gradient in operands:
                x @ weight, gradient @ weight.T, gradient.T @ x

    return compute


def _step(name: str, model: nn.Module, x: Tensor, dtype: torch.dtype) -> Callable[[], Tensor]:
    """Return forward and backward pass under autocast; no optimizer, which is the same for all."""
    model.train()
    tokens = torch.ones(x.shape[:2], dtype=torch.bool)

    def step() -> Tensor:
        model.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            output = model(x) if name == OURS else model(x, tokens)
        output.float().square().mean().backward()
        return output.detach().float()

    return step
