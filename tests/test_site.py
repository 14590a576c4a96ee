"""The built site as a reader meets it, from disk, in a headless browser."""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from miras import MirasSpec

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None or importlib.util.find_spec("playwright") is None, reason="needs chromium and playwright"
    ),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site in ``SITE``, if that is set; or one built here."""
    if built := os.environ.get("SITE"):
        return Path(built)
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"})
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--allow-file-access-from-files"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page that remembers what went wrong on it."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.wrong = []
    page.on("console", lambda m: page.wrong.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on(
        "request",
        lambda r: page.wrong.append(r.url) if not r.url.startswith(("file:", "data:", "blob:", "about:")) else None,
    )
    page.on("requestfailed", lambda r: page.wrong.append(r.url))
    yield page
    context.close()


def test_every_page_loads(site: Path, page: Any) -> None:
    """No console message, nothing from elsewhere, every formula rendered, one heading, and every picture described."""
    for file in sorted(site.rglob("*.html")):
        if file.name == "404.html":  # its links are those of a server
            continue
        page.goto(file.as_uri())
        marked = page.locator(".arithmatex").count()
        assert page.locator(".arithmatex .katex").count() >= marked and not page.locator(".katex-error").count(), file
        assert not page.locator("img:not([alt])").count() and not page.locator("svg[role=img]:not(:has(title))").count()
        if file.name != "all.html":
            assert page.locator("h1").count() == 1, file
        assert page.wrong == [], file


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_runs_off_the_side(site: Path, page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    for name in ("index", "explorer", "zoo", "zoo/moneta", "components/bias", "theory", "choosing", "api"):
        page.goto((site / f"{name}.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name


def test_search_finds_huber(site: Path, page: Any) -> None:
    page.goto((site / "index.html").as_uri())
    page.locator("input.md-search__input").fill("Huber")
    found = page.locator(".md-search-result__link")
    found.first.wait_for(timeout=30_000, state="attached")
    assert any("components/bias.html" in found.nth(i).get_attribute("href") for i in range(found.count()))


def test_explorer_by_keyboard(site: Path, page: Any) -> None:
    """A spec is chosen without a mouse, Python builds it, and its address leads back to it."""
    page.goto((site / "explorer.html").as_uri())
    page.locator("#pick-architecture").focus()
    page.keyboard.type("matrix")
    for wanted in ("l2", "none", "gd"):
        page.keyboard.press("Tab")
        page.keyboard.type(wanted)
    page.keyboard.press("Tab")
    page.keyboard.type("1")
    assert page.locator("#verdict").inner_text() == "exact"
    assert page.locator("#result a", has_text="DeltaNet").count()
    names: dict[str, Any] = {}
    exec(page.locator("#spec-Python").inner_text(), names)
    assert names["spec"] == MirasSpec.make(
        architecture="matrix", bias="l2", retention="none", algorithm="gd", chunk_size=1
    )
    address = page.url
    page.goto("about:blank")
    page.goto(address)
    assert page.locator("#pick-architecture").input_value() == "matrix"
    assert page.wrong == []


def test_explorer_says_why_not(site: Path, page: Any) -> None:
    page.goto((site / "explorer.html").as_uri())
    page.locator("#pick-architecture").select_option("mlp")
    page.locator("#pick-algorithm").select_option("newton")
    with pytest.raises(ValueError) as reason:
        MirasSpec.make(architecture="mlp", algorithm="newton")
    assert str(reason.value) in page.locator("#verdict").inner_text()


CONTRAST = """
() => {
  const channel = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const parse = (text) => { const n = text.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
  const over = (top, under) => [0, 1, 2].map((i) => top[i] * top[3] + under[i] * (1 - top[3]));
  const behind = (e) => e ? over(parse(getComputedStyle(e).backgroundColor), behind(e.parentElement)) : [255, 255, 255];
  const low = {};
  const walker = document.createTreeWalker(document.querySelector(".md-container"), NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement, style = getComputedStyle(e), box = e.getBoundingClientRect();
    if (!walker.currentNode.data.trim() || box.width < 2 || box.height < 2) continue;
    if (style.visibility === "hidden" || style.opacity === "0") continue;
    if (e.closest(".headerlink, option, .md-top, [hidden], .katex-mathml, .md-clipboard")) continue;
    const ground = behind(e), ink = over(parse(style.color), ground), a = luminance(ink) + 0.05, b = luminance(ground) + 0.05;
    const ratio = Math.max(a, b) / Math.min(a, b);
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && style.fontWeight >= 700);
    if (ratio < (large ? 3 : 4.5)) low[`${e.tagName}.${e.className}: ${walker.currentNode.data.trim().slice(0, 30)}`] = ratio.toFixed(2);
  }
  return low;
}
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(site: Path, page: Any, scheme: str) -> None:
    """WCAG AA: 4.5 to 1, large text 3 to 1."""
    page.emulate_media(color_scheme=scheme)
    for name in ("index", "explorer", "zoo/gated_deltanet", "components/bias", "quickstart", "faq", "api"):
        page.goto((site / f"{name}.html").as_uri())
        assert page.evaluate(CONTRAST) == {}, (name, scheme)
