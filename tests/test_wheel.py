"""What people install: its version is the tag's, it holds the package alone, and it works by itself."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from importlib.metadata import distribution, distributions, packages_distributions
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_architecture import imported_names
from test_readme import EXAMPLES, PAGES

ROOT = Path(__file__).parents[1]
NAME = "measured_transformer-1.2.3"
STRAYS = [
    *("companion/attention.py.orig", "companion/notes.txt", "companion/results/draft.csv", "companion/spiece.model"),
    *("companion/__pycache__/old.py", "companion/.ipynb_checkpoints/old.py", "runs/toy/record.json"),
]
USED_WHERE_INSTALLED = {"pytorch_optimizer", "sklearn"}
FOR_TESTS = {"IPython", "beartype", "hypothesis", "pytest", "sklearn", "tensorboard", "transformers"}
OTHERS_SETTINGS = ("GIT_", "PYTHON", "SETUPTOOLS_SCM_")
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(OTHERS_SETTINGS)}

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command that does not see what the repository's own environment sets; return what it prints."""
    ran = subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout.strip()


def git(repository: Path, *words: str) -> str:
    """Run a git command as somebody who signs nothing."""
    settings = ("user.name=A", "user.email=a@example.org", "commit.gpgsign=false", "tag.gpgsign=false")
    return run("git", *(word for setting in settings for word in ("-c", setting)), *words, cwd=repository)


def commit(folder: Path) -> str:
    """Commit whatever a folder holds; return the commit."""
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", "All")
    return git(folder, "rev-parse", "HEAD")[:7]


def version(folder: Path) -> tuple[str, str]:
    """Return the version that a build in a folder has, and the commit that it names."""
    public, _, local = run(sys.executable, "-m", "hatchling", "version", cwd=folder).partition("+g")
    return public, local[:7]


def test_version_is_the_tag_and_builds_without_one(tmp_path):
    folder = tmp_path / "repository"
    folder.mkdir()
    shutil.copy(ROOT / "pyproject.toml", folder)
    assert version(folder) == ("0.0", "")
    first = commit(folder)
    assert version(folder) == ("0.1.dev1", first)
    git(folder, "tag", "v1.2.3")
    assert version(folder) == ("1.2.3", "")
    second = commit(folder)
    assert version(folder) == ("1.2.4.dev1", second)
    git(tmp_path, "clone", "--quiet", "--depth=1", folder.as_uri(), "shallow")
    assert version(tmp_path / "shallow") == ("0.1.dev1", second)


class Built(NamedTuple):
    """What was built, from which files."""

    tracked: dict[str, bytes]
    sdist: Path
    wheel: Path
    wheel_of_sdist: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Built:
    """Build from a copy of the files that git tracks, as they stand, among which others lie about."""
    folder = tmp_path_factory.mktemp("source")
    tracked = [name for name in git(ROOT, "ls-files").splitlines() if (ROOT / name).exists()]
    for name in tracked:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    commit(folder)
    git(folder, "tag", "v1.2.3")
    for name in STRAYS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("stray")
    build = (sys.executable, "-m", "build", "--no-isolation", folder)
    run(*build, "--wheel", "--outdir", folder / "dist", cwd=folder)
    run(*build, "--outdir", folder / "dist" / "from", cwd=folder)
    return Built(
        {name: (ROOT / name).read_bytes() for name in tracked},
        folder / "dist" / "from" / f"{NAME}.tar.gz",
        folder / "dist" / f"{NAME}-py3-none-any.whl",
        folder / "dist" / "from" / f"{NAME}-py3-none-any.whl",
    )


def package(files: dict[str, bytes]) -> dict[str, bytes]:
    """Return the files of the package among others."""
    return {name: content for name, content in files.items() if name.startswith("companion/")}


def test_wheel_holds_the_package_and_nothing_else(built):
    with zipfile.ZipFile(built.wheel) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    expected = package(built.tracked)
    assert {"companion/py.typed", "companion/__init__.pyi", "companion/results/imdb.json"} <= set(expected)
    information = ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")
    assert set(held) == {*expected, *(f"{NAME}.dist-info/{name}" for name in information)}
    assert package(held) == expected


def test_sdist_holds_the_package_and_what_builds_it(built):
    with tarfile.open(built.sdist) as archive:
        held = {
            member.name.removeprefix(f"{NAME}/"): archive.extractfile(member).read() for member in archive.getmembers()
        }
    del held["PKG-INFO"]
    expected = (*package(built.tracked), ".gitignore", "LICENSE", "README.md", "pyproject.toml")
    assert held == {name: built.tracked[name] for name in expected}


def test_sdist_builds_the_same_wheel(built):
    assert built.wheel_of_sdist.read_bytes() == built.wheel.read_bytes()


def test_wheel_requires_what_the_package_imports_and_nothing_else(built):
    (wheel,) = distributions(path=[str(built.wheel)])
    required = {canonicalize_name(Requirement(text).name) for text in wheel.requires if "extra ==" not in text}
    modules = [content.decode() for name, content in package(built.tracked).items() if name.endswith(".py")]
    imported = {name.split(".")[0] for source in modules for name in imported_names(source)}
    others = imported - sys.stdlib_module_names - {"companion"} - USED_WHERE_INSTALLED
    assert required == set(map(canonicalize_name, others))


def closure(requirements: Iterable[str]) -> set[str]:
    """Return the names of the installed distributions that requirements ask for, and those ask for in turn."""
    found = {}
    waiting = [(Requirement(text), {""}) for text in requirements]
    while waiting:
        requirement, extras = waiting.pop()
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        name = canonicalize_name(requirement.name)
        wanted = {"", *requirement.extras}
        if not wanted <= found.setdefault(name, set()):
            found[name] |= wanted
            waiting += [(Requirement(text), found[name]) for text in distribution(name).requires or ()]
    return set(found)


class Installed(NamedTuple):
    """An environment that has the wheel and what it requires, and no more."""

    folder: Path
    python: Path
    requirements: set[str]


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Installed:
    """Install the wheel beside links to the installed distributions that it requires, which pip must find complete."""
    folder = tmp_path_factory.mktemp("elsewhere")
    run(sys.executable, "-m", "venv", "--without-pip", "env", cwd=folder)
    python = folder / "env" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    libraries = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder))
    (wheel,) = distributions(path=[str(built.wheel)])
    requirements = closure(wheel.requires)
    for required in map(distribution, requirements):
        for name in {file.parts[0] for file in required.files} - {"..", "__pycache__"}:
            if not (libraries / name).exists():
                (libraries / name).symlink_to(required.locate_file(name))
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", built.wheel, cwd=folder)
    run(*pip, "check", cwd=folder)
    return Installed(folder, python, requirements)


def test_nothing_is_installed_for_book_or_tests(installed):
    required = installed.requirements
    others = {
        name
        for name, owners in packages_distributions().items()
        if name.isidentifier() and name != "companion" and required.isdisjoint(map(canonicalize_name, owners))
    }
    others.discard("test")  # Python's own has the name of one that a library brings
    assert others >= FOR_TESTS
    code = f"from importlib.util import find_spec; print(*filter(find_spec, {sorted(others)}))"
    assert run(installed.python, "-c", code, cwd=installed.folder) == ""


def test_library_examples_run_where_the_wheel_is_installed(installed):
    checks = """
import companion
from companion.records import git_commit, package_versions

assert not companion.__file__.startswith(ROOT)
assert package_versions()["measured-transformer"] == "1.2.3"
assert git_commit() is None
"""
    script = installed.folder / "readme.py"
    script.write_text("\n".join([*EXAMPLES, f"ROOT = {str(ROOT)!r}", checks]), encoding="utf-8")
    run(installed.python, "-W", "error", script, cwd=installed.folder)
    assert {path.name for path in installed.folder.glob("*.html")} == PAGES


def test_command_line_runs_where_the_wheel_is_installed(installed):
    words = ("train", "toy", "--output", "run", "--dry-run")
    assert "\nepochs      5, about " in run(installed.python.with_name("companion"), *words, cwd=installed.folder)
    printed = run(installed.python, "-m", "companion", "--help", cwd=installed.folder)
    assert printed.startswith("usage: python -m companion")


def test_importing_the_package_takes_little_longer_than_importing_torch(installed):
    code = """
from time import perf_counter
start = perf_counter()
import torch
loaded = perf_counter()
from companion import Encoder, padding_mask
print((perf_counter() - start) / (loaded - start))
"""
    tries = (float(run(installed.python, "-c", code, cwd=installed.folder)) for _ in range(3))
    assert any(ratio < 1.5 for ratio in tries)  # a busy machine may spoil one
