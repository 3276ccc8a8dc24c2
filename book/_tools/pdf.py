"""Print the book, which Sphinx has put on one HTML page, as a PDF.

    python book/_tools/pdf.py _build/singlehtml _build/pdf/measured-transformer.pdf

Chromium prints it twice: the first time tells on which page every chapter is, which the contents say the second time.
"""

import logging
import shutil
import sys
from pathlib import Path

import yaml
from playwright.sync_api import Page, sync_playwright
from pypdf import PdfReader, PdfWriter
from pypdf.generic import Destination, Fit
from sphinx_external_toc.parsing import parse_toc_yaml

from chromium import executable

TOOLS = Path(__file__).parent
ARRANGE = (TOOLS / "pdf.js").read_text(encoding="utf-8")
NUMBER = """numbers => {
    for (const link of document.querySelectorAll("#contents a"))
        link.dataset.page = numbers[decodeURIComponent(link.hash.slice(1))];
}"""


class Unprintable(Exception):
    """The page has what cannot be printed, or the PDF what cannot be given away."""


def printed(page: Page, path: Path) -> PdfReader:
    """Print a page to a file, and return the file."""
    page.pdf(path=path, prefer_css_page_size=True, print_background=True, tagged=True)
    return PdfReader(path)


def anchors(pdf: PdfReader) -> dict[str, Destination]:
    """Return what the links of the PDF lead to."""
    return {name.removeprefix("/"): destination for name, destination in pdf.named_destinations.items()}


def page_numbers(pdf: PdfReader) -> dict[str, int]:
    """Return the page of each anchor, the first being 1."""
    return {name: pdf.get_destination_page_number(destination) + 1 for name, destination in anchors(pdf).items()}


def addresses(pdf: PdfReader) -> set[str]:
    """Return the addresses that a PDF leads to."""
    notes = [note.get_object() for page in pdf.pages for note in page.get("/Annots", [])]
    return {str(note["/A"]["/URI"]) for note in notes if "/URI" in note.get("/A", {})}


def add_bookmarks(writer: PdfWriter, bookmarks: list[tuple[int, str, str]], pdf: PdfReader) -> None:
    """Give a PDF an outline.

    Args:
        writer: Where the PDF is written.
        bookmarks: The level, the title and the anchor of each.
        pdf: The PDF, which has the anchors.
    """
    places, above = anchors(pdf), []
    for level, title, anchor in bookmarks:
        page = pdf.get_destination_page_number(places[anchor])
        place = Fit.xyz(top=places[anchor].top)
        parent = above[level - 1] if level else None
        above[level:] = [
            writer.add_outline_item(title=title, page_number=page, parent=parent, fit=place, is_open=False)
        ]


def print_book(source: Path, html: Path, path: Path) -> None:
    """Print the book.

    Args:
        source: The folder with `_config.yml`, which has title and author, and `_toc.yml`, which has the parts.
        html: The folder with the book on one page.
        path: The PDF to be written.

    Raises:
        Unprintable: A formula is not typeset, an image is absent, a link is broken or leads into this machine.
    """
    config = yaml.safe_load((source / "_config.yml").read_text(encoding="utf-8"))
    root = parse_toc_yaml(source / "_toc.yml").root
    book = {
        "title": config["title"],
        "author": config["author"],
        "parts": {part.items[0]: part.caption for part in root.subtrees if part.caption},
        "style": (TOOLS / "pdf.css").read_text(encoding="utf-8"),
    }
    whole = html / "book.html"
    shutil.copy(html / f"{root.docname}.html", whole)  # Sphinx writes addresses as from the folder of the whole book
    with sync_playwright() as playwright:
        page = playwright.chromium.launch(executable_path=executable()).new_page()
        page.set_default_timeout(0)
        page.route("**/*.js*", lambda route: route.continue_() if "/mathjax/" in route.request.url else route.abort())
        page.goto(whole.resolve().as_uri())
        bookmarks, problems = page.evaluate(ARRANGE, book)
        if problems:
            raise Unprintable("; ".join(problems))
        path.parent.mkdir(parents=True, exist_ok=True)
        numbers = page_numbers(printed(page, path))
        page.evaluate(NUMBER, numbers)
        pdf = printed(page, path)
    if page_numbers(pdf) != numbers:
        raise Unprintable("the page numbers in the contents have moved the pages")
    if local := {address for address in addresses(pdf) if address.startswith("file:")}:
        raise Unprintable(f"links that lead into this machine: {sorted(local)}")
    writer = PdfWriter(clone_from=pdf)
    add_bookmarks(writer, bookmarks, pdf)
    writer.add_metadata({"/Title": config["title"], "/Author": config["author"]})
    writer.write(path)


if __name__ == "__main__":
    logging.getLogger("pypdf").setLevel(logging.ERROR)  # it warns of how Chromium numbers objects
    try:
        print_book(Path(), Path(sys.argv[1]), Path(sys.argv[2]))
    except Unprintable as problem:
        sys.exit(f"{sys.argv[2]}: {problem}")
