"""Several processes train and measure as one does: on CPUs with gloo, with whole and with sharded weights."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from companion.cli import main
from companion.records import TrainingRecord

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(sys.platform == "win32", reason="signals a group of processes, as Windows cannot"),
]

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]

SMALL = [
    *("--model.d-model", "16", "--model.d-ff", "32", "--model.num-layers", "1", "--model.max-length", "64"),
    *("--model.dropout", "0", "--model.embedding-dropout", "0", "--model.word-dropout", "0"),
    *("--training.epochs", "2", "--training.learning-rate", "0.01"),
]

SCRIPT = """
import json
import os
import sys

import torch
import torch.distributed

import companion.training
from companion import ClassifierConfig, TextClassifier, TrainingConfig, classification_loss, evaluate, train
from companion.batching import labelled_batches

OUTPUT, KIND, KILL = sys.argv[1], sys.argv[2], int(sys.argv[3])
RANK = int(os.environ["RANK"])

generator = torch.Generator().manual_seed(0)
lengths = torch.randint(1, 12, (60,), generator=generator).tolist()
# The first token of each example is its number, so that batches say which examples are in them.
sequences = [[number, *torch.randint(2, 90, (n,), generator=generator).tolist()] for number, n in enumerate(lengths, 2)]
labels = [int(max(sequence[1:]) > 60) for sequence in sequences]
batches = labelled_batches(sequences[:41], labels[:41], max_tokens=30, seed=5)
dev = labelled_batches(sequences[41:], labels[41:], max_tokens=30, shuffle=False)

if KIND == "sharded":  # Accelerate shards on accelerators only; this tells it that these CPUs are some
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    found = companion.training.make_accelerator

    def sharding(*args, **settings):
        accelerator = found(*args, **settings)
        accelerator.state._shared_state["distributed_type"] = DistributedType.FSDP
        accelerator.state._shared_state["fsdp_plugin"] = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            cpu_ram_efficient_loading=False,
            auto_wrap_policy="TRANSFORMER_BASED_WRAP",
            transformer_cls_names_to_wrap=["EncoderLayer"],
        )
        return accelerator

    companion.training.make_accelerator = sharding

torch.manual_seed(1)
shape = {"vocab_size": 90, "d_model": 8, "num_heads": 2, "d_ff": 16, "num_layers": 2, "max_length": 16}
model = TextClassifier(ClassifierConfig(**shape, dropout=0.2))
calls, seen, types = 0, [], set()


def loss_fn(model, batch):
    global calls
    calls += model.training
    if RANK == 1 and calls == KILL:
        os.kill(os.getpid(), 9)
    if not model.training:
        seen.extend(batch.input_ids[:, 0].tolist())
    types.update(type(parameter).__name__ for parameter in model.parameters())
    return classification_loss(model, batch)


config = TrainingConfig(epochs=2, learning_rate=0.01, mixed_precision="fp32", gradient_accumulation_steps=2)
record = train(
    model, batches, config, loss_fn=loss_fn, eval_batches=dev, output=OUTPUT, resume=True, checkpoint_every=1
)
seen.clear()
measured = evaluate(model, dev, loss_fn=loss_fn)
with open(f"{OUTPUT}-{RANK}.json", "w") as file:
    json.dump({"measured": measured, "dev": record.dev, "seen": seen, "types": sorted(types), "calls": calls}, file)
torch.distributed.destroy_process_group()
"""


def launch(*words: object) -> subprocess.CompletedProcess:
    return subprocess.run([*TORCHRUN, *map(str, words)], capture_output=True, text=True, timeout=120)


def assert_close(one: dict, other: dict, tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=tolerance)


def without_seconds(history: list[dict]) -> list[dict]:
    return [{name: value for name, value in entry.items() if name != "seconds"} for entry in history]


def test_the_command_line_trains_with_two_processes_as_with_one_that_takes_twice_the_tokens(tmp_path, capsys):
    two, one = tmp_path / "two", tmp_path / "one"
    ran = launch("-m", "companion", "train", "toy", "--output", two, *SMALL, "--max-tokens", 512)
    assert ran.returncode == 0, ran.stderr
    assert main(["train", "toy", "--output", str(one), *SMALL, "--max-tokens", "1024"]) == 0
    records = [TrainingRecord.load(run / "record.json") for run in (two, one)]
    assert [record.hardware["processes"] for record in records] == [2, 1]
    assert ran.stdout == capsys.readouterr().out.replace(str(one), str(two))
    for entry, expected in zip(records[0].history, records[1].history, strict=True):
        assert entry["tokens"] == expected["tokens"]
        for split in ("train", "dev"):
            # Sums of float32 in another order differ by 1e-7 of their size; some 90 updates pass that on.
            assert entry[split]["loss"] == pytest.approx(expected[split]["loss"], abs=1e-5)
            # Of 500 and more reviews, one may lie within that of the border.
            assert entry[split]["accuracy"] == pytest.approx(expected[split]["accuracy"], abs=0.002)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Train with whole and with sharded weights, and once more with a process killed on the way."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "script.py").write_text(SCRIPT)
    for kind in ("whole", "sharded"):
        for name, kill in ((kind, 0), (f"{kind}-killed", 11)):
            ran = launch(folder / "script.py", folder / name, kind, kill)
            if kill:
                assert ran.returncode != 0
                names = [path.name for path in (folder / name / "checkpoints").iterdir() if path.name[0] != "."]
                assert len(names) == 1
                assert names[0].startswith("epoch-0001-batch-"), ran.stderr
                ran = launch(folder / "script.py", folder / name, kind, 0)
            assert ran.returncode == 0, ran.stderr
    return folder


def figures(folder: Path, name: str) -> list[dict]:
    return [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("kind", ["whole", "sharded"])
def test_evaluation_counts_each_example_exactly_once(runs, kind):
    found = figures(runs, kind)
    assert sorted(found[0]["seen"] + found[1]["seen"]) == [*range(43, 62)]
    assert abs(len(found[0]["seen"]) - len(found[1]["seen"])) <= 3  # a review at most for each of three batches
    assert found[0]["measured"] == found[1]["measured"] == pytest.approx(found[0]["dev"], abs=1e-6)


@pytest.mark.parametrize("kind", ["whole", "sharded"])
def test_a_process_killed_with_kill_9_changes_nothing_in_the_end(runs, kind):
    one, other = runs / kind, runs / f"{kind}-killed"
    records = [TrainingRecord.load(run / "record.json") for run in (one, other)]
    assert without_seconds(records[0].history) == without_seconds(records[1].history)
    assert records[0].dev == records[1].dev
    for path in ("model", "checkpoints/epoch-0002/model", "checkpoints/epoch-0002/optimizer"):
        whole, resumed = (load_file(run / f"{path}.safetensors") for run in (one, other))
        assert_close(whole, resumed, 0.0)
    assert figures(runs, f"{kind}-killed")[0]["calls"] < figures(runs, kind)[0]["calls"]


def test_sharded_weights_train_as_whole_ones_and_leave_the_same_files(runs):
    assert ["DTensor" in figures(runs, kind)[0]["types"] for kind in ("whole", "sharded")] == [False, True]
    whole, sharded = (TrainingRecord.load(runs / kind / "record.json") for kind in ("whole", "sharded"))
    assert whole.parameters == sharded.parameters
    for entry, expected in zip(sharded.history, whole.history, strict=True):
        assert entry["train"]["loss"] == pytest.approx(expected["train"]["loss"], abs=1e-5)
        assert entry["dev"]["loss"] == pytest.approx(expected["dev"]["loss"], abs=1e-5)
    weights, optimizers = (
        [load_file(runs / kind / f"{path}.safetensors") for kind in ("whole", "sharded")]
        for path in ("model", "checkpoints/epoch-0002/optimizer")
    )
    for tensors, layer in itertools.product(weights, range(2)):
        # The softmax cancels the bias of the keys: its gradient is rounding alone, which Adam scales up to a step.
        tensors[f"encoder.layers.{layer}.attention.in_proj.bias"][8:16] = 0
    assert_close(*weights, 1e-6)
    assert_close(*optimizers, 1e-6)
    assert "encoder.layers.0.feed_forward.inner.weight.exp_avg_sq" in optimizers[0]


def test_ctrl_c_stops_both_processes_after_the_same_update(tmp_path):
    run = tmp_path / "run"
    words = ["-m", "companion", "train", "toy", "--output", run, *SMALL, "--training.epochs", "500"]
    process = subprocess.Popen(
        [*TORCHRUN, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not list(run.glob("checkpoints/epoch-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, stderr = process.communicate(timeout=60)
    assert process.returncode != 0
    stops = re.findall(r"^(stopped in epoch \d+, update \d+, with a checkpoint); run it again", stderr, re.MULTILINE)
    assert len(stops) == 2, stderr
    assert stops[0] == stops[1]
    (checkpoint,) = run.glob("checkpoints/*")
    assert re.fullmatch(r"epoch-\d{4}-batch-\d{6}", checkpoint.name)
