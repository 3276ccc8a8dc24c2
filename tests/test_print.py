"""`make pdf`, `make epub` and `make serve`, on a book of three small pages."""

import base64
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from urllib.parse import unquote, urljoin
from xml.etree import ElementTree

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from pypdf import PdfReader
from test_build import command, environment, executions, make, write_book

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the Makefile needs a Unix shell")
needs_chromium = pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium: apt-get install chromium")

XHTML = "{http://www.w3.org/1999/xhtml}"
SITE = "https://github.com/measured-transformer/measured-transformer"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYPj/HwADAgH/p7ulPwAAAABJRU5ErkJggg=="
TALL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAACCAAAAAC86un7AAAADElEQVR42mNgYGAAAAAEAAHI6uv5AAAAAElFTkSuQmCC"
BOTH = f"display({{'image/png': {PIXEL!r}, 'text/html': '<script>1</script><p>explorer</p>'.upper()}}, raw=True)"


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """Return the folder of a book with a cover, two parts, anchors of one name, formulas, a table, two outputs."""
    folder = tmp_path_factory.mktemp("book")
    write_book(folder)
    (folder / "book" / "_static" / "cover.png").write_bytes(base64.b64decode(TALL))
    parts = [("Chapters", "chapter"), ("Reference", "notation")]
    toc = {
        "format": "jb-book",
        "root": "book/index",
        "parts": [{"caption": part, "chapters": [{"file": f"book/{page}"}]} for part, page in parts],
    }
    (folder / "_toc.yml").write_text(yaml.safe_dump(toc))
    (folder / "book" / "index.md").write_text("# Index\n\n[Both](notation.md#exercises), [notation](notation.md).\n")
    (folder / "book" / "notation.md").write_text(
        "# Notation\n\n## Exercises\n\nThe width $d_k < 2$. "
        f"[Chapter](chapter.ipynb#exercises), [here](#exercises), [site]({SITE}).\n\n"
        "| a | b |\n|---|---|\n| $\\frac{1}{2}$ | two |\n\n$$\na = 1 \\\\\nb = 2\n$$\n"
    )
    chapter = nbformat.read(folder / "book" / "chapter.ipynb", as_version=4)
    chapter.cells += [
        new_markdown_cell("## Exercises\n\nWhy $\\sqrt{2}$ here?\n\n## Why $\\sqrt{2}$"),
        new_code_cell(BOTH, metadata={"mystnb": {"image": {"alt": "A pixel"}}}),
        new_code_cell(f"long = '{'x' * 60} {'y' * 60} end'"),
    ]
    nbformat.write(new_notebook(cells=chapter.cells), folder / "book" / "chapter.ipynb")
    return folder


@pytest.fixture(scope="module")
def pdf(book):
    printed = make(book, "pdf")
    assert printed.returncode == 0, printed.stderr
    path = book / "_build" / "pdf" / "measured-transformer.pdf"
    assert printed.stdout.rstrip().endswith(str(path))
    return PdfReader(path)


@pytest.fixture(scope="module")
def epub(book):
    made = make(book, "epub")
    assert made.returncode == 0, made.stderr
    path = book / "_build" / "epub" / "measured-transformer.epub"
    assert made.stdout.rstrip().endswith(str(path))
    with zipfile.ZipFile(path) as archive:
        yield archive


def titles(pdf: PdfReader, outline: list) -> list:
    """Return an outline as titles and pages, counted from 1, with what is below a title in a list after it."""
    return [
        titles(pdf, entry) if isinstance(entry, list) else (entry.title, pdf.get_destination_page_number(entry) + 1)
        for entry in outline
    ]


def links(pdf: PdfReader) -> list:
    """Return what the links of a PDF do, in order."""
    notes = [note.get_object() for page in pdf.pages for note in page.get("/Annots", [])]
    return [note.get("/A") or {"/D": note["/Dest"]} for note in notes if note["/Subtype"] == "/Link"]


@needs_chromium
def test_pdf_has_an_outline_of_parts_chapters_and_sections(pdf):
    assert titles(pdf, pdf.outline) == [
        ("About this book", 3),
        ("Chapters", 4),
        [("Chapter", 4), [("Exercises", 4), (r"Why \sqrt{2}", 4)]],
        ("Reference", 5),
        [("Notation", 5), [("Exercises", 5)]],
    ]
    assert pdf.metadata.title == "The Measured Transformer"
    assert pdf.metadata.author == "The Measured Transformer authors"
    assert pdf.root_object["/Lang"] == "en"


@needs_chromium
def test_pdf_has_the_text_of_every_page(pdf):
    cover, contents, *chapters = (page.extract_text() for page in pdf.pages)
    assert cover.strip() == ""
    entries = ["About this book 3", "Chapters", "Chapter 4", "Exercises 4", "Reference", "Notation 5", "Exercises 5"]
    lines = [" ".join(line.split()) for line in contents.splitlines()]
    assert [line for line in lines if line in entries] == entries
    openings = [next(line for line in chapter.splitlines() if not line.isdigit()) for chapter in chapters]
    assert openings == ["About this book", "Chapters", "Reference"]
    assert "#@title Solution" in chapters[1]
    assert "EXPLORER" not in chapters[1]
    assert not any("$" in page.extract_text() for page in pdf.pages)
    assert [len(page.images) for page in pdf.pages] == [1, 0, 0, 1, 0]


@needs_chromium
def test_links_of_the_pdf_stay_in_it_or_lead_to_the_web(pdf):
    outside = [link["/URI"] for link in links(pdf) if "/URI" in link]
    assert outside == [SITE]
    inside = [pdf.named_destinations[link["/D"]] for link in links(pdf) if "/URI" not in link]
    pages = [pdf.get_destination_page_number(destination) + 1 for destination in inside]
    contents = [3, 4, 4, 4, 5, 5]
    assert pages == [*contents, 5, 5, 4, 5]
    tops = [destination.top for destination in inside]
    assert tops[6] == tops[9] == tops[5] < tops[4]
    assert tops[8] == tops[2]


@needs_chromium
def test_code_that_is_too_long_for_the_pdf_goes_on_below(pdf):
    text = pdf.pages[3].extract_text()
    assert re.search(r"x{60}\s+y+\s*y* end'", text)
    assert re.search(r"x{60} y{60} end'", text) is None


@needs_chromium
def test_pdf_executes_nothing_that_is_executed(book, pdf):
    assert executions(book) == 1
    assert make(book, "book").returncode == 0
    assert executions(book) == 1


@needs_chromium
def test_nothing_is_made_of_a_formula_in_error(tmp_path):
    write_book(tmp_path)
    (tmp_path / "book" / "index.md").write_text("# Index\n\n$\\nosuch{x}$ and $\\frac{1}$\n")
    failed = make(tmp_path, "pdf")
    assert failed.returncode != 0
    (problem,) = [line for line in failed.stderr.splitlines() if "measured-transformer.pdf: " in line]
    assert r"a formula: \nosuch{x}" in problem
    assert r"a formula: Missing argument for \frac" in problem
    failed = make(tmp_path, "epub")
    assert failed.returncode != 0
    assert r"\nosuch{x}: Undefined control sequence" in failed.stdout + failed.stderr


def test_without_chromium_nothing_is_built(tmp_path):
    write_book(tmp_path)
    for target in ("pdf", "epub"):
        failed = make(tmp_path, target, PATH=str(tmp_path))
        assert failed.returncode != 0
        assert "apt-get install chromium" in failed.stderr.splitlines()[0]
        assert not (tmp_path / "_build").exists()


def parsed(epub: zipfile.ZipFile) -> dict[str, ElementTree.Element]:
    """Return the pages of an EPUB, which are well-formed."""
    pages = [name for name in epub.namelist() if name.endswith(".xhtml")]
    return {page: ElementTree.fromstring(epub.read(page)) for page in pages}


@needs_chromium
def test_epub_begins_with_its_type_and_has_the_pages_in_order(epub):
    first = epub.infolist()[0]
    assert (first.filename, first.compress_type) == ("mimetype", zipfile.ZIP_STORED)
    assert epub.read("mimetype").strip() == b"application/epub+zip"
    package = ElementTree.fromstring(epub.read("content.opf"))
    opf, dc = "{http://www.idpf.org/2007/opf}", "{http://purl.org/dc/elements/1.1/}"
    files = {item.get("id"): item.get("href") for item in package.iter(f"{opf}item")}
    spine = [files[item.get("idref")] for item in package.iter(f"{opf}itemref")]
    assert spine == ["epub-cover.xhtml", "book/index.xhtml", "book/chapter.xhtml", "book/notation.xhtml"]
    (cover,) = [meta.get("content") for meta in package.iter(f"{opf}meta") if meta.get("name") == "cover"]
    assert epub.read(files[cover]) == base64.b64decode(TALL)
    assert package.find(f".//{dc}title").text == "The Measured Transformer"
    assert package.find(f".//{dc}creator").text == "The Measured Transformer authors"
    assert package.find(f".//{dc}language").text == "en"


@needs_chromium
def test_every_link_and_image_of_the_epub_is_in_it(epub):
    pages = parsed(epub)
    anchors = {name: {element.get("id") for element in page.iter()} for name, page in pages.items()}
    seen = set()
    for name, page in pages.items():
        for element in page.iter():
            address = element.get("href") or element.get("src")
            if address is None or address.startswith("https:"):
                continue
            path, _, anchor = unquote(urljoin(name, address)).partition("#")
            assert path in epub.namelist(), (name, address)
            assert not anchor or anchor in anchors[path], (name, address)
            seen.add((name, path, anchor))
    sheets = {path for _, path, _ in seen if path.endswith(".css")}
    assert sheets == {"_static/pygments.css", "_static/ereader.css"}
    assert ("book/index.xhtml", "book/notation.xhtml", "exercises") in seen
    assert ("nav.xhtml", "book/chapter.xhtml", "exercises") in seen


@needs_chromium
def test_epub_shows_formulas_figures_and_solutions_without_scripts(epub):
    pages = parsed(epub)
    assert not any(name.endswith(".js") for name in epub.namelist())
    assert not [page for page in pages.values() for _ in page.iter(f"{XHTML}script")]
    assert not [page for page in pages.values() for _ in page.iter(f"{XHTML}details")]
    chapters = [page for name, page in pages.items() if name.startswith("book/")]
    images = [(image.get("alt"), image) for page in chapters for image in page.iter(f"{XHTML}img")]
    assert [alt for alt, _ in images] == [
        r"\sqrt{2}",
        r"\sqrt{2}",
        "A pixel",
        "d_k < 2",
        r"\frac{1}{2}",
        r"\begin{split} a = 1 \\ b = 2 \end{split}",
    ]
    for alt, image in images:
        if alt == "A pixel":
            continue
        assert "ex" in re.search(r"vertical-align: (\S+)", image.get("style"))[1]
        drawing = ElementTree.fromstring(epub.read(f"_images/formulas/{image.get('src').rpartition('/')[2]}"))
        assert drawing.tag == "{http://www.w3.org/2000/svg}svg"
        assert drawing.findall(".//{http://www.w3.org/2000/svg}path")
    drawings = [epub.read(name) for name in epub.namelist() if name.endswith(".svg")]
    assert not any(b"<!DOCTYPE" in drawing for drawing in drawings)  # EPUB 3 has no external entities
    text = "".join(pages["book/chapter.xhtml"].itertext())
    assert "#@title Solution" in text
    assert "EXPLORER" not in text
    assert "$" not in "".join("".join(page.itertext()) for page in pages.values())


@needs_chromium
def test_neither_file_names_this_machine(book, pdf, epub):
    here = str(book).encode()
    assert not any(here in epub.read(name) for name in epub.namelist())
    assert here not in (book / "_build" / "pdf" / "measured-transformer.pdf").read_bytes()


def served(address: str, words: str, seconds: float) -> bool:
    """Say whether a page comes to have some words."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(address) as page:
                if words in page.read().decode():
                    return True
        except OSError:
            pass
        time.sleep(0.2)
    return False


@pytest.fixture
def server(tmp_path):
    """Return a small book and the address at which it is served."""
    write_book(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        command("serve", f"PORT={port}"),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    yield tmp_path, port
    os.killpg(process.pid, signal.SIGTERM)
    process.wait()


def test_serve_shows_what_is_edited_and_executes_no_chapter_again(server):
    book, port = server
    index = f"http://127.0.0.1:{port}/book/index.html"
    assert served(index, "Index", seconds=60)
    page, chapter = book / "book" / "index.md", book / "book" / "chapter.ipynb"
    page.write_text(page.read_text() + "\nFresh words.\n")
    chapter.write_text(chapter.read_text().replace("# Chapter", "# Chapter renamed"))
    assert served(index, "Fresh words", seconds=60)
    assert served(index.replace("index", "chapter"), "Chapter renamed", seconds=60)
    assert executions(book) == 1

    busy = subprocess.run(command("serve", f"PORT={port}"), cwd=book, env=environment(), capture_output=True, text=True)
    assert busy.returncode != 0
    assert busy.stderr.splitlines()[0] == (
        f"Port {port} of 127.0.0.1 is in use; name another one: make serve PORT={port + 1}"
    )
