"""The two commands that run chapters, `make book` and `make notebooks`, on a book of two small pages."""

import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the Makefile needs a Unix shell")
ROOT = Path(__file__).parents[1]

TOOLS = ROOT / "book" / "_tools"
ALT = {"image": {"alt": "A cat"}}


@pytest.fixture
def book(tmp_path):
    """Return the folder of a small book."""
    write_book(tmp_path)
    return tmp_path


def write_book(folder: Path) -> None:
    """Write a book whose one chapter leaves a line in `executions` whenever it runs."""
    for name in ("Makefile", "_config.yml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    for name in ("_tools", "_static"):
        shutil.copytree(ROOT / "book" / name, folder / "book" / name)
    shutil.copy(ROOT / "book" / "references.bib", folder / "book")
    files = {"companion/module.py": "x = 1\n", "companion/plotting/explorers.js": "1;\n"}
    files |= {"companion/plotting/book.mplstyle": "font.size: 11\n"}
    for name, text in {**files, ".pytest_cache/README.md": "# Cache\n"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    toc = {"format": "jb-book", "root": "book/index", "chapters": [{"file": "book/chapter"}]}
    (folder / "_toc.yml").write_text(yaml.safe_dump(toc))
    (folder / "book" / "index.md").write_text("# Index\n\n$x^2$\n")
    cells = [
        new_markdown_cell("# Chapter"),
        new_code_cell(
            "with open('../executions', 'a') as file:\n    print('again', file=file)",
            metadata={"mystnb": ALT, "collapsed": False},
        ),
        new_code_cell("#@title Solution\nprint(1, flush=True)\nprint(2)", metadata={"tags": ["hide-cell"]}),
    ]
    nbformat.write(new_notebook(cells=cells), folder / "book" / "chapter.ipynb")


def command(*arguments: str) -> list[str]:
    """Return a command that runs make with the tools that run these tests, as if they were installed."""
    installed = [f"--old-file=.venv/installed-{extras}" for extras in ("book", "book,test")]
    return [shutil.which("make"), *arguments, f"BIN={Path(sys.executable).parent}", *installed]


def environment(**changes: str) -> dict[str, str]:
    """Return the environment of a make that is not below another one."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))} | changes


def make(book: Path, target: str, **changes: str) -> subprocess.CompletedProcess:
    """Run a target of the book's Makefile."""
    return subprocess.run(command(target), cwd=book, env=environment(**changes), capture_output=True, text=True)


def executions(book: Path) -> int:
    """Return how many times the chapter ran."""
    return len((book / "executions").read_text().splitlines())


def test_book_executes_a_chapter_once_for_each_version_of_the_package(book):
    first = make(book, "book")
    assert first.returncode == 0, first.stderr
    assert first.stdout.rstrip().endswith(str(book / "_build" / "html" / "index.html"))
    assert make(book, "book").returncode == 0
    assert executions(book) == 1

    module = book / "companion" / "module.py"
    module.write_text("x = 2\n")
    assert make(book, "book").returncode == 0
    assert executions(book) == 2

    module.write_text("x = 1\n")
    assert make(book, "book").returncode == 0
    assert executions(book) == 2

    (book / "companion" / "plotting" / "explorers.js").write_text("2;\n")
    assert make(book, "book").returncode == 0
    assert executions(book) == 3

    (book / "companion" / "plotting" / "book.mplstyle").write_text("font.size: 12\n")
    assert make(book, "book").returncode == 0
    assert executions(book) == 4


def test_site_asks_nothing_of_other_hosts(book):
    assert make(book, "book").returncode == 0
    asked = re.compile(r"<(?:script|img|iframe|source|link)\b[^>]*\b(?:src|href)=[\"']?((?:https?:)?//[^\s\"'>]*)")
    pages = list((book / "_build" / "html").rglob("*.html"))
    assert {path.name for path in pages} >= {"index.html", "chapter.html"}
    assert {(path.name, address) for path in pages for address in asked.findall(path.read_text("utf-8"))} == set()
    index = book / "_build" / "html" / "book" / "index.html"
    (formulas,) = re.findall(r'<script\b[^>]*\bsrc="([^"?]*mathjax[^"?]*)', index.read_text("utf-8"))
    assert (index.parent / formulas).is_file()


def test_book_fails_until_the_fault_is_mended(book):
    index = book / "book" / "index.md"
    text = index.read_text()
    index.write_text(text + "\n[nowhere](nowhere.md)\n")
    for _ in range(2):
        failed = make(book, "book")
        assert failed.returncode != 0
        assert "nowhere.md" in failed.stderr
    index.write_text(text)
    assert make(book, "book").returncode == 0


def test_notebooks_stores_outputs_that_a_second_run_does_not_change(book):
    path = book / "book" / "chapter.ipynb"
    written = nbformat.read(path, as_version=4)
    first = make(book, "notebooks")
    assert first.returncode == 0, first.stderr
    stored = path.read_bytes()
    assert make(book, "notebooks").returncode == 0
    assert path.read_bytes() == stored

    notebook = nbformat.read(path, as_version=4)
    assert notebook.metadata["language_info"] == {"name": "python"}
    assert [cell.id for cell in notebook.cells] == [cell.id for cell in written.cells]
    assert [cell.metadata for cell in notebook.cells] == [
        {},
        {"mystnb": ALT},
        {"tags": ["hide-cell"], "cellView": "form"},
    ]
    assert notebook.cells[2].execution_count == 2
    assert [output.text for output in notebook.cells[2].outputs] == ["1\n2\n"]


def test_notebooks_names_the_cell_that_fails_and_leaves_the_notebook_as_it_was(book):
    path = book / "book" / "chapter.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[2].source = "raise ValueError('a mistake')"
    nbformat.write(notebook, path)
    before = path.read_bytes()
    failed = make(book, "notebooks")
    assert failed.returncode != 0
    assert "book/chapter.ipynb: cell 2" in failed.stderr
    assert "a mistake" in failed.stderr
    assert path.read_bytes() == before


def tidy(*paths: Path) -> None:
    """Tidy notebooks as the hook before a commit does."""
    subprocess.run([sys.executable, TOOLS / "tidy.py", *paths], check=True)


def test_what_is_stored_is_tidy_and_stays_so_in_an_editor_that_adds_what_changes_from_run_to_run(book):
    path = book / "book" / "chapter.ipynb"
    assert make(book, "notebooks").returncode == 0
    stored = path.read_bytes()
    tidy(path)
    assert path.read_bytes() == stored

    notebook = json.loads(stored)
    notebook["metadata"] |= {"colab": {"provenance": []}, "widgets": {}}
    notebook["cells"][1]["metadata"] |= {"execution": {"iopub.status.busy": "2026-11-26T16:00:00Z"}, "scrolled": True}
    path.write_text(json.dumps(notebook))
    tidy(path)
    assert path.read_bytes() == stored


def test_cells_that_an_editor_stores_without_ids_get_some_and_keep_them(book):
    path = book / "book" / "chapter.ipynb"
    notebook = json.loads(path.read_text())
    for cell in notebook["cells"]:
        del cell["id"]
    path.write_text(json.dumps(notebook | {"nbformat_minor": 0}))
    tidy(path)
    stored = path.read_bytes()
    notebook = json.loads(stored)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    tidy(path)
    assert path.read_bytes() == stored


def test_every_chapter_is_stored_tidy_with_an_id_for_each_cell(tmp_path):
    stored = sorted((ROOT / "book").glob("*.ipynb"))
    copies = [Path(shutil.copy(path, tmp_path)) for path in stored]
    tidy(*copies)
    for path, copy in zip(stored, copies, strict=True):
        assert path.read_bytes() == copy.read_bytes(), f"python book/_tools/tidy.py book/{path.name}"
        cells = json.loads(path.read_text("utf-8"))["cells"]
        assert len({cell["id"] for cell in cells}) == len(cells)


@pytest.fixture
def glance():
    spec = importlib.util.spec_from_file_location("results_at_a_glance", TOOLS / "results_at_a_glance.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_first_page_shows_six_to_eight_results_and_types_none():
    page = (ROOT / "book" / "index.md").read_text(encoding="utf-8")
    section = page.split("## Results at a glance")[1].split("\n## ")[0]
    assert section.count("{{ results_at_a_glance }}") == 1
    assert re.findall(r"\d+(?:\.\d+)? ?%|0\.\d+", section) == []


def test_each_result_at_a_glance_is_that_of_its_records(glance):
    results = glance.headlines()
    assert 6 <= len(results) <= 8
    for what, accuracy, page, records in results:
        contents = [json.loads((ROOT / "companion" / "results" / f"{name}.json").read_text()) for name in records]
        if records == ("positions",):
            kind = "sinusoidal" if "sinusoids" in what else "none"
            wanted = {"task": "reverse", "positions": kind, "length": 16}
            figures = [row["accuracy"] for row in contents[0]["rows"] if wanted.items() <= row.items()]
        else:
            figures = [content["test"]["accuracy"] for content in contents]
        assert accuracy == pytest.approx(sum(figures) / len(figures), abs=1e-12)
        assert len(figures) == (3 if "3 seeds" in what else 1)
        assert (ROOT / "book" / f"{page}.ipynb").exists()


def test_the_table_at_a_glance_has_a_row_for_each_result(glance):
    result = glance.Result("what came", 0.98765, "imdb", ("one", "two"))
    assert glance.as_table([result]).splitlines()[2:] == [
        "| what came | 98.8% | [imdb](imdb.ipynb) | `one`, `two` |",
    ]


def test_pages_say_how_long_a_chapter_ran(book):
    index = book / "book" / "index.md"
    index.write_text("# Index\n\nBuilt with {{ built_with }}.\n\n```{nb-exec-table}\n```\n")
    chapter = book / "book" / "chapter.ipynb"
    notebook = nbformat.read(chapter, as_version=4)
    notebook.cells.append(new_code_cell("import time\n\ntime.sleep(2)"))
    nbformat.write(notebook, chapter)
    for _ in range(2):  # executed, then from the cache
        built = make(book, "book")
        assert built.returncode == 0, built.stderr
        html = book / "_build" / "html" / "book"
        (line,) = re.findall(r'<p class="times">(.*?)</p>', (html / "chapter.html").read_text("utf-8"))
        seconds = int(re.fullmatch(r"1 min to read · runs in (\d+) s", line)[1])
        assert 2 <= seconds < 60
        table = (html / "index.html").read_text("utf-8")
        ((page, shown),) = re.findall(
            r"<tr.*?doc\">(book/\w+)<.*?(\d+\.\d+)</p></td>\s*<td><p>✅", table, flags=re.DOTALL
        )
        assert page == "book/chapter"
        assert round(float(shown)) == seconds
        assert f"python {platform.python_version()}" in table
        shutil.rmtree(book / "_build" / "html")
        shutil.rmtree(book / "_build" / ".doctrees")
    assert executions(book) == 1
