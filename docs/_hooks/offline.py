"""All pages in one file, for reading without the site: ``all.html``."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

ARTICLE = re.compile(r"<article\b[^>]*>(.*?)</article>", re.DOTALL)
HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<link rel="stylesheet" href="assets/katex/katex.min.css">
<link rel="stylesheet" href="assets/site.css">
<link rel="stylesheet" href="assets/single.css">
<script defer src="assets/katex/katex.min.js"></script>
<script defer src="assets/math.js"></script>
</head>
<body class="single">
"""


def bind(site: Path, config: Any) -> None:
    """Articles in the order of the navigation; their links stay inside the file."""
    pages = [page for page in dict.fromkeys(_flat(config.nav)) if page != "explorer.md"]
    known = {page.removesuffix(".md") + ".html" for page in pages}
    parts = [_section(site, url, known) for url in (page.removesuffix(".md") + ".html" for page in pages)]
    (site / "all.html").write_text(HEAD.format(title=config.site_name) + "\n".join(parts) + "\n</body>\n</html>\n")


def _section(site: Path, url: str, known: set[str]) -> str:
    """One article whose names are prefixed by that of its page."""
    body = ARTICLE.search((site / url).read_text())
    assert body, f"{url} has no article"

    def link(m: re.Match[str]) -> str:
        path, _, anchor = m[1].partition("#")
        target = posixpath.normpath(posixpath.join(posixpath.dirname(url), path)) if path else url
        return f'href="#{_name(target, anchor)}"' if target in known else m[0]

    inner = re.sub(r'\bid="?([^"\s>]+)"?', lambda m: f'id="{_name(url, m[1])}"', body[1])
    inner = re.sub(r'href="((?!https?:)[^"]*)"', link, inner)
    return f'<section id="{_name(url, "")}">\n{inner}\n</section>'


def _name(url: str, anchor: str) -> str:
    return f"{url.removesuffix('.html').replace('/', '-')}--{anchor}"


def _flat(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [page for item in (nav.values() if isinstance(nav, dict) else nav) for page in _flat(item)]
