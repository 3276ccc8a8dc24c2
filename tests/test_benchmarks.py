"""The method of the benchmarks: turns, ratios, and the proof that outputs are equal."""

import itertools
import math
from collections import Counter
from pathlib import Path

import pytest
import torch

from benchmarks import attention, turns
from benchmarks.turns import Comparison, advantage, largest_difference, ratios, run, take_turns


def test_contenders_warm_up_and_then_take_turns_each_as_often_after_each_other():
    calls = []
    seconds = take_turns({name: lambda name=name: calls.append(name) for name in "abc"}, rounds=600)
    assert calls[:3] == ["a", "b", "c"]
    rounds = list(zip(*[iter(calls[3:])] * 3, strict=True))
    assert all(sorted(turn) == ["a", "b", "c"] for turn in rounds)
    orders = Counter(rounds)
    assert len(orders) == 6
    assert all(count == pytest.approx(100, abs=5 * math.sqrt(600 / 6 * 5 / 6)) for count in orders.values())
    assert {name: len(values) for name, values in seconds.items()} == dict.fromkeys("abc", 600)


def test_seconds_are_those_of_each_call(monkeypatch):
    clock = itertools.count(0, 5)
    monkeypatch.setattr(turns.time, "perf_counter", lambda: next(clock))
    slow = {"quick": lambda: None, "slow": lambda: next(clock)}
    assert take_turns(slow, rounds=2) == {"quick": [5, 5], "slow": [10, 10]}


def test_a_ratio_is_the_median_of_the_pairs_and_not_a_ratio_of_medians():
    row = {"seconds": {"companion": [1.0, 2.0, 10.0], "peer": [3.0, 2.0, 40.0], "products alone": [0.5, 1.0, 1.0]}}
    assert ratios(row) == {"peer": 3.0, "products alone": 0.5}
    assert advantage(row) == 3.0


def test_the_advantage_is_over_the_fastest_peer():
    row = {"seconds": {"companion": [1.0], "slow": [4.0], "fast": [1.5], "products alone": [0.5]}}
    assert advantage(row) == 1.5


def test_a_row_keeps_what_was_compared():
    work = {"companion": lambda: None, "peer": lambda: None}
    row = run(Comparison("part", "work", 7, "tokens", work, 1e-6, 1.5, {"layers": 2}), rounds=3)
    assert {name: len(values) for name, values in row.pop("seconds").items()} == {"companion": 3, "peer": 3}
    assert row == {
        "part": "part",
        "work": "work",
        "amount": 7,
        "unit": "tokens",
        "difference": 1e-6,
        "aim": 1.5,
        "layers": 2,
        "threads": torch.get_num_threads(),
    }


def test_outputs_that_differ_are_not_timed():
    ours, close, far = torch.zeros(3), torch.tensor([0.0, -1e-6, 0.0]), torch.tensor([0.0, 0.0, 1.0])
    assert largest_difference(ours, [ours, close], 1e-5) == pytest.approx(1e-6)
    with pytest.raises(AssertionError, match=r"the outputs differ by 1\.0; expected at most 1e-05"):
        largest_difference(ours, [close, far], 1e-5)
    with pytest.raises(AssertionError, match="differ by nan"):
        largest_difference(ours, [torch.full((3,), torch.nan)], 1e-5)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_the_peak_of_memory_is_that_of_attention_and_not_of_the_process_that_asks():
    held = torch.ones(2**27)  # 512 MB, past the peak of a process that imports torch and attends
    ours, explicit = (attention.peak_memory(512, way) for way in ("companion", "explicit"))
    weights = 4 * attention.HEADS * 512**2
    assert 0 < ours < weights * 2 < explicit < held.nbytes
