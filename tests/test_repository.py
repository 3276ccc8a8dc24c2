"""The repository's address: pyproject.toml has it, every other place agrees, and `make repo-url` moves them all."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from test_book import NOTEBOOKS, REPOSITORY, ROOT

TOOL = "book/_tools/repository.py"
SLUG = REPOSITORY.removeprefix("https://github.com/")
SITE = "https://{}.github.io/{}/".format(*SLUG.split("/"))
NEW_OWNER, NEW_NAME = "Some-One", "a.book_2"  # apart: this file is moved too
NEW_SLUG = f"{NEW_OWNER}/{NEW_NAME}"
NEW = f"https://github.com/{NEW_SLUG}"
NEW_SITE = f"https://{NEW_OWNER.lower()}.github.io/{NEW_NAME}/"


def test_configuration_names_the_repository_and_its_site():
    config = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))
    assert config["repository"] == {"url": REPOSITORY, "branch": "main"}
    assert config["sphinx"]["config"]["ogp_site_url"] == SITE


def test_citation_says_what_it_must_and_names_the_repository_and_its_site():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["repository-code"] == REPOSITORY
    assert citation["url"] == SITE
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["authors"] == [{"name": "The Measured Transformer authors"}]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert (citation["license"], citation["keywords"]) == (project["license"], project["keywords"])


def test_badges_lead_to_the_repository_its_site_and_a_chapter():
    readme = (ROOT / "README.md").read_text("utf-8")
    tests, book, colab = re.findall(r"^\[!\[.*?\]\((.*?)\)\]\((.*?)\)$", readme, re.MULTILINE)
    workflow = f"{REPOSITORY}/actions/workflows/tests.yml"
    assert tests == (f"{workflow}/badge.svg", workflow)
    assert book[1] == SITE
    chapter = colab[1].removeprefix(f"https://colab.research.google.com/github/{SLUG}/blob/main/")
    assert ROOT / chapter in NOTEBOOKS


def test_readers_are_told_to_clone_the_repository():
    first = (ROOT / "book" / "index.md").read_text("utf-8")
    ((address, folder, entered),) = re.findall(r"^git clone (\S+) (\S+)\ncd (\S+)$", first, re.MULTILINE)
    assert address == REPOSITORY
    assert folder == entered


def tracked(folder: Path) -> dict[str, bytes]:
    """Return the content of every file that git tracks."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=folder, check=True, capture_output=True, text=True)
    return {name: (folder / name).read_bytes() for name in listed.stdout.split("\0")[:-1]}


def move(folder: Path, address: str) -> subprocess.CompletedProcess:
    """Run the tool of a folder."""
    return subprocess.run([sys.executable, TOOL, address], cwd=folder, capture_output=True, text=True)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """Return a git repository that tracks what this one tracks."""
    folder = tmp_path_factory.mktemp("repository")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
    for name in listed.stdout.split("\0")[:-1]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    (folder / "other.txt").write_text(
        f"{REPOSITORY}.git git@github.com:{SLUG}.git ({REPOSITORY}). {SITE}book/\n"
        f"{REPOSITORY}-2 {REPOSITORY}.js x-{SLUG} {SLUG}s measured-transformer.github.io measured_transformer\n"
    )
    (folder / "CHANGELOG.md").write_text(f"Once at {REPOSITORY}\n")
    subprocess.run("git init -q && git add -A", shell=True, cwd=folder, check=True)
    return folder


def test_moving_rewrites_every_place_and_nothing_else_and_moving_back_restores_every_byte(copy):
    before = tracked(copy)
    there = move(copy, NEW)
    assert there.returncode == 0, there.stderr
    after = tracked(copy)
    for name, content in after.items():
        if name not in {"CHANGELOG.md", "other.txt"}:
            back = content.replace(NEW_SITE.encode(), SITE.encode()).replace(NEW_SLUG.encode(), SLUG.encode())
            assert back == before[name], name
            assert not re.search(rf"\b{SLUG}\b|{re.escape(SITE)}".encode(), content), name
    assert after["CHANGELOG.md"] == before["CHANGELOG.md"]
    assert after["other.txt"].decode() == (
        f"{NEW}.git git@github.com:{NEW_SLUG}.git ({NEW}). {NEW_SITE}book/\n"
        f"{REPOSITORY}-2 {REPOSITORY}.js x-{SLUG} {SLUG}s measured-transformer.github.io measured_transformer\n"
    )
    changed = {name for name in before if before[name] != after[name]}
    assert changed >= {f"book/{path.name}" for path in NOTEBOOKS} | {
        "pyproject.toml",
        "_config.yml",
        "README.md",
        "CITATION.cff",
        "book/index.md",
    }
    assert set(there.stdout.splitlines()[:-1]) == changed
    assert tomllib.loads(after["pyproject.toml"].decode())["project"]["name"] == "measured-transformer"
    for path in NOTEBOOKS:
        notebook = nbformat.reads(after[f"book/{path.name}"].decode(), as_version=4)
        nbformat.validate(notebook)
        install = next(cell.source for cell in notebook.cells if cell.cell_type == "code")
        assert f'"measured-transformer[chapters] @ git+{NEW}"' in install

    assert move(copy, NEW).returncode == 0
    assert tracked(copy) == after
    assert move(copy, REPOSITORY).returncode == 0
    assert tracked(copy) == before


@pytest.mark.parametrize(
    "address",
    [
        "",
        "owner/name",
        "http://github.com/owner/name",
        "https://github.com/owner",
        "https://github.com/owner/",
        "https://github.com/owner/name/",
        "https://github.com/owner/name.git",
        "https://github.com/owner/owner.github.io",
        "https://github.com/owner/..",
        "https://github.com/owner/na me",
        "https://github.com/-owner/name",
        "https://github.com/owner/name\n",
        "https://gitlab.com/owner/name",
    ],
)
def test_an_address_that_is_none_changes_nothing(copy, address):
    before = tracked(copy)
    refused = move(copy, address)
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert refused.stderr == f"repo-url: URL=https://github.com/OWNER/NAME, not {address!r}\n"
    assert tracked(copy) == before


def test_make_hands_the_address_on(copy):
    for options in (["URL=it's none"], []):
        command = ["make", "repo-url", f"PYTHON={sys.executable}", *options]
        refused = subprocess.run(command, cwd=copy, capture_output=True, text=True)
        assert refused.returncode == 2
        assert refused.stderr.startswith("repo-url: URL=https://github.com/OWNER/NAME, not ")
