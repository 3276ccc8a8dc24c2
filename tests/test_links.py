"""The offline half of a link check: addresses well formed, arXiv numbers possible, relative links to what exists.

A rule takes links and returns its problems, one line each; that it sees a bad link is tested below.
"""

import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin
from mdit_py_plugins.myst_role import myst_role_plugin
from test_book import NOTEBOOKS, ROOT, bibliography, sources

PAGES = sorted([*(ROOT / "book").glob("*.md"), *NOTEBOOKS, ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
MARKDOWN = MarkdownIt("commonmark").enable("table").use(dollarmath_plugin).use(myst_role_plugin)
BARE = re.compile(r"https?://\S+")
TRAILING = ".,;:!?'\")]}>*/"


class Link(NamedTuple):
    """Where a link leads, and its text; the text is empty for an image or a bare address."""

    target: str
    text: str = ""


def markdown_of(page: Path) -> str:
    """Return the Markdown of a page; for a notebook, that of its Markdown cells."""
    if page.suffix != ".ipynb":
        return page.read_text(encoding="utf-8")
    cells = nbformat.read(page, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def links_in(markdown: str) -> Iterator[Link]:
    """Yield the links, images and bare addresses of a text; code is left out."""
    for block in MARKDOWN.parse(markdown):
        target, text = None, []
        for token in block.children or []:
            if token.type == "link_open":
                target, text = str(token.attrGet("href")), []
            elif token.type == "link_close" and target is not None:
                yield Link(target, "".join(text))
                target = None
            elif token.type == "image":
                yield Link(str(token.attrGet("src")))
            elif target is not None:
                text.append(" " if token.type == "softbreak" else token.content)
            elif token.type == "text":
                yield from map(Link, BARE.findall(token.content))


def slugs_in(markdown: str) -> set[str]:
    """Return the fragments under which GitHub and MyST find the headings of a text."""
    tokens, slugs = MARKDOWN.parse(markdown), []
    for opening, inline in itertools.pairwise(tokens):
        if opening.type == "heading_open":
            title = "".join(token.content for token in inline.children or [])
            slugs.append(re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-"))
    return {slug if (seen := slugs[:i].count(slug)) == 0 else f"{slug}-{seen}" for i, slug in enumerate(slugs)}


def external(links: Iterable[Link]) -> list[str]:
    """Return the targets that have a scheme, such as https or mailto."""
    return [link.target for link in links if urlsplit(link.target).scheme]


def well_formed(links: Iterable[Link]) -> list[str]:
    """An external address is https, names a host, and ends in no punctuation."""
    problems = []
    for address in external(links):
        parts = urlsplit(address)
        if parts.scheme != "https":
            problems.append(f"{address} is not https")
        elif not re.fullmatch(r"(?:[a-z0-9-]+\.)+[a-z]{2,}", parts.netloc):
            problems.append(f"{address} names no host")
        elif not re.fullmatch(r"[\w\-.~:/?#@!$&'()*+,;=%]+", address, re.ASCII):
            problems.append(f"{address} has a character that an address cannot have")
        elif address.rstrip(TRAILING) != address.rstrip("/"):
            problems.append(f"{address} ends in punctuation")
    return problems


def written_one_way(links: Iterable[Link]) -> list[str]:
    """No address is written in two ways that differ in what trails it alone."""
    spellings: dict[str, set[str]] = {}
    for address in external(links):
        spellings.setdefault(address.rstrip(TRAILING), set()).add(address)
    return [" and ".join(sorted(ways)) for ways in spellings.values() if len(ways) > 1]


def possible_arxiv_numbers(links: Iterable[Link]) -> list[str]:
    """An arXiv link leads to an abstract, whose number has a month and the digits of its year, and no version."""
    problems = []
    for address in external(links):
        if not re.search(r"(?:^|\.)arxiv\.org$", urlsplit(address).netloc):
            continue
        number = re.fullmatch(r"https://arxiv\.org/abs/(\d{4})\.(\d+)", address)
        if number is None:
            problems.append(f"{address} is not https://arxiv.org/abs/YYMM.NNNNN")
            continue
        month, digits = number[1], len(number[2])
        if month < "0704" or not "01" <= month[2:] <= "12":
            problems.append(f"{address} is of no month since 0704")
        elif digits != (4 if month <= "1412" else 5):
            problems.append(f"{address} has {digits} digits after the dot")
    return problems


def leads_somewhere(page: Path, links: Iterable[Link]) -> list[str]:
    """A relative link leads to a file, and its fragment to a heading there."""
    problems = []
    for target in (link.target for link in links if not urlsplit(link.target).scheme):
        path, _, fragment = unquote(target).partition("#")
        file = page.parent / path if path else page
        if not target or path.startswith("/") or not file.is_file():
            problems.append(f"{target} is no file")
        elif page.parent.name == "book" and page.parent not in file.resolve().parents:
            problems.append(f"{target} is not on the site")
        elif fragment and (file.suffix not in (".md", ".ipynb") or fragment not in slugs_in(markdown_of(file))):
            problems.append(f"{target} is no heading there")
    return problems


def titled_as_in(entries: Iterable[dict[str, str]], links: Iterable[Link]) -> list[str]:
    """An arXiv link stands in the bibliography, and its text is the title there."""
    titles = {entry["eprint"]: re.sub(r"[{}]", "", entry["title"]) for entry in entries if "eprint" in entry}
    problems = []
    for target, text in links:
        if target.startswith("https://arxiv.org/abs/"):
            title = titles.get(target.rpartition("/")[2])
            if title is None:
                problems.append(f"{target} is not in the bibliography")
            elif text != title:
                problems.append(f"{target} has the title {title!r}, not {text!r}")
    return problems


def labelled_as_in(entries: Iterable[dict[str, str]], links: Iterable[Link]) -> list[str]:
    """A citation, such as "Lan et al., 2020", names the first author and the year of the bibliography."""
    papers = {
        address: (entry["author"].split(",")[0], entry["year"]) for entry in entries for address in sources(entry)
    }
    problems = []
    for target, text in links:
        label = re.match(r"([^\W\d_][\w'-]*)(?: et al\.| & [\w' -]+)?, ((?:19|20)\d\d)\b", text)
        if label and target in papers and label.groups() != papers[target]:
            problems.append(f"{text} is {', '.join(papers[target])} in the bibliography")
    return problems


def unparsed(markdown: str) -> list[str]:
    """No text looks like a link that Markdown does not read as one."""
    inlines = (token for block in MARKDOWN.parse(markdown) for token in block.children or [])
    return [token.content for token in inlines if token.type == "text" and re.search(r"\]\s?[(\[]", token.content)]


LINK_RULES = [well_formed, possible_arxiv_numbers]


@pytest.mark.parametrize("rule", LINK_RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_external_links_keep_the_rule(page, rule):
    assert rule(links_in(markdown_of(page))) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page):
    assert leads_somewhere(page, links_in(markdown_of(page))) == []


def test_no_address_is_written_in_two_ways():
    assert written_one_way(link for page in PAGES for link in links_in(markdown_of(page))) == []


def test_resources_gives_papers_the_titles_of_the_bibliography():
    links = list(links_in(markdown_of(ROOT / "book" / "resources.md")))
    assert sum(link.target.startswith("https://arxiv.org/") for link in links) >= 10
    assert titled_as_in(bibliography().values(), links) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_citations_name_author_and_year_of_the_bibliography(page):
    assert labelled_as_in(bibliography().values(), links_in(markdown_of(page))) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_is_one(page):
    assert unparsed(markdown_of(page)) == []


PAPER = {"title": "{ALBERT}: A Lite {BERT}", "eprint": "1909.11942"}


def test_links_are_found_wherever_they_stand():
    text = (
        "[a *b*\n`c`](x.md) <https://a.org> ![alt](p.png) https://b.org, `https://code.org` $[m](m)$\n\n"
        "| [t](t.md) |\n|---|\n\n> - [q](q.md)\n\n```\n[f](f.md)\n```\n"
    )
    assert list(links_in(text)) == [
        ("x.md", "a b c"),
        ("https://a.org", "https://a.org"),
        ("p.png", ""),
        ("https://b.org,", ""),
        ("t.md", "t"),
        ("q.md", "q"),
    ]


def test_slugs_are_those_of_github_and_myst():
    text = "# What `n` is, & why\n\n## Twice\n\nText\n\n## Twice\n\n```\n# code\n```\n"
    assert slugs_in(text) == {"what-n-is--why", "twice", "twice-1"}


@pytest.mark.parametrize(
    ("rule", "address"),
    [
        (well_formed, "http://arxiv.org/abs/1706.03762"),
        (well_formed, "ftp://a.org"),
        (well_formed, "https:///path"),
        (well_formed, "https://localhost/x"),
        (well_formed, "https://name@a.org/x"),
        (well_formed, "https://a.org/a b"),
        (well_formed, "https://a.org/ä"),
        (well_formed, "https://a.org/x."),
        (well_formed, "https://a.org/x)"),
        (well_formed, "https://a.org/x/,"),
        (possible_arxiv_numbers, "https://arxiv.org/abs/1706.03762v5"),
        (possible_arxiv_numbers, "https://arxiv.org/pdf/1706.03762"),
        (possible_arxiv_numbers, "https://www.arxiv.org/abs/1706.03762"),
        (possible_arxiv_numbers, "https://arxiv.org/abs/cs/0112017"),
        (possible_arxiv_numbers, "https://arxiv.org/abs/1713.03762"),
        (possible_arxiv_numbers, "https://arxiv.org/abs/1700.03762"),
        (possible_arxiv_numbers, "https://arxiv.org/abs/0703.0376"),
        (possible_arxiv_numbers, "https://arxiv.org/abs/1706.0376"),
        (possible_arxiv_numbers, "https://arxiv.org/abs/1501.0376"),
        (possible_arxiv_numbers, "https://arxiv.org/abs/1412.03762"),
        (possible_arxiv_numbers, "https://arxiv.org/abs/1706.037621"),
    ],
)
def test_rule_sees_a_bad_address(rule, address):
    assert len(rule([Link(address)])) == 1


@pytest.mark.parametrize("rule", [*LINK_RULES, written_one_way], ids=lambda rule: rule.__name__)
def test_rule_allows_good_addresses(rule):
    good = ["https://arxiv.org/abs/1706.03762", "https://arxiv.org/abs/1412.1058", "https://arxiv.org/abs/0909.4061"]
    good += ["https://a-b.org/c_(d)/e%20f?g=h#i", "https://a.org/", "page.md", "#heading", "https://notarxiv.org/1"]
    assert rule([Link(address) for address in good]) == []


@pytest.mark.parametrize("trailing", ["/", ".", ")", ".)"])
def test_two_ways_to_write_an_address_are_seen(trailing):
    links = [Link("https://a.org/x"), Link("https://b.org/"), Link("https://a.org/x" + trailing)]
    assert written_one_way(links) == [f"https://a.org/x and https://a.org/x{trailing}"]
    assert written_one_way(links[:2] * 2) == []


def test_relative_links_that_lead_nowhere_are_seen(tmp_path):
    page, other = tmp_path / "page.md", tmp_path / "other page.ipynb"
    page.write_text("# Here\n", encoding="utf-8")
    cells = [nbformat.v4.new_markdown_cell("## There"), nbformat.v4.new_code_cell("# code")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), other)
    (tmp_path / "LICENSE").touch()
    good = ["page.md", "#here", "other%20page.ipynb#there", "LICENSE", "page.md#here", "https://a.org/none.md"]
    assert leads_somewhere(page, map(Link, good)) == []
    nowhere = ["", ".", "/etc/hostname", "none.md", "#there", "sub/page.md"]
    for bad in (*nowhere, "other%20page.ipynb#code", "LICENSE#here", "page.md#Here"):
        assert len(leads_somewhere(page, [Link(bad)])) == 1, bad


@pytest.mark.parametrize(
    ("link", "problem"),
    [
        (Link("https://arxiv.org/abs/1906.06123", "ALBERT: A Lite BERT"), "is not in the bibliography"),
        (Link("https://arxiv.org/abs/1909.11942", "ALBERT: A Lite BERT for Visual Recognition"), "has the title"),
        (Link("https://arxiv.org/abs/1909.11942", "albert: A Lite BERT"), "has the title"),
        (Link("https://arxiv.org/abs/1909.11942"), "has the title"),
    ],
)
def test_another_title_than_the_bibliographys_is_seen(link, problem):
    (said,) = titled_as_in([PAPER, {"title": "No eprint"}], [link])
    assert problem in said


def test_the_bibliographys_title_is_right():
    links = [Link("https://arxiv.org/abs/1909.11942", "ALBERT: A Lite BERT"), Link("https://a.org", "anything")]
    assert titled_as_in([PAPER], links) == []


def test_a_link_that_leaves_the_book_is_seen(tmp_path):
    (tmp_path / "book").mkdir()
    for name in ("book/page.md", "book/other.md", "outside.md"):
        (tmp_path / name).touch()
    assert leads_somewhere(tmp_path / "book" / "page.md", [Link("other.md")]) == []
    assert leads_somewhere(tmp_path / "book" / "page.md", [Link("../outside.md")]) == [
        "../outside.md is not on the site"
    ]
    assert leads_somewhere(tmp_path / "outside.md", [Link("book/page.md")]) == []


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("Lan et al., 2020", 0),
        ("Lan et al., 2020, *ALBERT*", 0),
        ("Lan & Chen, 2020", 0),
        ("its table 2", 0),
        ("Lan et al., 2019", 1),
        ("Devlin et al., 2020", 1),
    ],
)
def test_a_citation_of_another_author_or_year_is_seen(text, problems):
    entry = {"author": "Lan, Zhenzhong and Chen, Mingda", "year": "2020", "eprint": "1909.11942"}
    links = [Link("https://arxiv.org/abs/1909.11942", text), Link("https://arxiv.org/abs/1909.11943", "You, 1999")]
    assert len(labelled_as_in([entry], links)) == problems


@pytest.mark.parametrize(
    ("text", "problems"),
    [("[a](a.md) and $[b](c)$ and `[c](d)`", 0), ("[a](no such.md)", 1), ("[a] (b.md)", 1), ("[a][nope]", 1)],
)
def test_what_is_meant_as_a_link_and_is_none_is_seen(text, problems):
    assert len(unparsed(text)) == problems
