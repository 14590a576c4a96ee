"""What ends a build: something public without documentation, a preset without a paper, a dead link, a broken formula."""

from __future__ import annotations

import html
import importlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import unquote

from mkdocs.exceptions import PluginError

import zoo
from _hooks import design
from miras import citations
from miras.spec import AXES

PUBLIC = ("miras", "miras.testing", "miras.ties", "titans", "zoo", "zoo.modules")
"""Modules whose ``__all__`` the API page owes a description."""
FORMULA = re.compile(r'class="arithmatex">\s*\\[(\[](.+?)\\[)\]]\s*</', re.DOTALL)
LINK = re.compile(r'<(?:a|img|script|link)\b[^>]*?\b(?:href|src)="([^"]*)"')


def documented(docs: Path) -> None:
    """Every public name is described, or at least named, on the API page."""
    page = (docs / "api.md").read_text()
    for module in PUBLIC:
        for name in importlib.import_module(module).__all__:
            known = rf"^::: {re.escape(module)}\.([\w.]+\.)?{name}$|`{re.escape(module)}\.{name}`"
            if not re.search(known, page, re.MULTILINE):
                raise PluginError(f"{module}.{name} is public, and api.md says nothing of it")


def cited() -> None:
    """Every preset has a paper of the bibliography."""
    for name, entry in zoo.ENTRIES.items():
        if entry.paper not in citations.PAPERS:
            raise PluginError(f"the zoo's {name!r} cites {entry.paper}, which is not in miras.citations.PAPERS")


def links(site: Path) -> None:
    """Every link of the built site leads somewhere, those of raw HTML too, and nothing is loaded from elsewhere."""
    pages = {page: page.read_text() for page in site.rglob("*.html") if page.name not in ("404.html", "all.html")}
    anchors = {page: set(re.findall(r'\b(?:id|name)="?([^"\s>]+)', text)) for page, text in pages.items()}
    for page, text in pages.items():
        for link in LINK.findall(text):
            path, _, anchor = html.unescape(unquote(link)).partition("#")
            if re.match(r"[a-z]+:|$", path) and not (anchor and not path):
                continue
            target = (page.parent / path.partition("?")[0]).resolve() if path else page
            known = anchors.get(target)
            if not target.exists() or (anchor and known is not None and "=" not in anchor and anchor not in known):
                raise PluginError(f"{page.relative_to(site)} links to {link}, which is not there")


def formulas(site: Path) -> None:
    """KaTeX renders every formula of the site and of the explorer. Without node, braces at least must match."""
    found = {html.unescape(f) for page in site.rglob("*.html") for f in FORMULA.findall(page.read_text())}
    found |= {item["rule"] for axis in AXES for item in design.data()["axes"][axis]}
    wrong = _render(sorted(found), site / "assets/katex/katex.min.js") if shutil.which("node") else []
    if wrong:
        raise PluginError("formulas that do not render:\n" + "\n".join(wrong))
    for formula in found:
        if (plain := re.sub(r"\\[{}]", "", formula)).count("{") != plain.count("}"):
            raise PluginError(f"a formula whose braces do not match: {formula}")


def _render(formulas: list[str], katex: Path) -> list[str]:
    script = (
        f"const katex = require({json.dumps(str(katex.resolve()))});"
        "for (const f of JSON.parse(require('fs').readFileSync(0))) {"
        "try { katex.renderToString(f, {throwOnError: true, strict: 'error'}) } catch (e) { console.log(f + ': ' + e.message) } }"
    )
    done = subprocess.run(
        ["node", "-e", script], input=json.dumps(formulas), text=True, capture_output=True, check=True
    )
    return done.stdout.splitlines()
