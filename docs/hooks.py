"""MkDocs hook: what the site says of components, presets, laws and paths is made from the registries at every build.

A page asks for a table with ``<!-- generated: NAME ARGUMENT -->``; an entry of the navigation that ends in ``/*`` stands
for generated pages. The build ends where something public is undocumented, uncited, or a formula does not render.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from _hooks import checks, design, offline, pages, tables
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

MARKER = re.compile(r"^<!-- generated: (\w+) ?(.*?) -->$", re.MULTILINE)
GENERATED = pages.every()
"""Pages that lie in no folder, by their path."""


def on_config(config: Any) -> None:
    """Generated pages take their place in the navigation."""
    checks.documented(Path(config.docs_dir))
    checks.cited()
    config.nav = _expanded(config.nav)


def on_files(files: Any, config: Any) -> None:
    """Adds the generated pages and the explorer's data."""
    script = f"const DESIGN = {design.as_json()};\n"
    for path, content in {**GENERATED, "assets/design.js": script}.items():
        files.append(File.generated(config, path, content=content))


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Every marker replaced by its table."""

    def fill(marker: re.Match[str]) -> str:
        if marker[1] not in tables.TABLES:
            raise PluginError(f"{marker[0]}: there is no such table (have: {', '.join(tables.TABLES)})")
        return tables.TABLES[marker[1]](*marker[2].split())

    return MARKER.sub(fill, markdown)


def on_post_build(config: Any) -> None:
    """Binds all pages into one, and looks at every link and formula."""
    site = Path(config.site_dir)
    offline.bind(site, config)
    checks.links(site)
    checks.formulas(site)


def _expanded(nav: list[Any]) -> list[Any]:
    out: list[Any] = []
    for item in nav:
        if isinstance(item, dict):
            out.append({t: _expanded(v) if isinstance(v, list) else v for t, v in item.items()})
        elif item.endswith("/*"):
            out += [path for path in GENERATED if path.startswith(item[:-1])]
        else:
            out.append(item)
    return out
