"""The book's own rules: what every chapter keeps to, and that each rule sees a chapter that does not.

A rule takes a parsed notebook and returns its problems, one line each.
"""

import ast
import itertools
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
import yaml
from IPython.core.inputtransformer2 import TransformerManager
from markdown_it import MarkdownIt
from markdown_it.token import Token
from mdit_py_plugins.amsmath import amsmath_plugin
from mdit_py_plugins.colon_fence import colon_fence_plugin
from mdit_py_plugins.dollarmath import dollarmath_plugin
from mdit_py_plugins.footnote import footnote_plugin
from mdit_py_plugins.myst_blocks import myst_block_plugin
from mdit_py_plugins.myst_role import myst_role_plugin
from mdit_py_plugins.substitution import substitution_plugin
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import companion

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "book").rglob("*.ipynb"))
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]

INSTALL_CELL = f"""\
# Install the book's package where it is not, as on Colab
if not __import__("importlib.util").util.find_spec("companion"): \
get_ipython().run_line_magic("pip", 'install -q "measured-transformer[chapters] @ git+{REPOSITORY}"')"""
INSTALL_TAGS = ["remove-cell", "nbval-skip"]
SOLUTION = "#@title Solution"

MAX_LINES = 20
MAX_WIDTH = 88  # what the site shows of a code line without scrolling
MIN_ASSERTS = 5
MAX_UNSTABLE = 1 / 3
STYLE = 'with style.context("companion.plotting.book"):'
TAGS = {"hide-cell", "hide-input", "hide-output", "nbval-ignore-output"}

# HTML that the site, Colab and GitHub all render; most other tags are dropped or shown as text somewhere.
PORTABLE_HTML = {"br", "kbd", "sub", "sup"}
UNPORTABLE_MARKDOWN = {
    "amsmath": "an equation environment outside $$",
    "colon_fence": "a ::: directive",
    "footnote_ref": "a footnote",
    "math_block_label": "a labelled equation",
    "myst_block_break": "a +++ block break",
    "myst_line_comment": "a % comment",
    "myst_role": "a role",
    "myst_target": "a (label)= target",
    "substitution_block": "a {{substitution}}",
    "substitution_inline": "a {{substitution}}",
}
MARKDOWN = MarkdownIt("commonmark").enable("table")
for plugin in (
    amsmath_plugin,
    colon_fence_plugin,
    dollarmath_plugin,
    footnote_plugin,
    myst_block_plugin,
    myst_role_plugin,
    substitution_plugin,
):
    MARKDOWN.use(plugin)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """Return the code cells of a notebook, in order."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell: NotebookNode) -> list[str]:
    """Return the tags of a cell."""
    return cell.metadata.get("tags", [])


def executed_in_order(notebook: NotebookNode) -> list[str]:
    """Every code cell was executed, in order, in a fresh kernel."""
    counts = [cell.execution_count for cell in code_cells(notebook)]
    return [] if counts == list(range(1, len(counts) + 1)) else [f"execution counts are {counts}"]


def no_error_output(notebook: NotebookNode) -> list[str]:
    """No output is an error, nor a warning or a progress bar on stderr."""
    return [
        f"code cell {index} stores {output.get('name', 'an error')}"
        for index, cell in enumerate(code_cells(notebook))
        for output in cell.outputs
        if output.output_type == "error" or output.get("name") == "stderr"
    ]


def installs_first(notebook: NotebookNode) -> list[str]:
    """The first code cell is the agreed install cell, hidden on the site and left out by nbval."""
    first = code_cells(notebook)[0]
    problems = [] if first.source == INSTALL_CELL else ["the first code cell is not the install cell"]
    return problems + ([] if tags(first) == INSTALL_TAGS else [f"the first code cell is tagged {tags(first)}"])


def installs_nothing_else(notebook: NotebookNode) -> list[str]:
    """No later cell installs anything."""
    installer = re.compile(r"\b(pip3?|conda|mamba|uv|apt|apt-get)\b.*\binstall\b", re.DOTALL)
    return [
        f"code cell {index} installs"
        for index, cell in enumerate(code_cells(notebook)[1:], start=1)
        if installer.search(cell.source)
    ]


def compares_outputs(notebook: NotebookNode) -> list[str]:
    """Beside the install cell, nothing but nbval-ignore-output keeps an output from being compared."""
    problems = []
    for index, cell in enumerate(code_cells(notebook)[1:], start=1):
        problems += [f"code cell {index} is tagged {tag}" for tag in sorted({*tags(cell)} - TAGS)]
        if re.search(r"^\s*#+\s*(NBVAL|PYTEST_VALIDATE)_", cell.source, re.MULTILINE):
            problems.append(f"code cell {index} steers nbval by a comment")
    return problems


def few_unstable_outputs(notebook: NotebookNode) -> list[str]:
    """At most a third of the code cells have outputs that are not compared."""
    cells = code_cells(notebook)
    unstable = sum("nbval-ignore-output" in tags(cell) for cell in cells)
    return [] if unstable <= MAX_UNSTABLE * len(cells) else [f"{unstable} of {len(cells)} outputs are unstable"]


def asserts_its_claims(notebook: NotebookNode) -> list[str]:
    """A chapter has at least five assert statements."""
    transform = TransformerManager().transform_cell
    trees = [ast.parse(transform(cell.source)) for cell in code_cells(notebook)]
    asserts = sum(isinstance(node, ast.Assert) for tree in trees for node in ast.walk(tree))
    return [] if asserts >= MIN_ASSERTS else [f"{asserts} assert statements"]


def short_cells(notebook: NotebookNode) -> list[str]:
    """A code cell can be taken in at a glance."""
    lengths = [len(cell.source.splitlines()) for cell in code_cells(notebook)]
    return [f"code cell {index} has {n} lines" for index, n in enumerate(lengths) if n > MAX_LINES]


def narrow_cells(notebook: NotebookNode) -> list[str]:
    """A code line can be read on the site without scrolling; the install cell is hidden there."""
    return [
        f"code cell {index} has a line of {len(line)} characters"
        for index, cell in enumerate(code_cells(notebook)[1:], start=1)
        for line in cell.source.splitlines()
        if len(line) > MAX_WIDTH
    ]


def folded_solutions(notebook: NotebookNode) -> list[str]:
    """Folded cells are solutions, folded on the site by their tag and on Colab by their title and view."""
    problems = []
    for index, cell in enumerate(code_cells(notebook)):
        folded = (
            "hide-cell" in tags(cell),
            cell.source.startswith(SOLUTION),
            cell.metadata.get("cellView") == "form",
        )
        if any(folded) and not all(folded):
            problems.append(f"code cell {index}: tag, title, Colab's view are {folded}")
    return problems


def walk_markdown(text: str) -> Iterator[Token]:
    """Yield the block tokens of a Markdown text and the inline tokens in them."""
    for token in MARKDOWN.parse(text):
        yield token
        yield from token.children or []


def markdown_problems(text: str) -> Iterator[str]:
    """Yield what a Markdown text has that Colab or GitHub do not render."""
    before = None
    for token in walk_markdown(text):
        if token.type in UNPORTABLE_MARKDOWN:
            yield UNPORTABLE_MARKDOWN[token.type]
        elif token.type == "fence" and token.info.startswith("{"):
            yield f"a {token.info} directive"
        elif token.type in ("html_block", "html_inline"):
            names = {name.lower() for name in re.findall(r"<([A-Za-z][\w-]*)", token.content)}
            yield from (f"the HTML tag {name}" for name in sorted(names - PORTABLE_HTML))
        elif token.type == "image" and not token.content.strip():
            yield "an image without alt text"
        elif token.type == "link_close" and before == "link_open":
            yield "a link without text"
        before = token.type


def formula_problems(text: str) -> Iterator[str]:
    """Yield what GitHub or Colab make something else of than a formula.

    A bar ends a table's cell, even in a formula; "<" and a letter begin a tag; GitHub refuses \\operatorname.
    """
    for block in MARKDOWN.parse(text):
        if block.type == "math_block" and r"\operatorname" in block.content:
            yield r"the macro \operatorname"
        for before, token, after in windows(block.children or []):
            if token.type == "text" and "$" in token.content:
                yield "a $ that is no formula's"
            if token.type != "math_inline":
                continue
            if before[-1:].isalnum() or after[:1].isalnum():
                yield f"a formula that touches a word: {token.content}"
            if re.search(r"<[A-Za-z/!?]", token.content):
                yield f"a formula with a tag: {token.content}"
            if r"\\" in token.content:
                yield f"a formula of two lines in the text: {token.content}"
            if r"\operatorname" in token.content:
                yield r"the macro \operatorname"
            if token.content != token.content.strip():
                yield f"a formula that begins or ends with a space: {token.content}"


def windows(tokens: list[Token]) -> Iterator[tuple[str, Token, str]]:
    """Yield each token between the texts before and after it."""
    texts = ["", *(token.content if token.type == "text" else "" for token in tokens), ""]
    yield from zip(texts, tokens, texts[2:], strict=False)


def portable_formulas(notebook: NotebookNode) -> list[str]:
    """A formula is one on the site, on Colab and on GitHub."""
    return [
        f"cell {index} has {problem}"
        for index, cell in enumerate(notebook.cells)
        if cell.cell_type == "markdown"
        for problem in formula_problems(cell.source)
    ]


def portable_markdown(notebook: NotebookNode) -> list[str]:
    """The text reads the same on the site, on Colab and on GitHub."""
    return [
        f"cell {index} has {problem}"
        for index, cell in enumerate(notebook.cells)
        if cell.cell_type == "markdown"
        for problem in markdown_problems(cell.source)
    ]


def described_figures(notebook: NotebookNode) -> list[str]:
    """A figure or an explorer has an alternative text for who cannot see it, and a caption in italics below it."""
    problems = []
    for cell, after in itertools.pairwise([*notebook.cells, new_markdown_cell()]):
        shown = [output.get("data", {}) for output in cell.get("outputs", [])]
        explorers = [data for data in shown if "companion-explorer" in data.get("text/html", "")]
        if any("image/png" not in data for data in explorers):
            problems.append(f"an explorer has no figure: {cell.source[:40]!r}")
        if not explorers and not any("image/png" in data for data in shown):
            continue
        if not cell.metadata.get("mystnb", {}).get("image", {}).get("alt"):
            problems.append(f"a figure has no alt text: {cell.source[:40]!r}")
        if after.cell_type != "markdown" or not re.match(r"\*[^*]", after.source):
            problems.append(f"a figure has no caption: {cell.source[:40]!r}")
    return problems


def figures_in_one_style(notebook: NotebookNode) -> list[str]:
    """A figure that a chapter draws by itself has the style of those that the package draws."""
    return [
        f"code cell {index} draws a figure in another style"
        for index, cell in enumerate(code_cells(notebook))
        if re.search(r"\bFigure\(|\bplt\.|\bpyplot\b", cell.source) and STYLE not in cell.source
    ]


def links_notation(notebook: NotebookNode) -> list[str]:
    """A chapter's first cell says where its symbols are explained."""
    return [] if "](notation.md)" in notebook.cells[0].source else ["the first cell does not link to notation.md"]


RULES = [
    executed_in_order,
    no_error_output,
    installs_first,
    installs_nothing_else,
    compares_outputs,
    few_unstable_outputs,
    asserts_its_claims,
    short_cells,
    narrow_cells,
    folded_solutions,
    portable_markdown,
    portable_formulas,
    described_figures,
    figures_in_one_style,
    links_notation,
]


def toc_entries(toc: dict | list) -> Iterator[str]:
    """Yield the pages that a table of contents names, at whatever depth."""
    for item in toc if isinstance(toc, list) else [toc]:
        for key, value in item.items():
            if key in ("root", "file"):
                yield value
            elif isinstance(value, list):
                yield from toc_entries(value)


def toc_problems(toc: dict, pages: set[str]) -> list[str]:
    """List the entries that have no page, and the notebooks among the pages that have no entry."""
    entries = set(toc_entries(toc))
    absent = entries - {page.rpartition(".")[0] for page in pages}
    unlisted = {page for page in pages if page.endswith(".ipynb") and page.removesuffix(".ipynb") not in entries}
    return [f"{entry} does not exist" for entry in sorted(absent)] + [
        f"{page} is not in the table of contents" for page in sorted(unlisted)
    ]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_chapter_keeps_the_rule(path, rule):
    assert rule(nbformat.read(path, as_version=4)) == []


@pytest.mark.parametrize("path", sorted((ROOT / "book").glob("*.md")), ids=lambda path: path.stem)
def test_formulas_of_a_page_are_formulas_on_github(path):
    assert list(formula_problems(path.read_text(encoding="utf-8"))) == []


def test_table_of_contents_is_complete():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    pages = {
        path.relative_to(ROOT).as_posix() for suffix in ("md", "ipynb") for path in ROOT.glob(f"book/**/*.{suffix}")
    }
    assert toc_problems(toc, pages) == []


def test_the_first_page_lists_every_other_page_in_order():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    first = (ROOT / "book" / "index.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| \[[^]]+\]\((\w+)\.(?:ipynb|md)\) \|", first, re.MULTILINE)
    assert ["book/index", *(f"book/{page}" for page in listed)] == list(toc_entries(toc))


def test_every_public_name_is_on_the_api_page():
    page = (ROOT / "book" / "api.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^\.\. auto(?:class|function|module):: companion\.(\w+)$", page, re.MULTILINE))
    assert set(companion.__all__) - shown == set()


def bibliography() -> dict[str, dict[str, str]]:
    """Read references.bib: the fields of each entry, under its key."""
    text = (ROOT / "book" / "references.bib").read_text(encoding="utf-8")
    entries = re.findall(r"^@\w+\{(\w+),\n(.*?)^\}", text, re.MULTILINE | re.DOTALL)
    assert len(entries) == len(dict(entries)) == text.count("@")
    return {key: dict(re.findall(r"^  (\w+) = \{(.*)\},$", fields, re.MULTILINE)) for key, fields in entries}


def sources(entry: dict[str, str]) -> set[str]:
    """Return the addresses at which an entry's publication is found."""
    arxiv = {f"https://arxiv.org/abs/{entry['eprint']}"} if "eprint" in entry else set()
    doi = {f"https://doi.org/{entry['doi']}"} if "doi" in entry else set()
    return arxiv | doi | ({entry["url"]} if "url" in entry else set())


CITED = re.compile(r"https://(?:arxiv\.org/abs|doi\.org|aclanthology\.org)/[^\s)]+")


def test_every_entry_of_the_bibliography_says_who_what_when_and_where():
    for key, entry in bibliography().items():
        assert {"author", "title", "year"} <= set(entry), key
        assert sources(entry), key
        assert key == entry["author"].split(",")[0].lower() + entry["year"], key


def test_the_bibliography_lists_what_the_chapters_and_the_package_cite():
    listed = {source for entry in bibliography().values() for source in sources(entry)}
    pages = [cell.source for path in NOTEBOOKS for cell in nbformat.read(path, as_version=4).cells]
    pages += [path.read_text(encoding="utf-8") for path in (ROOT / "book").glob("*.md")]
    cited = {address for page in pages for address in CITED.findall(page)}
    docstrings = [path.read_text(encoding="utf-8") for path in (ROOT / "companion").rglob("*.py")]
    cited |= {f"https://arxiv.org/abs/{number}" for text in docstrings for number in re.findall(r"arXiv:(\S+\d)", text)}
    assert cited - listed == set()
    assert listed - cited == set()


def test_every_check_is_an_exercise_of_a_chapter():
    solutions = [
        cell.source
        for path in NOTEBOOKS
        for cell in code_cells(nbformat.read(path, as_version=4))
        if cell.source.startswith(SOLUTION)
    ]
    used = {name for source in solutions for name in re.findall(r"\bexercises\.(check_\w+)\(", source)}
    assert used == {name for name in companion.__all__ if name.startswith("check_")}


def test_the_site_shows_tables_that_cells_make():
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    assert config["sphinx"]["config"]["nb_render_markdown_format"] == "gfm"  # the default, CommonMark, has no tables


def chapter(*cells: NotebookNode) -> NotebookNode:
    """Return an executed chapter that keeps every rule, with further cells at its end."""
    notebook = new_notebook(
        cells=[
            new_markdown_cell(
                "# Title\n\nSee [notation](notation.md).\n\n"
                "Text with $n < d$, `<code>`, [a link](https://arxiv.org), H<sub>2</sub>O."
            ),
            new_markdown_cell("> A note.\n\n$$\nx^2\n$$\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n![A cat](cat.png)"),
            new_code_cell(INSTALL_CELL, metadata={"tags": INSTALL_TAGS}),
            new_code_cell("assert 1\nassert 2\nassert 3\nassert 4"),
            new_code_cell(f"{SOLUTION}\nassert 5", metadata={"tags": ["hide-cell"], "cellView": "form"}),
            *cells,
        ]
    )
    for count, cell in enumerate(code_cells(notebook), start=1):
        cell.execution_count = count
    return notebook


def code(source: str = "1", *cell_tags: str, **metadata: str) -> NotebookNode:
    """Return a code cell."""
    return new_code_cell(source, metadata={"tags": list(cell_tags), **metadata})


def printing(**output: str) -> NotebookNode:
    """Return a code cell that stores one output."""
    return new_code_cell(outputs=[new_output(**output)])


def with_counts(*counts: int | None) -> NotebookNode:
    """Return a chapter whose first code cells have these execution counts."""
    notebook = chapter()
    for cell, count in zip(code_cells(notebook), counts, strict=True):
        cell.execution_count = count
    return notebook


def with_first(source: str, *cell_tags: str) -> NotebookNode:
    """Return a chapter that opens with another code cell."""
    notebook = chapter()
    notebook.cells.insert(0, code(source, *cell_tags))
    return notebook


FIGURE = new_output("display_data", data={"image/png": ""})
ALT = {"image": {"alt": "A cat"}}


EXPLORER = new_output("execute_result", data={"text/html": '<div class="companion-explorer"></div>', "image/png": ""})
BARE_EXPLORER = new_output("execute_result", data={"text/html": '<div class="companion-explorer"></div>'})


def without_notation() -> NotebookNode:
    """Return a chapter whose first cell does not link to the notation page."""
    notebook = chapter()
    notebook.cells[0].source = "# Title"
    return notebook


BAD_CHAPTERS = [
    (executed_in_order, with_counts(None, None, None)),
    (executed_in_order, with_counts(1, 2, None)),
    (executed_in_order, with_counts(1, 3, 2)),
    (executed_in_order, with_counts(2, 3, 4)),
    (no_error_output, chapter(printing(output_type="error", ename="ValueError", evalue="no"))),
    (no_error_output, chapter(printing(output_type="stream", name="stderr", text="UserWarning"))),
    (installs_first, with_first("import torch", *INSTALL_TAGS)),
    (installs_first, with_first(INSTALL_CELL.replace("-q", "-U"), *INSTALL_TAGS)),
    (installs_first, with_first(INSTALL_CELL.replace("https", "http"), *INSTALL_TAGS)),
    (installs_first, with_first(INSTALL_CELL, "nbval-skip")),
    (installs_nothing_else, chapter(code("%pip install numpy==1.0"))),
    (installs_nothing_else, chapter(code("!apt-get -y install cowsay"))),
    (installs_nothing_else, chapter(code('subprocess.run(["pip",\n    "install", "numpy"])'))),
    (compares_outputs, chapter(code("1", "nbval-skip"))),
    (compares_outputs, chapter(code("1", "raises-exception"))),
    (compares_outputs, chapter(code("1", "skip-execution"))),
    (compares_outputs, chapter(code("# NBVAL_IGNORE_OUTPUT\n1"))),
    (few_unstable_outputs, chapter(*(code("1", "nbval-ignore-output") for _ in range(2)))),
    (asserts_its_claims, new_notebook(cells=[code("assert 1\n'assert 2'  # assert 3")])),
    (short_cells, chapter(code("x = 1\n" * 21))),
    (narrow_cells, chapter(code(f"x = '{'x' * 83}'"))),
    (folded_solutions, chapter(code("assert 1", "hide-cell"))),
    (folded_solutions, chapter(code(SOLUTION, cellView="form"))),
    (folded_solutions, chapter(code(SOLUTION, "hide-cell"))),
    (portable_markdown, chapter(new_markdown_cell("text\n\n```{note}\nText\n```"))),
    (portable_markdown, chapter(new_markdown_cell(":::{note}\nText\n:::"))),
    (portable_markdown, chapter(new_markdown_cell("as in {cite}`vaswani`"))),
    (portable_markdown, chapter(new_markdown_cell("see {ref}`label`"))),
    (portable_markdown, chapter(new_markdown_cell("$$\nx\n$$ (equation)"))),
    (portable_markdown, chapter(new_markdown_cell("\\begin{align}\nx\n\\end{align}"))),
    (portable_markdown, chapter(new_markdown_cell("(label)=\n# Title"))),
    (portable_markdown, chapter(new_markdown_cell("% a comment"))),
    (portable_markdown, chapter(new_markdown_cell("+++"))),
    (portable_markdown, chapter(new_markdown_cell("the {{ name }} of it"))),
    (portable_markdown, chapter(new_markdown_cell("a note[^1]\n\n[^1]: below"))),
    (portable_markdown, chapter(new_markdown_cell('<div class="note">Text</div>'))),
    (portable_markdown, chapter(new_markdown_cell('<img src="cat.png" alt="A cat">'))),
    (portable_markdown, chapter(new_markdown_cell("text in <span>colour</span>"))),
    (portable_markdown, chapter(new_markdown_cell("![](cat.png)"))),
    (portable_markdown, chapter(new_markdown_cell("[](attention.ipynb)"))),
    (portable_formulas, chapter(new_markdown_cell("the 3$d$ columns"))),
    (portable_formulas, chapter(new_markdown_cell("all $n$th rows"))),
    (portable_formulas, chapter(new_markdown_cell("where $a<b$ holds"))),
    (portable_formulas, chapter(new_markdown_cell("where $a \\\\ b$ holds"))),
    (portable_formulas, chapter(new_markdown_cell("where $ a $ holds"))),
    (portable_formulas, chapter(new_markdown_cell("it costs $5"))),
    (portable_formulas, chapter(new_markdown_cell("as $\\operatorname{softmax}(x)$"))),
    (portable_formulas, chapter(new_markdown_cell("$$\n\\operatorname{softmax}(x)\n$$"))),
    (portable_formulas, chapter(new_markdown_cell("| a |\n|---|\n| $x | y |\n"))),
    (described_figures, chapter(new_code_cell(outputs=[FIGURE]), new_markdown_cell("*A cat.*"))),
    (described_figures, chapter(new_code_cell(outputs=[FIGURE], metadata={"mystnb": ALT}))),
    (
        described_figures,
        chapter(new_code_cell(outputs=[FIGURE], metadata={"mystnb": ALT}), new_markdown_cell("A cat.")),
    ),
    (figures_in_one_style, chapter(code("figure = Figure(figsize=(6, 3))"))),
    (figures_in_one_style, chapter(code("import matplotlib.pyplot as plt"))),
    (figures_in_one_style, chapter(code("plt.plot(x)"))),
    (described_figures, chapter(new_code_cell(outputs=[EXPLORER]), new_markdown_cell("*A cat.*"))),
    (described_figures, chapter(new_code_cell(outputs=[EXPLORER], metadata={"mystnb": ALT}))),
    (
        described_figures,
        chapter(new_code_cell(outputs=[BARE_EXPLORER], metadata={"mystnb": ALT}), new_markdown_cell("*A cat.*")),
    ),
    (links_notation, without_notation()),
]


@pytest.mark.parametrize(("rule", "notebook"), BAD_CHAPTERS)
def test_rule_sees_a_bad_chapter(rule, notebook):
    assert len(rule(notebook)) == 1


def test_every_rule_has_a_bad_chapter():
    assert {rule for rule, _ in BAD_CHAPTERS} == set(RULES)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_allows_a_good_chapter(rule):
    assert rule(chapter(code("1", "nbval-ignore-output"))) == []


def test_toc_problems_sees_what_is_missing():
    toc = {"root": "book/index", "parts": [{"caption": "Chapters", "chapters": [{"file": "book/a"}]}]}
    assert toc_problems(toc, {"book/index.md", "book/a.ipynb"}) == []
    assert toc_problems(toc, {"book/index.md"}) == ["book/a does not exist"]
    assert toc_problems(toc, {"book/index.md", "book/a.ipynb", "book/b.ipynb"}) == [
        "book/b.ipynb is not in the table of contents"
    ]
