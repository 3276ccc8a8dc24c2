"""Sphinx extension: what the book needs to be one file, a PDF or an EPUB, and the site does not.

Both show the solutions that the site folds. The page that becomes the PDF holds all chapters, so that their anchors
get the chapter's name. The EPUB has formulas as images, since readers of EPUBs seldom run scripts.
"""

import hashlib
import html
import importlib.util
import re
from importlib import metadata
from pathlib import Path

from docutils import nodes
from playwright.sync_api import sync_playwright
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.builders import Builder
from sphinx.config import Config
from sphinx.transforms.post_transforms import SphinxPostTransform

from chromium import executable

FORMULA = re.compile(r'<(span|div) class="math notranslate nohighlight">\s*\\[(\[](.*?)\\[)\]]\s*</\1>', re.DOTALL)
SHEETS = ("pygments.css", "ereader.css")  # the others are for the site
TO_SVG = """async formulas => {
    const page = document.body.appendChild(document.createElement("div"));
    return Promise.all(formulas.map(async ([tex, display]) => {
        const container = page.appendChild(await MathJax.tex2svgPromise(tex, {display}));
        const error = container.querySelector("[data-mjx-error]");
        if (error) throw new Error(`${tex}: ${error.dataset.mjxError}`);
        const svg = container.querySelector("svg");
        return [new XMLSerializer().serializeToString(svg), svg.style.verticalAlign];
    }));
}"""


class Unfold(SphinxPostTransform):
    """Show the solutions, which the site folds, and in the contents the sections, which it shows beside a page."""

    builders = ("singlehtml", "epub")
    default_priority = 198  # MyST-NB folds at 199

    def run(self, **kwargs: object) -> None:
        """Take the marks off every folded cell and table of contents."""
        for cell in self.document.findall(nodes.container):
            cell.attributes.pop("hide_mode", None)
        for contents in self.document.findall(addnodes.toctree):
            contents["titlesonly"] = False


def name_anchors(node: nodes.Element, page: str) -> None:
    """Put the page's name before the anchors below a node, and before what refers to them.

    Args:
        node: A part of the book as one document, changed in place.
        page: The page that it comes from.
    """
    for child in node.children:
        if not isinstance(child, nodes.Element):
            continue
        name_anchors(child, child["docname"] if isinstance(child, addnodes.start_of_file) else page)
        for attribute in ("ids", "backrefs"):
            child[attribute] = [f"{page}--{anchor}" for anchor in child.get(attribute, [])]
        if "refid" in child:
            child["refid"] = f"{page}--{child['refid']}"
        elif child.get("refuri", "").startswith("#document-") and "#" in child["refuri"][1:]:
            child["refuri"] = "#" + child["refuri"].removeprefix("#document-").replace("#", "--")


def name_all_anchors(app: Sphinx, document: nodes.document, root: str) -> None:
    """Make the anchors of the book on one page different from each other."""
    if app.builder.name == "singlehtml":
        name_anchors(document, root)


class Formulas:
    """Formulas as SVG images, made by the MathJax that the site ships.

    Attributes:
        page: The page of a browser that runs MathJax.
        folder: Where the images are kept.
    """

    def __init__(self, folder: Path) -> None:
        package = importlib.util.find_spec("sphinx-mathjax-offline").submodule_search_locations[0]
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.playwright = sync_playwright().start()
        self.page = self.playwright.chromium.launch(executable_path=executable()).new_page()
        self.page.evaluate(
            "window.MathJax = {tex: {packages: {'[-]': ['noundefined']}}}"
        )  # what is unknown is an error
        self.page.add_script_tag(path=Path(package, "static", "mathjax", "tex-svg-full.js"))
        self.page.evaluate("MathJax.startup.promise")

    def replace(self, body: str, root: str) -> str:
        """Put images in the place of formulas.

        Args:
            body: A page's HTML as Sphinx writes it for MathJax.
            root: The way from the page to the folder of the whole book.

        Returns:
            The same with an `img` for each formula, described by its TeX.
        """
        found = FORMULA.findall(body)
        formulas = [[html.unescape(tex).strip(), tag == "div"] for tag, tex in found]
        drawn = iter(zip(formulas, self.page.evaluate(TO_SVG, formulas), strict=True))

        def image(match: re.Match) -> str:
            (tex, _), (svg, baseline) = next(drawn)
            name = f"{hashlib.sha256(svg.encode()).hexdigest()[:16]}.svg"
            (self.folder / name).write_text(svg, encoding="utf-8")
            width, height = (re.search(rf'\b{side}="([\d.]+ex)"', svg)[1] for side in ("width", "height"))
            style = f"width: {width}; height: {height}; vertical-align: {baseline or '0'}"
            source = f"{root}{self.folder.parent.name}/{self.folder.name}/{name}"
            tag = match[1]
            return f'<{tag} class="math"><img src="{source}" alt="{html.escape(tex)}" style="{style}"/></{tag}>'

        return FORMULA.sub(image, body)

    def close(self) -> None:
        """End the browser."""
        self.playwright.stop()


def describe(app: Sphinx, config: Config) -> None:
    """Give an EPUB the package's version, which it must state, and its cover, a tuple, which YAML has not."""
    config.version = config.release = metadata.version("measured-transformer")
    config.epub_cover = ("_static/cover.png", "epub-cover.html")


def drop_furniture(app: Sphinx) -> None:
    """Leave out what leads from a page of the site to others, and of an EPUB the site's own fonts, style and logo."""
    if app.builder.name in Unfold.builders:
        app.config.html_theme_options = {}
        app.config.html_domain_indices = False
        app.config.html_scaled_image_link = False
    if app.builder.name == "epub":
        app.config.html_favicon = app.config.html_logo = None
        app.config.html_static_path = ["book/_static/cover.png", "book/_static/ereader.css"]


def draw_formulas(app: Sphinx, builder: Builder) -> None:
    """Make the formulas of an EPUB images, from here to the end of the build."""
    if builder.name != "epub":
        return
    formulas = Formulas(Path(builder.outdir, "_images", "formulas"))

    def replace(app: Sphinx, page: str, template: str, context: dict, document: nodes.document | None) -> None:
        context["body"] = formulas.replace(context.get("body", ""), "../" * page.count("/"))
        context["css_files"] = [sheet for sheet in context["css_files"] if Path(sheet.filename).name in SHEETS]

    app.connect("html-page-context", replace, priority=900)
    app.connect("build-finished", lambda app, exception: formulas.close())


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension with Sphinx."""
    app.add_post_transform(Unfold)
    app.connect("config-inited", describe)
    app.connect("builder-inited", drop_furniture)
    app.connect("doctree-resolved", name_all_anchors)
    app.connect("write-started", draw_formulas)
    return {"parallel_read_safe": True, "parallel_write_safe": False}
