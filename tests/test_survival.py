"""Training survives kill -9 at any moment, also while a checkpoint is being written.

The processes are forked from one that has the libraries loaded, and run the command line on few reviews.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from companion.records import TrainingRecord

TRAIN = '''
import functools
import os
import pathlib
import random
import shutil
import signal
import sys
import time

import torch

import companion.cli.corpora
import companion.files

torch.set_num_threads(1)
companion.cli.corpora.TOY_SIZE, companion.cli.corpora.TOY_TEST_SIZE = 1_500, 100
companion.cli.corpora.toy.reviews = functools.cache(companion.cli.corpora.toy.reviews)
companion.cli.corpora.toy.reviews(1_500, seed=0)

SMALL = [
    *("--model.d-model", "16", "--model.d-ff", "32", "--model.num-layers", "1", "--model.max-length", "32"),
    *("--training.epochs", "3", "--training.learning-rate", "0.01", "--max-tokens", "1024"),
    *("--training.gradient-accumulation-steps", "2", "--checkpoint-every", "3"),
]


def train(output, *options):
    return companion.cli.main(["train", "toy", "--output", output, *SMALL, *options])


def start(work):
    """Fork a process that does the work; return its number."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(work())
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
    return child


def ended(child):
    """Wait for a process; return its exit code, minus the signal if one ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
'''

RANDOM_MOMENTS = (
    TRAIN
    + """
folder = sys.argv[1]
began = time.perf_counter()
assert ended(start(lambda: train(f"{folder}/whole"))) == 0
whole = time.perf_counter() - began
moments = random.Random(0)
killed = 0
while killed < 10:
    child = start(lambda: train(f"{folder}/killed", "--resume"))
    time.sleep(whole * moments.uniform(0.05, 0.5))
    os.kill(child, signal.SIGKILL)
    killed += ended(child) == -signal.SIGKILL
    if os.path.exists(f"{folder}/killed/record.json"):  # it was too quick; all is to be done again
        shutil.rmtree(f"{folder}/killed")
print("killed", killed)
assert ended(start(lambda: train(f"{folder}/killed", "--resume"))) == 0
"""
)

EVERY_STEP_OF_A_SAVE = (
    TRAIN
    + '''
def killing_at(step):
    """Let the process kill itself before or after a step that changes the disk."""
    count = 0

    def watch(function):
        def watched(*args, **kwargs):
            nonlocal count
            for part in ("before", "after"):
                count += 1
                if count == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                if part == "before":
                    result = function(*args, **kwargs)
            return result

        return watched

    pathlib.Path.replace = watch(pathlib.Path.replace)
    pathlib.Path.mkdir = watch(pathlib.Path.mkdir)
    pathlib.Path.write_text = watch(pathlib.Path.write_text)
    os.fsync = watch(os.fsync)
    os.unlink = watch(os.unlink)
    os.rmdir = watch(os.rmdir)
    companion.runs.save_file = watch(companion.runs.save_file)
    shutil.copyfile = watch(shutil.copyfile)


folder = sys.argv[1]
assert ended(start(lambda: train(f"{folder}/whole"))) == 0
# One run, killed again and again, each life a few steps further than the one before it, before or after a step.
life, step = 0, 1
while True:
    def life_of(step=step):
        killing_at(step)
        return train(f"{folder}/killed", "--resume")

    code = ended(start(life_of))
    if code == 0:
        break
    assert code == -signal.SIGKILL, code
    life, step = life + 1, step + 2 + life % 2
print("killed", life)
'''
)


def assert_as_if_nothing_had_been(folder: Path) -> None:
    """The run that was killed ended as the whole one, and left nothing behind."""
    whole, killed = folder / "whole", folder / "killed"
    assert (killed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert (killed / "vocabulary.txt").read_bytes() == (whole / "vocabulary.txt").read_bytes()
    one, other = (TrainingRecord.load(run / "record.json") for run in (killed, whole))
    assert (one.dev, one.test, one.config, one.parameters) == (other.dev, other.test, other.config, other.parameters)
    for entry, expected in zip(one.history, other.history, strict=True):
        assert {**entry, "seconds": 0} == {**expected, "seconds": 0}
    files = [{str(path.relative_to(run)) for path in run.rglob("*")} for run in (killed, whole)]
    assert files[0] == files[1]
    for name in ("model", "optimizer"):
        last = [load_file(run / "checkpoints" / "epoch-0003" / f"{name}.safetensors") for run in (killed, whole)]
        assert last[0].keys() == last[1].keys()
        assert all(torch.equal(last[0][key], last[1][key]) for key in last[0])


@pytest.mark.skipif(sys.platform == "win32", reason="forks, as Windows cannot")
@pytest.mark.parametrize(("script", "least"), [(RANDOM_MOMENTS, 10), (EVERY_STEP_OF_A_SAVE, 20)])
def test_a_run_killed_again_and_again_ends_as_if_nothing_had_been(tmp_path, script, least):
    (tmp_path / "script.py").write_text(script)
    ran = subprocess.run(
        [sys.executable, tmp_path / "script.py", tmp_path], capture_output=True, text=True, timeout=280
    )
    assert ran.returncode == 0, ran.stderr
    (killed,) = re.findall(r"^killed (\d+)$", ran.stdout, re.MULTILINE)
    assert int(killed) >= least
    assert_as_if_nothing_had_been(tmp_path)
