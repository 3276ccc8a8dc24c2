"""Where a training step's time goes: PyTorch's profiler, its operations in ten groups."""

from collections.abc import Callable, Iterator
from typing import Any

from torch.profiler import ProfilerActivity, profile

from benchmarks import classifier, wide
from benchmarks.turns import OURS

GROUPS = {
    "attention": ("scaled_dot_product", "flash_attention", "softmax", "bmm", "baddbmm"),
    "products with weights": ("aten::mm", "aten::addmm", "mkldnn_linear"),
    "random numbers of dropout": ("bernoulli", "aten::random", "native_dropout"),
    "activation": ("gelu",),
    "normalisation": ("layer_norm",),
    "embedding": ("embedding", "aten::index", "scatter"),
    "optimizer": ("adamw", "AdamW", "aten::sqrt", "addcdiv", "addcmul", "lerp"),
    "copies and casts": ("aten::copy_", "aten::cat", "aten::fill_", "aten::zero_", "aten::clone"),
    "sums and element by element": ("aten::add", "aten::mul", "aten::sum", "aten::div", "aten::where", "masked_fill"),
}
"""The first group of which a part stands in an operation's name takes it; what is left is dispatch."""


def rows() -> Iterator[dict[str, Any]]:
    """Yield, for a step of ours and of torch.nn's, the share of the CPU's time that each group takes."""
    for part, comparisons in (("classifier", classifier.comparisons), ("wide", wide.comparisons)):
        for comparison in comparisons():
            if "training step" in comparison.work:
                for name in (OURS, "torch.nn"):
                    shares = profile_shares(comparison.contenders[name])
                    yield {"part": "profile", "of": part, "work": comparison.work, "contender": name, "shares": shares}


def profile_shares(work: Callable[[], object], repeats: int = 3) -> dict[str, float]:
    """Return the share of each group, 0 to 1, over a few calls after a first one."""
    work()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(repeats):
            work()
    seconds = dict.fromkeys([*GROUPS, "dispatch and the rest"], 0.0)
    for event in profiler.key_averages():
        seconds[_group(event.key)] += event.self_cpu_time_total
    total = sum(seconds.values())
    return {group: round(value / total, 4) for group, value in seconds.items()}


def _group(operation: str) -> str:
    return next(
        (group for group, parts in GROUPS.items() if any(part in operation for part in parts)), "dispatch and the rest"
    )
