import dataclasses
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import companion.records
from companion.records import (
    TrainingRecord,
    git_commit,
    hardware,
    package_versions,
    read_json,
    write_json,
)

RECORD = TrainingRecord(
    command="python -m companion train toy --output 'a run'",
    config={"model": {"d_model": 8}, "training": {"epochs": 1}, "data": {}},
    seed=3,
    commit=None,
    versions={"python": "3.11.7"},
    hardware={"device": "cpu", "cores": 2},
    wall_seconds=1.5,
    tokens_per_second=None,
    parameters=17,
    history=[{"epoch": 1, "seconds": 1.25, "tokens": 0, "train": {"loss": 0.1}}],
    dev=None,
    test={"accuracy": 0.875, "loss": 0.25},
)


def test_a_record_comes_back_equal(tmp_path):
    RECORD.save(tmp_path / "record.json")
    assert TrainingRecord.load(tmp_path / "record.json") == RECORD
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


def test_a_record_is_json_in_the_agreed_schema(tmp_path):
    RECORD.save(tmp_path / "record.json")
    entries = json.loads((tmp_path / "record.json").read_text("utf-8"))
    assert list(entries) == [
        *("command", "config", "seed", "commit", "versions", "hardware", "wall_seconds", "tokens_per_second"),
        *("parameters", "history", "dev", "test"),
    ]
    assert entries["history"] == RECORD.history
    assert entries["test"] == {"accuracy": 0.875, "loss": 0.25}
    assert entries["commit"] is entries["dev"] is None


@pytest.mark.parametrize(
    ("change", "named"),
    [({"test": ...}, "['test']"), ({"extra": 1}, "['extra']"), ({"seed": ..., "sed": 1}, "['sed', 'seed']")],
)
def test_a_file_with_other_entries_is_no_record(tmp_path, change, named):
    path = tmp_path / "record.json"
    entries = {name: value for name, value in (dataclasses.asdict(RECORD) | change).items() if value is not ...}
    write_json(path, entries)
    with pytest.raises(ValueError, match=re.escape(f"{path} is not a training record: {named} do not match")):
        TrainingRecord.load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b'{"seed": 1', "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[1, 2]", "holds no JSON object"),
        (b"null", "holds no JSON object"),
    ],
)
def test_a_file_that_holds_no_json_object_is_named(tmp_path, content, message):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{path} {message}")):
        read_json(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "record.json"))):
        TrainingRecord.load(tmp_path / "record.json")


def test_what_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "config.json"
    write_json(path, {"é": [1, None]})
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_json(path, {"é": object()})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    assert read_json(path) == {"é": [1, None]}


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Let the package's own source lie in a git repository of its own, committed and clean."""
    package = tmp_path / "companion"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.setattr(companion.records, "__file__", str(package / "records.py"))
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=A", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "companion/__init__.py"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "First"], check=True)
    subprocess.run([*git, "tag", "-a", "v1", "-m", "v1"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    return package, head.stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_git_commit_is_the_head_and_says_when_files_are_changed(checkout):
    package, head = checkout
    assert git_commit() == head
    (package / "__init__.py").write_text("changed = True\n")
    assert git_commit() == f"{head}-dirty"


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_git_commit_is_none_where_the_package_is_installed_inside_another_checkout(checkout, monkeypatch):
    package, _ = checkout
    installed = package.parent / "site-packages" / "companion"
    installed.mkdir(parents=True)
    (installed / "__init__.py").touch()
    monkeypatch.setattr(companion.records, "__file__", str(installed / "records.py"))
    assert git_commit() is None


def test_git_commit_is_none_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert git_commit() is None


def test_package_versions_are_those_of_the_modules():
    import accelerate
    import numpy

    versions = package_versions()
    assert sorted(versions) == ["accelerate", "measured-transformer", "numpy", "python", "torch", "torchtext"]
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert versions["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert (versions["accelerate"], versions["numpy"]) == (accelerate.__version__, numpy.__version__)
    assert versions["torchtext"] == "0.6.0"


def test_hardware_describes_this_machine():
    described = hardware(torch.device("cpu"), 3)
    assert described == {
        "device": "cpu",
        "processor": described["processor"],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": 3,
    }
    information = Path("/proc/cpuinfo")
    if information.exists() and "model name" in information.read_text():
        assert f"model name\t: {described['processor']}\n" in information.read_text()
    else:
        assert described["processor"] in (platform.processor(), platform.machine())
