"""Run chapters as a reader on Colab does: in an environment with Colab's versions, from the notebook alone.

    python book/_tools/colab_check.py [PYTHON]

The first chapter's install cell installs the package, here from a wheel; it may add to what Colab has, and change
nothing. In the other chapters it must do nothing. No cell may fail; what cells print is not compared, since other
versions of torch and sentencepiece draw other numbers. PYTHON is an interpreter of Colab's version.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

import nbformat

ROOT = Path(__file__).parents[2]
VERSIONS = ROOT / "tests" / "colab.txt"
WORK = ROOT / "_build" / "colab"
CHAPTERS = ("imdb", "attention", "albert")
NOTED = ("torch", "numpy", "pandas", "accelerate", "ipython")


class Failure(Exception):
    """What Colab's reader would have met."""


def python_of(environment: Path) -> Path:
    """Return an environment's interpreter."""
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def make_base(interpreter: str, folder: Path) -> None:
    """Make an environment with Colab's versions, unless it is there."""
    stamp = folder / VERSIONS.name
    if stamp.exists() and stamp.read_bytes() == VERSIONS.read_bytes():
        return
    (wanted,) = re.findall(r"^# Python (\S+)$", VERSIONS.read_text(), re.MULTILINE)
    interpreter = shutil.which(interpreter or f"python{wanted}") or ""
    ask = [interpreter, "-c", "import sys; print('{}.{}'.format(*sys.version_info))"]
    found = interpreter and subprocess.run(ask, capture_output=True, text=True).stdout.strip()
    if found != wanted:
        raise Failure(f"needs Python {wanted}, as Colab: make colab-check COLAB_PYTHON=path/to/python{wanted}")
    subprocess.run([interpreter, "-m", "venv", "--clear", folder], check=True)
    pip = [python_of(folder), "-m", "pip", "install", "-q", "--no-cache-dir"]
    subprocess.run([*pip, "-r", VERSIONS], check=True)
    shutil.copy(VERSIONS, stamp)


def make_copy(base: Path, folder: Path) -> Path:
    """Make an environment that has what another has and leaves it as it is, and return its interpreter."""
    subprocess.run([python_of(base), "-m", "venv", "--clear", "--without-pip", folder], check=True)
    where = [python_of(folder), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(subprocess.run(where, check=True, capture_output=True, text=True).stdout.strip())
    inherited = base / packages.relative_to(folder)
    (packages / "base.pth").write_text(f"import site; site.addsitedir({str(inherited)!r})\n")
    return python_of(folder)


def make_kernel(python: Path, folder: Path) -> None:
    """Write the specification of a kernel named colab."""
    kernel = {
        "argv": [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "Colab",
        "language": "python",
    }
    path = folder / "kernels" / "colab" / "kernel.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kernel))


def make_wheel(folder: Path) -> Path:
    """Build the package's wheel, and return its path."""
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def freeze(python: Path) -> set[str]:
    """Return what is installed, a line for each distribution."""
    listed = subprocess.run([python, "-m", "pip", "freeze", "--all"], check=True, capture_output=True, text=True)
    return set(listed.stdout.splitlines())


def run_chapter(chapter: str, wheel: Path, tag: str) -> float:
    """Run a chapter, alone in a folder, and return the seconds it took.

    Args:
        chapter: The chapter's name.
        wheel: What the install cell installs, in place of the repository.
        tag: What nbval is told of the install cell's output.

    Raises:
        Failure: A cell failed.
    """
    address = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"]["Repository"]
    notebook = nbformat.read(ROOT / "book" / f"{chapter}.ipynb", as_version=4)
    install = next(cell for cell in notebook.cells if cell.cell_type == "code")
    before, install.source = install.source, install.source.replace(f"git+{address}", wheel.as_uri())
    assert install.source != before
    install.metadata.tags = [tag]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTEST_ADDOPTS")}
    with tempfile.TemporaryDirectory() as folder:
        nbformat.write(notebook, Path(folder) / f"{chapter}.ipynb")
        start = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "--nbval-lax", "--nbval-kernel-name=colab", f"{chapter}.ipynb"],
            cwd=folder,
            env={**environment, "JUPYTER_PATH": str(WORK)},
        )
    if done.returncode:
        raise Failure(f"{chapter} does not run")
    return time.monotonic() - start


def check(interpreter: str) -> None:
    """Make the environment, run the chapters, and print what came.

    Raises:
        Failure: There is no such Python, a cell fails, or the install cell changes what was there.
    """
    make_base(interpreter, WORK / "base")
    python = make_copy(WORK / "base", WORK / "copy")
    make_kernel(python, WORK)
    wheel = make_wheel(WORK / "wheel")
    before = freeze(python)
    seconds = {CHAPTERS[0]: run_chapter(CHAPTERS[0], wheel, "nbval-ignore-output")}
    after = freeze(python)
    if lost := before - after:
        raise Failure(f"the install cell changes {', '.join(sorted(lost))}")
    seconds |= {chapter: run_chapter(chapter, wheel, "nbval-check-output") for chapter in CHAPTERS[1:]}
    if freeze(python) != after:
        raise Failure("the install cell, run again, changes what is installed")

    print("Had:", *sorted(line for line in before if line.partition("==")[0].lower() in NOTED))
    print("Unchanged:", len(before & after))
    print("Added:", *sorted(after - before))
    print("Ran:", ", ".join(f"{chapter} in {s:.0f} s" for chapter, s in seconds.items()))


if __name__ == "__main__":
    try:
        check(*sys.argv[1:2] or [""])
    except Failure as failure:
        sys.exit(f"colab-check: {failure}")
