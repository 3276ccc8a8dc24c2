"""Wide encoders, in float32 and bfloat16, beside the matrix products of the same shapes alone."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.encoders import PEERS, READERS, Shape, make_encoder
from benchmarks.imdb_batches import as_they_come
from benchmarks.turns import DEVICE, OURS, Comparison, largest_difference, sized
from companion import encode_tokens

SHAPE, BATCH, LENGTH = sized(cpu=(Shape(256, 4, 4), 8, 256), gpu=(Shape(1_024, 16, 8), 32, 512))
TOLERANCES = {torch.float32: sized(cpu=1e-4, gpu=3e-3), torch.bfloat16: 0.06}
"""Of outputs of variance 1; bfloat16 rounds them to 2^-8 in each layer, torch.nn's fast path on a GPU to 1e-3."""


def comparisons() -> Iterator[Comparison]:
    """Yield, in either precision, the training step on full batches and inference on texts of real lengths."""
    for dtype, aim in ((torch.float32, None), (torch.bfloat16, 1.2)):
        torch.manual_seed(0)
        ours = make_encoder(SHAPE)
        models = {OURS: Ours(ours), **{name: make(ours, SHAPE).to(DEVICE) for name, make in READERS.items()}}
        full = torch.ones(BATCH, LENGTH, dtype=torch.bool, device=DEVICE)
        real = as_they_come(1)[0][0][:BATCH] != 0
        precision = str(dtype).removeprefix("torch.")
        steps = {name: _step(models[name], full, dtype) for name in (OURS, *PEERS)}
        yield Comparison(
            part="wide",
            work=f"training step, full batches, {precision}",
            amount=full.numel(),
            unit="tokens",
            contenders={**steps, "products alone": products(SHAPE, full.numel(), dtype)},
            difference=_compare(steps, full, TOLERANCES[dtype]),
            aim=aim,
            settings={"precision": precision, "mode": "training", "operations": operations(SHAPE, full.numel())},
        )
        readers = {name: _reader(model, real, dtype) for name, model in models.items()}
        yield Comparison(
            part="wide",
            work=f"inference, texts of real lengths, {precision}",
            amount=int(real.sum()),
            unit="tokens",
            contenders=readers,
            difference=_compare(readers, real, TOLERANCES[dtype]),
            aim=1.5,
            settings={"precision": precision, "mode": "inference", "padding": round(1 - float(real.float().mean()), 3)},
        )


class Ours(nn.Module):
    """Our encoder, called as the others are."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Encode the tokens alone."""
        return encode_tokens(self.encoder, x, tokens)


def operations(shape: Shape, tokens: int) -> int:
    """Count the floating-point operations of a step's products with weights, 2 to a multiply-add, backward 2 of 3."""
    return 3 * 2 * tokens * 12 * shape.d_model**2 * shape.num_layers


def products(shape: Shape, tokens: int, dtype: torch.dtype) -> Callable[[], None]:
    """Return what computes these products and nothing else: for each map the output, and both gradients."""
    width = shape.d_model
    maps = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
    operands = [
        [torch.randn(shape, dtype=dtype, device=DEVICE) for shape in ((tokens, i), (i, o), (tokens, o))]
        for i, o in maps
    ]

    def compute() -> None:
        for _ in range(shape.num_layers):
            for x, weight, gradient in operands:
                x @ weight, gradient @ weight.T, gradient.T @ x

    return compute


def _compare(contenders: dict[str, Callable[[], Tensor]], tokens: Tensor, tolerance: float) -> float:
    ours, *others = [contender()[tokens] for contender in contenders.values()]
    return largest_difference(ours, others, tolerance)


def _step(model: nn.Module, tokens: Tensor, dtype: torch.dtype) -> Callable[[], Tensor]:
    """Return forward and backward pass under autocast; no optimizer, which is the same for all."""
    x = torch.randn(*tokens.shape, SHAPE.d_model, generator=torch.Generator().manual_seed(0)).to(DEVICE)

    x.requires_grad_()  # as what comes from an embedding does

    def step() -> Tensor:
        model.train()
        with torch.autocast(DEVICE.type, dtype, enabled=dtype != torch.float32):
            output = model(x, tokens)
        output.float().square().mean().backward()
        model.zero_grad()
        x.grad = None
        return output.detach().float()

    return step


def _reader(model: nn.Module, tokens: Tensor, dtype: torch.dtype) -> Callable[[], Tensor]:
    x = torch.randn(*tokens.shape, SHAPE.d_model, generator=torch.Generator().manual_seed(0)).to(DEVICE)

    @torch.inference_mode()
    def read() -> Tensor:
        model.eval()
        with torch.autocast(DEVICE.type, dtype, enabled=dtype != torch.float32):
            return model(x, tokens).float()

    return read
