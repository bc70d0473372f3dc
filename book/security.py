"""A content security policy in each page: what it runs and loads is the book's own, whatever came into its text."""

import re
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

# MathJax and the theme set styles as they go; pictures of notebooks are in the page.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-hashes' {scripts}; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'"
)
CHARSET = re.compile(r'<meta charset="utf-8"[^>]*>')


class _Inline(HTMLParser):
    """What a page runs that stands in the page: its scripts without an address, and its handlers of events."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=False)
        self.scripts: set[str] = set()
        self._parts: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts |= {value for name, value in attrs if name.startswith("on") and value}
        if tag == "script" and "src" not in dict(attrs):
            self._parts = []

    def handle_data(self, data: str) -> None:
        if self._parts is not None:
            self._parts.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag == "script" and self._parts is not None:
            self.scripts.add("".join(self._parts))
            self._parts = None


def protected(page: str) -> str:
    """A page with its policy: scripts that stand in it are named by their hash, and no other runs."""
    inline = _Inline()
    inline.feed(page)
    hashes = sorted(f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" for script in inline.scripts)
    policy = POLICY.format(scripts=" ".join(hashes))
    meta = f'<meta http-equiv="Content-Security-Policy" content="{policy}" />'
    # After the encoding, which a browser looks for in the first kilobyte only.
    return CHARSET.sub(lambda charset: f"{charset[0]}\n    {meta}", page, count=1)


def protect(html: Path) -> None:
    """Put the policy into every page of a rendered site."""
    for path in html.rglob("*.html"):
        if "_static" not in path.parts:
            path.write_text(protected(path.read_text()))
