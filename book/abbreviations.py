"""Where an abbreviation first appears on a page, its long form shows on hover and on focus: a Sphinx extension.

The glossary is the one source: a term in capitals is spelled out by its definition, up to the first punctuation mark.
"""

import re
from html import escape
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

# Code, formulas, headings, titles of works, and the entries of the glossary stay as they are.
CODE = (nodes.literal, nodes.literal_block, nodes.math, nodes.math_block, nodes.raw)
LEFT_ALONE = (*CODE, nodes.title, nodes.term, nodes.citation)


def spelled_out(glossary: str) -> dict[str, str]:
    """Long forms by abbreviation."""
    entries = re.findall(r"^(\S*[A-Z]\S*[A-Z0-9]\S*)\n  ([^.:;,]+)", glossary, re.MULTILINE)
    return {short: " ".join(long.split()) for short, long in entries}


def mark(app: Sphinx, page: nodes.document, _: str) -> None:
    """Replace the first appearances on a page."""
    left = spelled_out((Path(app.srcdir) / "book" / "glossary.md").read_text())
    names = "|".join(map(re.escape, sorted(left, key=len, reverse=True)))
    for text in list(page.findall(nodes.Text)):
        above, inside = [], text.parent
        while inside is not None:
            above.append(inside)
            inside = inside.parent
        if any(isinstance(node, LEFT_ALONE) for node in above):
            continue
        # A link has the focus already.
        focus = "" if any(isinstance(node, nodes.reference) for node in above) else ' tabindex="0"'
        parts: list[nodes.Node] = []
        for piece in re.split(rf"(?<![\w-])({names})(?![\w-])", str(text)):
            if long := left.pop(piece, ""):
                html = f'<abbr title="{escape(long)}"{focus}>{piece}</abbr>'
                parts.append(nodes.raw("", html, format="html"))
            elif piece:
                parts.append(nodes.Text(piece))
        if any(isinstance(part, nodes.raw) for part in parts):
            text.parent.replace(text, parts)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("doctree-resolved", mark)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
