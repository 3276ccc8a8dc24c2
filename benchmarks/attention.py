"""Attention alone, forward and backward, from 128 to 8,192 positions, beside each way to compute it."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.turns import DEVICE, OURS, Comparison, largest_difference, sized
from companion import MultiHeadAttention, scaled_dot_product_attention

HEADS, POSITIONS = sized(cpu=(4, 2_048), gpu=(16, 16_384))
HEAD_DIM = 64
LENGTHS = (128, 256, 512, 1_024, 2_048, 4_096, 8_192)
LONGEST_EXPLICIT = 2_048
TOLERANCES = {torch.float32: sized(cpu=1e-4, gpu=1e-3), torch.bfloat16: 0.1}
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


KERNELS: dict[str, tuple[SDPBackend, tuple[torch.dtype, ...]]] = sized(
    cpu={"fused kernel": (SDPBackend.FLASH_ATTENTION, (torch.float32, torch.bfloat16))},
    gpu={
        "efficient kernel": (SDPBackend.EFFICIENT_ATTENTION, (torch.float32, torch.bfloat16)),
        "flash kernel": (SDPBackend.FLASH_ATTENTION, (torch.bfloat16,)),
        "cuDNN kernel": (SDPBackend.CUDNN_ATTENTION, (torch.bfloat16,)),
    },
)
"""PyTorch's fused ones here, and what they take."""


def ways(length: int, dtype: torch.dtype = torch.float32) -> dict[str, Attend]:
    """Return what computes attention of queries, keys and values, ``(batch, heads, length, head_dim)`` each."""
    module = MultiHeadAttention(HEADS * HEAD_DIM, HEADS)
    found: dict[str, Attend] = {OURS: lambda q, k, v: module._attend(q, k, v, None, None)}
    found |= {name: _by(kernel) for name, (kernel, taken) in KERNELS.items() if dtype in taken}
    if length <= LONGEST_EXPLICIT:
        found["explicit"] = lambda q, k, v: scaled_dot_product_attention(q, k, v).output
        found["unfused kernel"] = _by(SDPBackend.MATH)
    return found


def comparisons() -> Iterator[Comparison]:
    """Yield each length, of a few thousand positions in all or one sequence of more."""
    for dtype in (torch.float32, torch.bfloat16):
        for length in LENGTHS:
            batch = max(1, POSITIONS // length)
            torch.manual_seed(0)
            inputs = [x.to(dtype) for x in _draw(length, batch)]
            contenders = {name: _passes(attend, inputs) for name, attend in ways(length, dtype).items()}
            mine, *others = [passes() for passes in contenders.values()]
            precision = str(dtype).removeprefix("torch.")
            yield Comparison(
                part="attention",
                work=f"forward and backward, {length:,} positions, {precision}",
                amount=batch * length,
                unit="positions",
                contenders=contenders,
                difference=largest_difference(mine, others, TOLERANCES[dtype]),
                aim=1 / 1.05,
                settings={"precision": precision, "length": length},
            )


def memory_rows() -> Iterator[dict[str, Any]]:
    """Yield the peak of memory of one sequence of each length, by ours and by the explicit way."""
    for length in LENGTHS:
        peaks = {way: peak_memory(length, way) for way in (OURS, "explicit") if way in ways(length)}
        yield {"part": "memory", "work": f"{length:,} positions, float32", "length": length, "bytes": peaks}


def peak_memory(length: int, way: str) -> int:
    """Return the bytes by which forward and backward pass of one sequence raise the peak: a GPU's, or a process's."""
    if DEVICE.type == "cuda":
        return _raise_peak(length, way)
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.attention", str(length), way]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _passes(attend: Attend, inputs: list[Tensor]) -> Callable[[], Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]

    def passes() -> Tensor:
        output = attend(*leaves)
        gradients = torch.autograd.grad(output.float().square().sum(), leaves)
        return torch.stack([output.detach(), *gradients])

    return passes


def _by(kernel: SDPBackend) -> Attend:
    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel(kernel):
            return F.scaled_dot_product_attention(query, key, value)

    return attend


def _raise_peak(length: int, way: str) -> int:
    attend = ways(length)[way]
    _passes(attend, _draw(16))()  # what the first call alone allocates is not the length's
    passes = _passes(attend, _draw(length))
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = _peak()
    passes()
    return _peak() - before


def _draw(length: int, batch: int = 1) -> list[Tensor]:
    return [torch.randn(batch, length, HEADS, HEAD_DIM, device=DEVICE).transpose(1, 2) for _ in range(3)]


def _peak() -> int:
    """Return the bytes of the peak; of a process, where ``ru_maxrss`` has that of the process that started it, too."""
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated()
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text("utf-8"), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


if __name__ == "__main__":
    print(_raise_peak(int(sys.argv[1]), sys.argv[2]))
