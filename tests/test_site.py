"""The site in a real browser, built from the stored outputs: what a reader meets on every page."""

import base64
import functools
import html
import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import nbformat
import numpy as np
import pytest
import yaml
from axe_playwright_python.sync_playwright import Axe
from bs4 import BeautifulSoup
from matplotlib.image import imread
from test_book import REPOSITORY

ROOT = Path(__file__).parents[1]
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text())
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
PAGES = [TOC["root"], *(chapter["file"] for part in TOC["parts"] for chapter in part["chapters"])]
NOTEBOOKS = [page for page in PAGES if (ROOT / f"{page}.ipynb").exists()]


def cells_of(page: str) -> list[nbformat.NotebookNode]:
    """Return the cells of a page that is a notebook."""
    return nbformat.read(ROOT / f"{page}.ipynb", as_version=4).cells


PATIENCE = 120_000  # milliseconds: a busy machine is no failure
# Before the page is complete, MathJax is its settings alone.
TYPESET = """() => document.readyState === "complete"
    && (window.MathJax ? MathJax.startup.promise.then(() => true) : true)"""


@pytest.fixture(scope="module")
def site(browser, tmp_path_factory):
    """Build the site without executing a chapter, and return its folder."""
    source = tmp_path_factory.mktemp("book")
    for folder in ("book", "companion"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("_toc.yml", "constraints.txt"):
        shutil.copy(ROOT / name, source)
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    config["execute"]["execute_notebooks"] = "off"
    (source / "_config.yml").write_text(yaml.safe_dump(config))
    build = [Path(sys.executable).parent / "jupyter-book", "build", source, "-n", "-W", "--keep-going"]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return source / "_build" / "html"


@pytest.fixture(scope="module")
def address(site):
    """Serve the site, and return its address."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # connections stay

        def log_message(self, *_):
            pass

    class Server(http.server.ThreadingHTTPServer):
        request_queue_size = 128  # of 5, a busy machine drops some, and a page waits for them

    with Server(("127.0.0.1", 0), functools.partial(Handler, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def listen(page, complaints: list[str], requests: list[str]) -> None:
    """Note in two lists what a page complains of on the console, and every address that it asks for."""
    page.on("console", lambda message: message.type in {"error", "warning"} and complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))


@pytest.fixture
def tab(browser):
    """Return a function that opens an address in a context of its own and waits until the formulas are typeset."""
    contexts = []

    def visit(address, *, width=1280, height=800, complaints=None, requests=None, **options):
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        listen(page, [] if complaints is None else complaints, [] if requests is None else requests)
        page.goto(address)
        page.wait_for_function(TYPESET)  # it outlasts a page that leads to another one
        return page

    yield visit
    for context in contexts:
        context.close()


@dataclass(frozen=True)
class Seen:
    """What one visit of a page saw.

    Attributes:
        complaints: Errors and warnings on the console.
        requests: Every address that the page asked for.
        formulas: Formulas on the page, and those of them that MathJax has set.
        faults: Formulas that MathJax could not set.
        prose: The text, without code.
        images: Source, alt text and width in pixels of each image.
        meta: Property and content of the Open Graph data, and the favicon's address.
    """

    complaints: list[str]
    requests: list[str]
    formulas: tuple[int, int]
    faults: list[str]
    prose: str
    images: list[tuple[str, str, int]]
    meta: dict[str, str]


@pytest.fixture(scope="module")
def seen(browser, site, address):
    """Return a function from a page to what a visit saw; each page is visited once."""

    @functools.cache
    def visit(name):
        complaints, requests = [], []
        page = browser.new_page()
        page.set_default_timeout(PATIENCE)
        listen(page, complaints, requests)
        page.goto(f"{address}/{name}.html")
        page.wait_for_load_state("networkidle")
        page.wait_for_function(TYPESET)
        faults = page.locator("mjx-merror").evaluate_all("errors => errors.map(e => e.getAttribute('title'))")
        prose = page.evaluate(
            """() => {
                const article = document.querySelector("article").cloneNode(true);
                article.querySelectorAll("pre, code, script, style, mjx-container").forEach(e => e.remove());
                return article.textContent;
            }"""
        )
        images = page.locator("img").evaluate_all(
            "images => images.map(i => [i.getAttribute('src'), i.alt, i.naturalWidth])"
        )
        meta = dict(
            page.locator("meta[property^='og:']").evaluate_all(
                "all => all.map(m => [m.getAttribute('property'), m.content])"
            )
        )
        meta["icon"] = page.evaluate("document.querySelector('link[rel~=icon]').href")
        formulas = (page.locator(".math").count(), page.locator(".math:has(mjx-container)").count())
        page.close()
        return Seen(complaints, requests, formulas, faults, prose, [tuple(i) for i in images], meta)

    return visit


@pytest.mark.parametrize("page", PAGES)
def test_no_page_complains_and_no_request_leaves_the_machine(page, seen, address):
    assert seen(page).complaints == []
    assert len(seen(page).requests) > 10
    assert [url for url in seen(page).requests if not url.startswith((f"{address}/", "data:"))] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_formula_is_typeset(page, seen):
    formulas, typeset = seen(page).formulas
    cells = cells_of(page) if page in NOTEBOOKS else []
    assert typeset == formulas
    assert formulas > 0 or not any("$" in cell.source for cell in cells if cell.cell_type == "markdown")
    assert seen(page).faults == []
    assert re.findall(r".{0,30}(?:\$|\\\(|\\\[|\\[a-z]+\{).{0,30}", seen(page).prose) == []


@pytest.mark.parametrize("page", PAGES)
def test_every_image_loads_and_has_alt_text(page, seen):
    assert [source[:80] for source, alt, width in seen(page).images if not (width and alt.strip())] == []


def alts_of(cell: nbformat.NotebookNode) -> list[str]:
    """Return the alt text of a cell's figure on the site, where an explorer brings a figure with its own."""
    pages = [output.data.get("text/html", "") for output in cell.outputs if "data" in output]
    own = [alt for text in pages for alt in re.findall(r'<img width="\d+" alt="([^"]*)"', text)]
    return [html.unescape(alt) for alt in own] or [cell.metadata.mystnb.image.alt]


@pytest.mark.parametrize("page", NOTEBOOKS)
def test_every_figure_of_a_notebook_is_on_its_page(page, seen):
    alts = [alt for cell in cells_of(page) if "image" in cell.metadata.get("mystnb", {}) for alt in alts_of(cell)]
    shown = [alt for _, alt, _ in seen(page).images]
    assert [alt for alt in alts if alt not in shown] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_page_presents_itself_when_shared(page, seen, site, address):
    meta = seen(page).meta
    assert meta["og:title"]
    assert len(meta["og:description"]) > 40
    assert meta["og:url"].endswith(f"/{page}.html")
    home = CONFIG["sphinx"]["config"]["ogp_site_url"]
    assert imread(site / meta["og:image"].removeprefix(home)).shape[:2] == (630, 1200)
    assert (site / meta["icon"].removeprefix(f"{address}/")).is_file()


@pytest.mark.parametrize("page", PAGES)
def test_buttons_lead_to_the_page_on_colab_and_to_the_repository(page, site):
    html = BeautifulSoup((site / f"{page}.html").read_text("utf-8"), "lxml")
    leads = {link["title"]: link["href"] for link in html.select(".article-header-buttons a")}
    command = ["git", "ls-files", f"{page}.md", f"{page}.ipynb"]
    tracked = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    (file,) = tracked.stdout.split()
    owner_and_name = REPOSITORY.removeprefix("https://github.com/")
    colab = f"https://colab.research.google.com/github/{owner_and_name}/blob/main/{file}"
    assert (site / page).parent.joinpath(leads.pop("Download source file")).resolve() == site / "_sources" / file
    assert leads.pop("Open an issue").startswith(f"{REPOSITORY}/issues/new?title=Issue%20on%20page%20%2F{page}.html&")
    assert leads == {"Source repository": REPOSITORY} | ({"Launch on Colab": colab} if page in NOTEBOOKS else {})


@pytest.mark.parametrize("name", PAGES)
def test_a_phone_scrolls_no_page_sideways(name, tab, address):
    page = tab(f"{address}/{name}.html", width=390)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.set_viewport_size({"width": 320, "height": 640})
    assert page.evaluate("document.documentElement.scrollWidth") == 320


def test_printed_code_is_not_cut_off(tab, address):
    page = tab(f"{address}/book/attention.html", width=700)
    page.emulate_media(media="print")
    cut = page.locator(".bd-article pre").evaluate_all(
        "blocks => blocks.filter(pre => pre.scrollWidth > pre.clientWidth).map(pre => pre.textContent)"
    )
    assert cut == []


COLOURS = ["color-contrast", "link-in-text-block"]  # the rules that depend on colours


# A token's colours depend on its class and on where its block stands; axe takes minutes for all of them.
ONE_TOKEN_OF_A_KIND = """() => {
    const seen = new Set();
    for (const token of document.querySelectorAll(":is(div.highlight pre, dt.sig) span[class]:not(:has(*), a *)")) {
        const place = ["dt.sig", ".cell_input", ".cell_output"].map(place => !!token.closest(place));
        const kind = [token.className, token.parentElement.className, ...place].join();
        seen.has(kind) ? token.remove() : seen.add(kind);
    }
}"""


def faults(page, **options) -> dict[str, list[str]]:
    """Return the serious and critical faults that axe finds on a page, with the elements that have them."""
    violations = Axe().run(page, options={"resultTypes": ["violations"], **options}).response["violations"]
    return {
        violation["id"]: [node["html"][:200] for node in violation["nodes"]]
        for violation in violations
        if violation["impact"] in {"serious", "critical"}
    }


@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_no_serious_fault(name, tab, address):
    page = tab(f"{address}/{name}.html", width=390, color_scheme="light")
    assert faults(page, runOnly=["scrollable-region-focusable"]) == {}
    page.set_viewport_size({"width": 1280, "height": 800})
    page.evaluate(ONE_TOKEN_OF_A_KIND)
    page.add_style_tag(content="* { transition: none !important; }")  # colours half way to dark are nobody's
    assert faults(page) == {}
    page.emulate_media(color_scheme="dark")
    page.wait_for_selector("html[data-theme=dark]")
    assert faults(page, runOnly=COLOURS) == {}


def luminance(colour: str) -> float:
    """Return the relative luminance (WCAG 2.2) of a colour that a browser has computed."""
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def rgb(colour: str) -> list[float]:
    """Return red, green and blue, 0 to 1, of a colour such as ``rgb(18, 20, 30)``."""
    return [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]


def test_dark_mode_turns_the_page_and_leaves_figures_on_a_light_card(tab, address):
    page = tab(f"{address}/book/attention.html", color_scheme="dark")
    colour = "(e, name) => getComputedStyle(e)[name]"
    background = luminance(page.locator("body").evaluate(colour, "background-color"))
    text = luminance(page.locator("article p").first.evaluate(colour, "color"))
    assert (text + 0.05) / (background + 0.05) > 7
    cards = page.locator(".cell_output img").evaluate_all(
        "images => images.map(e => getComputedStyle(e).backgroundColor)"
    )
    assert {luminance(card) for card in cards} == {1.0}


def test_search_finds_rotary(tab, address):
    complaints = []
    page = tab(f"{address}/{PAGES[0]}.html", complaints=complaints)
    page.keyboard.press("Control+k")
    page.keyboard.type("rotary")
    page.keyboard.press("Enter")
    page.get_by_text("Search finished").wait_for()
    found = page.locator("#search-results ul.search li > a").evaluate_all("links => links.map(a => a.href)")
    assert any("/book/positions.html" in link for link in found)
    assert any("/book/api.html#companion.RotaryEmbedding" in link for link in found)
    assert complaints == []


def test_search_knows_every_page(site):
    index = json.loads(re.fullmatch(r"Search\.setIndex\((.*)\)", (site / "searchindex.js").read_text("utf-8"))[1])
    assert set(PAGES) <= set(index["docnames"])


FOCUSED = """() => {
    const e = document.activeElement;
    if (e.closest("nav.bd-links")) return "contents " + e.getAttribute("href");
    return e.classList.contains("theme-switch-button") ? "theme" : e.textContent.trim();
}"""


def press_until(page, key, wanted, most=60):
    """Press a key until what has the focus begins with a text, and return what had it on the way."""
    focused = []
    while not (focused and focused[-1].startswith(wanted)):
        assert len(focused) < most, focused
        page.keyboard.press(key)
        focused.append(page.evaluate(FOCUSED))
    return focused


def test_keyboard_reaches_contents_and_theme_switch(tab, address):
    page = tab(f"{address}/book/attention.html", color_scheme="light")
    assert press_until(page, "Tab", "Skip to main content") == ["Skip to main content"]
    press_until(page, "Tab", "contents")
    press_until(page, "Tab", "contents positions.html")
    page.keyboard.press("Enter")
    page.wait_for_url("**/book/positions.html")

    press_until(page, "Tab", "theme")
    themes = []
    for _ in range(3):
        page.keyboard.press("Enter")
        themes.append(
            (page.locator("html").get_attribute("data-mode"), page.locator("html").get_attribute("data-theme"))
        )
    assert set(themes) == {("auto", "light"), ("light", "light"), ("dark", "dark")}


def test_keyboard_opens_contents_on_a_phone(tab, address):
    page = tab(f"{address}/book/attention.html", width=390)
    contents = page.locator("nav.bd-links a", has_text="Positions")
    assert not contents.is_visible()
    page.locator("button.primary-toggle").first.focus()
    page.keyboard.press("Enter")
    contents.wait_for(state="visible")
    press_until(page, "Tab", "contents positions.html")
    page.keyboard.press("Enter")
    page.wait_for_url("**/book/positions.html")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_solutions_unfold(name, tab, address):
    cells = cells_of(name)
    solutions = [cell.source for cell in cells if "hide-cell" in cell.metadata.get("tags", [])]
    page = tab(f"{address}/{name}.html")
    folded = page.locator("details.hide")
    assert folded.count() == len(solutions) > 0
    for index, source in enumerate(solutions):
        code = folded.nth(index).locator("div.highlight").first
        assert not code.is_visible()
        assert folded.nth(index).locator("summary").inner_text().strip() == "Show the solution"
        folded.nth(index).locator("summary").focus()
        page.keyboard.press("Enter")
        assert code.is_visible()
        assert code.inner_text().strip() == source.strip()


def test_next_and_previous_walk_through_the_whole_book(tab, address):
    page = tab(f"{address}/index.html")
    page.wait_for_url(f"**/{PAGES[0]}.html")
    walked = [PAGES[0]]
    for link in ("a.right-next", "a.left-prev"):
        while page.locator(link).count():
            with page.expect_navigation():
                page.locator(link).click()
            walked.append(page.url.removeprefix(f"{address}/").removesuffix(".html"))
    assert walked == [*PAGES, *reversed(PAGES[:-1])]


@pytest.mark.parametrize("name", ["book/attention", "book/trends"])
def test_copy_buttons_copy_the_cell(name, tab, address):
    cells = cells_of(name)
    sources = [c.source for c in cells if c.cell_type == "code" and "remove-cell" not in c.metadata.get("tags", [])]
    page = tab(f"{address}/{name}.html", permissions=["clipboard-read", "clipboard-write"])
    buttons = page.locator("div.cell_input button.copybtn")
    assert buttons.count() == len(sources)
    for index in (0, 1, len(sources) // 2):
        buttons.nth(index).click()
        assert page.evaluate("navigator.clipboard.readText()").strip() == sources[index].strip()


def test_copy_buttons_of_examples_leave_prompts_and_outputs(tab, address):
    page = tab(f"{address}/book/api.html", permissions=["clipboard-read", "clipboard-write"])
    example = page.locator("div.highlight", has_text=">>> ").first
    lines = example.inner_text().splitlines()
    example.locator("button.copybtn").click()
    statements = [line[4:] for line in lines if line.startswith((">>> ", "... "))]
    assert page.evaluate("navigator.clipboard.readText()").splitlines() == statements
    assert len(statements) < len(lines)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_chapters_say_how_long_they_take_to_read(name, site):
    cells = cells_of(name)
    words = sum(len(cell.source.split()) for cell in cells if cell.cell_type == "markdown")
    code = [cell.source for cell in cells[2:] if cell.cell_type == "code"]
    lines = sum(bool(line.strip()) for source in code for line in source.splitlines())
    (minutes,) = re.findall(r'<p class="times">(\d+) min to read</p>', (site / f"{name}.html").read_text("utf-8"))
    assert int(minutes) == pytest.approx(words / 200 + lines / 20, rel=0.1)


def test_chapters_alone_say_how_long_they_take(site):
    lines = {page: "min to read</p>" in (site / f"{page}.html").read_text("utf-8") for page in PAGES}
    chapters = {chapter["file"] for chapter in TOC["parts"][0]["chapters"]}
    assert lines == {page: page in chapters for page in PAGES}


API = (ROOT / "book" / "api.md").read_text("utf-8")
ENTRIES = re.findall(r"^\.\. auto(?:class|function|data):: (\S+)$", API, re.MULTILINE)


def used_in(page: str) -> set[str]:
    """Return the names that a chapter's code has outside its imports, where it imports them or a module they are in."""
    code = "\n".join(cell.source for cell in cells_of(page) if cell.cell_type == "code")
    imports, rest = [], []
    for line in code.splitlines():
        (imports if re.match("from companion", line) else rest).append(line)
    imported = set(re.findall(r"\w+", " ".join(imports)))
    rest = re.sub(r'(?<!f)"[^"\n]*"|#.*', "", "\n".join(rest))
    words = {word for word in re.findall(r"(?<![\w.])\w+", rest) if word in imported}
    return words | set(re.findall(r"\b(?:toy|exercises|experiments)\.(\w+)", rest))


def links_of(html: str) -> list[tuple[str, str]]:
    """Return address and text of the links in a piece of a page."""
    return [(link, re.sub("<.*?>", "", text)) for link, text in re.findall(r'<a .*?href="(.*?)".*?>(.*?)</a>', html)]


def test_entries_of_the_api_page_lead_to_the_sections_that_use_them(site):
    html = (site / "book" / "api.html").read_text("utf-8")
    starts = [html.index(f'<dt class="sig sig-object py" id="{entry}"') for entry in ENTRIES]
    assert starts == sorted(starts)
    lines = [
        re.findall(r'<p class="where-used">(.*?)</p>', html[start:end], re.DOTALL)
        for start, end in zip(starts, [*starts[1:], len(html)], strict=True)
    ]
    users = {page: used_in(page) for page in NOTEBOOKS}
    for entry, (line,) in zip(ENTRIES, lines, strict=True):
        links = [link for link, _ in links_of(line)]
        pages = {page for page in NOTEBOOKS if entry.rpartition(".")[2] in users[page]}
        if pages:
            assert {f"book/{link.partition('.html#')[0]}" for link in links} == pages, entry
        else:
            assert line.startswith("See "), entry
            assert len(links) == 1, entry
        for link in links:
            target, _, anchor = link.partition("#")
            assert f'id="{anchor}"' in (site / "book" / target).read_text("utf-8") or not anchor, link
    shown = dict(zip(ENTRIES, (links_of(line) for (line,) in lines), strict=True))
    assert shown["companion.sliding_window_mask"][:2] == [
        ("attention.html#masks", "Attention"),
        ("background.html#the-longest-path", "Background"),
    ]


@pytest.mark.parametrize("page", NOTEBOOKS)
def test_chapters_end_with_the_entries_of_what_they_use(page, site):
    (line,) = re.findall(r'<p class="where-used">(.*?)</p>', (site / f"{page}.html").read_text("utf-8"), re.DOTALL)
    wanted = [entry for entry in ENTRIES if entry.rpartition(".")[2] in used_in(page)]
    assert links_of(line) == [(f"api.html#{entry}", entry.rpartition(".")[2]) for entry in wanted]


def test_site_works_from_the_disk(tab, site):
    complaints, requests = [], []
    page = tab((site / "index.html").as_uri(), complaints=complaints, requests=requests)
    page.wait_for_url("**/book/index.html")
    page.locator("a.right-next").click()
    page.wait_for_url("**/book/background.html")
    page.wait_for_function(TYPESET)
    assert page.locator("article mjx-container").count() > 10
    assert complaints == []
    assert {url.partition(":")[0] for url in requests} <= {"file", "data"}


def explored(page: str) -> list[str]:
    """Return what a page's explorers show, ``attention`` or ``positions``, from the outputs stored in its notebook."""
    outputs = [output for cell in cells_of(page) for output in cell.get("outputs", []) if "data" in output]
    return [
        kind for output in outputs for kind in re.findall(r'data-explorer="(\w+)"', output.data.get("text/html", ""))
    ]


def test_five_chapters_have_explorers():
    assert {page: explored(page) for page in NOTEBOOKS if explored(page)} == {
        "book/attention": ["attention"],
        "book/positions": ["positions"],
        "book/imdb": ["attention"],
        "book/albert": ["attention"],
        "book/applications": ["attention"],
    }


@pytest.mark.parametrize("page", ["attention", "imdb", "albert", "applications"])
@pytest.mark.parametrize(
    "options", [{}, {"color_scheme": "dark", "width": 390, "has_touch": True}], ids=["wide", "phone"]
)
def test_attention_is_explored_click_by_click_on_the_site(page, options, tab, address):
    explorer = tab(f"{address}/book/{page}.html", **options).locator(".companion-explorer")
    assert not explorer.locator("img").is_visible()
    (content,) = [
        json.loads(attributes) for attributes in explorer.evaluate_all("all => all.map(e => e.dataset.content)")
    ]
    shape = [content["layers"], content["heads"], len(content["queries"]), len(content["keys"])]
    stored = np.frombuffer(base64.b64decode(content["weights"]), "<u2").reshape(shape) / 10_000
    press = "tap" if options else "click"
    for place in (shape[2] - 1, 0):  # a click on the query that is chosen would let it go
        getattr(explorer.get_by_role("toolbar").get_by_role("button").nth(place), press)()
        for layer in range(shape[0]):
            if shape[0] > 1:
                getattr(explorer.get_by_role("group", name="Layer").get_by_role("radio").nth(layer), press)()
            for head in range(shape[1]):
                getattr(explorer.get_by_role("group", name="Head").get_by_role("radio").nth(head), press)()
                shown = explorer.locator(".explorer-key .explorer-number").all_text_contents()
                weights = stored[layer, head, place]
                assert len(shown) == len(weights)
                for text, weight in zip(shown, weights, strict=True):
                    if text == "<0.01":
                        assert 0 < weight < 0.01
                    else:
                        assert float(text) == pytest.approx(weight, abs=0.005001)


def test_positions_are_explored_by_sliders_on_the_site(tab, address):
    page = tab(f"{address}/book/positions.html")
    explorer = page.locator(".companion-explorer")
    (content,) = [
        json.loads(attributes) for attributes in explorer.evaluate_all("all => all.map(e => e.dataset.content)")
    ]
    assert [table["name"] for table in content["tables"]] == ["sinusoidal", "learned", "rotary", "ALiBi"]
    for index, table in enumerate(content["tables"]):
        explorer.get_by_role("radio").nth(index).click()
        for key, row, column in [("Home", 0, 0), ("End", len(table["values"]) - 1, len(table["values"][0]) - 1)]:
            for slider in range(2):
                explorer.get_by_role("slider").nth(slider).focus()
                page.keyboard.press(key)
            said = explorer.get_by_role("status").inner_text().replace("−", "-")
            number = float(re.search(r": (-?\d+(?:\.\d+)?(?:e-?\d+)?)", said)[1])
            assert said.startswith(table["name"])
            assert number == pytest.approx(table["values"][row][column], rel=5e-3, abs=1e-9)
