"""Sphinx extension: an entry of the API page leads to the sections that use its name, and a chapter to its entries.

What a chapter uses is read from its code when the site is built. The chapter that the entry's group links to comes
first; a name that no chapter uses leads to what the group links to.
"""

import ast
import re
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform

API = "book/api"
ENTRY = re.compile(r"^\.\. auto(?:class|function|data):: (companion\.\S+)$", re.MULTILINE)


def names_in(code: str, origins: dict[str, str]) -> set[str]:
    """Return what a cell uses of what has been imported, under its full name.

    Args:
        code: The cell's code; lines for IPython are passed over.
        origins: What each name stands for; the cell's own imports are added.

    Example:
        >>> sorted(names_in("from companion import toy as t; t.reviews(1)", {}))
        ['companion.toy', 'companion.toy.reviews']
    """
    tree = ast.parse(re.sub(r"^( *)%.*", r"\1pass", code, flags=re.MULTILINE))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            for alias in node.names:
                name = alias.name if alias.asname else alias.name.partition(".")[0]
                origins[alias.asname or name] = module + name
    return {name for node in ast.walk(tree) if (name := _full_name(node, origins))}


def _full_name(node: ast.AST, origins: dict[str, str]) -> str:
    match node:
        case ast.Name(id=name, ctx=ast.Load()):
            return origins.get(name, "")
        case ast.Attribute(value=value, attr=attribute) if owner := _full_name(value, origins):
            return f"{owner}.{attribute}"
    return ""


def note_uses(app: Sphinx, document: nodes.document) -> None:
    """Keep which section of a page first uses each entry, and name the entries at the page's end."""
    env, page = app.env, app.env.docname
    if API not in env.found_docs:
        return
    for other in env.found_docs if page == API else [API]:
        env.note_dependency(env.doc2path(other))
    entries = ENTRY.findall(Path(env.doc2path(API)).read_text("utf-8"))
    named = {entry.rpartition(".")[2]: entry for entry in entries}
    origins, uses = {}, {}
    for cell in document.findall(nodes.container):
        if "cell_input" not in cell["classes"]:
            continue
        for name in names_in(cell.astext(), origins):
            if name.startswith("companion.") and (entry := named.get(name.rpartition(".")[2])):
                uses.setdefault(entry, _section(cell)["slug"])
    env.metadata[page]["uses"] = uses
    if uses:
        attributes = {"refdomain": "py", "reftype": "obj", "refdoc": page}
        links = [
            addnodes.pending_xref("", nodes.literal(text=name), reftarget=entry, **attributes)
            for name, entry in named.items()
            if entry in uses
        ]
        document[0] += _line("From the API, in this chapter: ", links)


class LinkEntries(SphinxPostTransform):
    """Add to each entry of the API page where its name is used."""

    default_priority = 8  # MyST resolves links at 9

    def run(self, **kwargs: object) -> None:
        """Add the line to what an entry says, before the methods of a class."""
        for entry in self.document.findall(addnodes.desc):
            if entry["domain"] == "py" and not isinstance(entry.parent, addnodes.desc_content):
                content = entry[-1]
                methods = content.first_child_matching_class(addnodes.index)
                content.insert(len(content) if methods is None else methods, self._where(entry))

    def _where(self, entry: addnodes.desc) -> nodes.paragraph:
        paragraphs = (child for child in _section(entry) if isinstance(child, nodes.paragraph))
        links = (link for paragraph in paragraphs for link in paragraph.findall(addnodes.pending_xref))
        explained = next((link for link in links if link["refdomain"] == "doc"), None)
        pages = self.env.toctree_includes[self.config.root_doc]
        if explained:
            pages = sorted(pages, key=lambda page: page != explained["reftarget"])
        name = entry[0]["ids"][0]
        sections = {page: self.env.metadata[page].get("uses", {}).get(name) for page in pages}
        links = [self._link(page, section) for page, section in sections.items() if section]
        return _line("In the chapters: ", links) if links else _line("See ", [explained.deepcopy()])

    def _link(self, page: str, section: str) -> addnodes.pending_xref:
        title = nodes.inline(text=re.split("[:,]", self.env.titles[page].astext())[0])
        to = {"refdomain": "doc", "reftype": "myst", "reftarget": page, "reftargetid": section}
        return addnodes.pending_xref("", title, refdoc=API, refexplicit=True, **to)


def _section(node: nodes.Node) -> nodes.section:
    while not isinstance(node, nodes.section):
        node = node.parent
    return node


def _line(words: str, links: list[nodes.Node]) -> nodes.paragraph:
    between = [part for link in links[1:] for part in (nodes.Text(", "), link)]
    return nodes.paragraph("", words, links[0], *between, nodes.Text("."), classes=["where-used"])


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension with Sphinx."""
    app.connect("doctree-read", note_uses)
    app.add_post_transform(LinkEntries)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
