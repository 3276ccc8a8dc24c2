"""Colab: the package asks for no other versions than Colab has, and the install cell installs where it must.

`make colab-check` runs chapters with these versions; here, their resolution alone is tested.
"""

import importlib.util
import os
import re
import shlex
import subprocess
import sysconfig
import tomllib
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from test_book import INSTALL_CELL, REPOSITORY, ROOT

COLAB = ROOT / "tests" / "colab.txt"
VERSIONS = dict(re.findall(r"^([\w.-]+)==(\S+)$", COLAB.read_text(), re.MULTILINE))
(PYTHON,) = re.findall(r"^# Python (\S+)$", COLAB.read_text(), re.MULTILINE)


def unmet(project: dict) -> list[str]:
    """Return the requirements, of the package and of the chapters, that Colab's versions do not meet."""
    wanted = map(Requirement, project["dependencies"] + project["optional-dependencies"]["chapters"])
    colab = [(each, VERSIONS.get(canonicalize_name(each.name))) for each in wanted]
    return [str(each) for each, version in colab if version and version not in each.specifier]


def resolve(pyproject: Path) -> subprocess.CompletedProcess:
    """Ask uv what the package and the chapters need on Colab's Linux, where Colab's versions are given."""
    command = [Path(sysconfig.get_path("scripts")) / "uv", "pip", "compile", "-q", pyproject, "--extra", "chapters"]
    command += ["-c", COLAB, "--python-version", PYTHON, "--python-platform", "linux", "--no-python-downloads"]
    command += ["--no-annotate", "--no-header"]
    environment = {**os.environ, "UV_HTTP_RETRIES": "1"}  # without a network, no long wait
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_bounds_admit_colabs_versions():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert PYTHON in SpecifierSet(project["requires-python"])
    assert {"torch", "numpy", "accelerate", "scikit-learn", "matplotlib"} <= set(VERSIONS)
    assert unmet(project) == []
    project["dependencies"].append("numpy>=2.2")
    assert unmet(project) == ["numpy>=2.2"]


@pytest.mark.parametrize(
    ("written", "instead", "said"),
    [(None, None, None), ("numpy>=1.26", "numpy>=2.2", "numpy>=2.2"), ("tyro>=0.9", "pandas>=3", "pandas>=3")],
)
def test_pip_finds_what_colab_lacks_and_keeps_what_it_has(written, instead, said, tmp_path):
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    assert written is None or f'"{written}"' in text
    path = tmp_path / "pyproject.toml"
    path.write_text(text.replace(f'"{written}"', f'"{instead}"'), "utf-8")
    found = resolve(path)
    if "error sending request" in found.stderr:
        pytest.skip("needs the package index: pypi.org, or another one in UV_DEFAULT_INDEX")
    if said:
        assert found.returncode == 1
        assert said in found.stderr
        return
    assert found.returncode == 0, found.stderr
    versions = dict(re.findall(r"^([\w.-]+)==(\S+)$", found.stdout, re.MULTILINE))
    assert {name: versions[name] for name in versions if name in VERSIONS and VERSIONS[name] != versions[name]} == {}
    needed = {"torch", "numpy", "accelerate", "scikit-learn", "torchtext", "jaxtyping", "tyro", "sacrebleu"}
    assert needed <= set(versions)


def test_install_cell_is_one_line():
    assert [line.startswith("# ") for line in INSTALL_CELL.splitlines()] == [True, False]


@pytest.fixture
def run_install_cell(monkeypatch):
    """Return a function that runs the install cell and returns what IPython was told to do, and what the cell shows."""

    def run():
        asked = []
        shell = InteractiveShell()
        monkeypatch.setattr(shell, "run_line_magic", lambda *words: asked.append(words))
        done = shell.run_cell(INSTALL_CELL)
        done.raise_error()
        assert done.result is None
        return asked

    return run


def test_install_cell_does_nothing_where_the_package_is(run_install_cell, capsys):
    assert run_install_cell() == []
    assert capsys.readouterr().out == ""


def test_install_cell_installs_from_the_repository_where_the_package_is_not(run_install_cell, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    ((magic, line),) = run_install_cell()
    assert magic == "pip"
    command, quiet, requirement = shlex.split(line)
    assert (command, quiet) == ("install", "-q")
    wanted = Requirement(requirement)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert (wanted.name, wanted.extras, wanted.url) == (project["name"], {"chapters"}, f"git+{REPOSITORY}")
