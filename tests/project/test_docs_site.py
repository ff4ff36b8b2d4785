"""The docs site: every page and public name is in it, links lead somewhere, a browser shows it."""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from functools import cache, partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest
import yaml
from playwright.sync_api import Browser, Page

import slidelake
from tests.conftest import ROOT
from tests.worlds.chromium import browser

__all__ = ["browser"]  # the fixture

SITE_TOOLS = ROOT / "docs" / "site"
PHONE_PX = 420


@pytest.fixture(scope="module")
def site_tools() -> Iterator[None]:
    """Let the modules of the site's build be imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SITE_TOOLS))
        yield


# ---------------------------------------------------------------------- before it is built


def test_every_public_name_is_on_one_page_of_the_api(site_tools: None) -> None:
    areas = importlib.import_module("site_api").entries_by_area()
    names = [entry.name for entries in areas.values() for entry in entries]
    public = [name.partition(".")[2] for name in names if name.startswith("slidelake.")]
    assert sorted(public) == sorted(slidelake.PUBLIC)
    assert len(names) == len(set(names))
    for area in areas:
        page = (ROOT / "docs" / "api" / f"{area}.md").read_text()
        assert f"{{public-names}} {area}\n" in page
    pages = {path.stem for path in (ROOT / "docs" / "api").glob("*.md")}
    assert pages == {"index", *areas}


def test_a_public_name_of_no_area_is_refused(site_tools: None) -> None:
    with pytest.raises(LookupError, match="AREA_OF_MODULE"):
        importlib.import_module("site_api").area_of(Path)


def test_every_page_is_in_the_navigation(site_tools: None) -> None:
    navigation = importlib.import_module("site_navigation")
    listed = [
        page.partition("<")[2].rstrip(">") or page
        for names in navigation.NAVIGATION.values()
        for page in navigation.entries(names)
    ]
    for page in [page for page in listed if page.endswith("/index")]:
        listed += navigation.pages_of(page.removesuffix("index"))
    pages = [str(path.relative_to(ROOT).with_suffix("")) for path in (ROOT / "docs").rglob("*.md")]
    outside = [name.removesuffix(".md") for name in navigation.ROOT_PAGES]
    assert sorted([*listed, "docs/index"]) == sorted([*pages, *outside])


def test_the_citation_names_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["cff-version"] == "1.2.0"
    assert citation["authors"] == [{"name": "The slidelake authors"}]
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
    page = (ROOT / "docs" / "citing.md").read_text()
    assert f"version = {{{project['version']}}}" in page
    assert citation["title"] in page


# ---------------------------------------------------------------------- as it is built


def build(source: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """Build the pages of a checkout, by the very line of the Makefile."""
    recipe = re.search(r"^docs: setup\n(?:\t.*\n)*?\t\$\(BIN\)/python (.* )\. site\n",
                       (ROOT / "Makefile").read_text(), re.MULTILINE)  # fmt: skip
    assert recipe
    return subprocess.run(
        [sys.executable, *shlex.split(recipe[1]), ".", str(out)],
        cwd=source,
        env={**os.environ, "PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site once."""
    out = tmp_path_factory.mktemp("docs") / "site"
    done = build(ROOT, out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


class Links(HTMLParser):
    """The links, the files that are loaded, and the anchors of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag in {"a", "link"} and "href" in values:
            self.links.add(values["href"])
        if tag == "link" and values.get("rel") in {"stylesheet", "icon", "preload"}:
            self.loaded.add(values["href"])
        if "src" in values:
            self.loaded.add(values["src"])


@cache
def links_of(path: Path) -> Links:
    """Return what a page links to."""
    return Links(path.read_text())


def broken_links(site: Path) -> list[str]:
    """Return the links and loaded files of all pages that lead nowhere, or to another host."""
    wrong = []
    for path in sorted(site.rglob("*.html")):
        page = links_of(path)
        for link in sorted(page.links | page.loaded):
            parts = urlsplit(link)
            if parts.scheme in {"http", "https", "mailto"}:
                if link in page.loaded:
                    wrong.append(f"{path.relative_to(site)} loads {link}")
                continue
            target = path.parent / unquote(parts.path) if parts.path else path
            is_there = parts.scheme in {"", "data"} and (parts.scheme or target.is_file())
            if is_there and parts.fragment and target.suffix == ".html":
                is_there = unquote(parts.fragment) in links_of(target.resolve()).anchors
            if not is_there:
                wrong.append(f"{path.relative_to(site)} -> {link}")
    return wrong


@pytest.mark.slow
def test_every_link_and_anchor_of_the_site_is_there(site: Path) -> None:
    assert broken_links(site.resolve()) == []
    pages = {str(path.relative_to(site)) for path in site.rglob("*.html")}
    assert {"index.html", "README.html", "docs/index.html", "docs/api/lake.html"} <= pages
    assert len(pages) > 30
    links = links_of((site / "docs" / "api" / "index.html").resolve()).links
    assert {name for name in slidelake.PUBLIC
            if not any(link.endswith(f"#slidelake.{name}") for link in links)} == set()  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "text", "warning"),
    [
        ("stats.md", "[there](ingest.md#ingest)", ""),
        ("stats.md", "[gone](gone.md)", "gone.md"),
        ("stats.md", "[gone](ingest.md#no-such-heading)", "no-such-heading"),
        ("stats.md", "![gone](images/gone.png)", "images/gone.png"),
        ("left_out.md", "# A page that no list has", "not_included"),
    ],
)
def test_a_strict_build_refuses_faults_and_nothing_else(
    page: str, text: str, warning: str, tmp_path: Path
) -> None:
    """A small checkout: the build's files, three pages, and at most one fault."""
    source = tmp_path / "checkout"
    shutil.copytree(SITE_TOOLS, source / "docs" / "site")
    for name in ("index", "stats", "ingest"):
        (source / "docs" / f"{name}.md").write_text(f"# {name}\n")
    navigation = source / "docs" / "site" / "site_navigation.py"
    lines = 'NAVIGATION = {"All": ("docs/stats", "docs/ingest")}\nROOT_PAGES = ()\n'
    navigation.write_text(
        navigation.read_text().replace("\ndef pages_of", f"\n{lines}\n\ndef pages_of")
    )
    conf = source / "docs" / "site" / "conf.py"
    conf.write_text(conf.read_text().replace('    "site_api",\n', ""))
    with (source / "docs" / page).open("a") as file:
        file.write(f"\n{text}\n")
    done = build(source, tmp_path / "out")
    assert (done.returncode != 0) == bool(warning), done.stderr
    assert warning in done.stderr


# ---------------------------------------------------------------------- in a browser


class QuietHandler(SimpleHTTPRequestHandler):
    """Files of a folder, without a line for each request."""

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture(scope="module")
def served(site: Path) -> Iterator[str]:
    """Serve the site as `python -m http.server` does."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=site)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def search(page: Page, word: str) -> None:
    """Look for a word from the front page, and open the first page that has it."""
    page.get_by_role("textbox", name="Search").first.fill(word)
    page.keyboard.press("Enter")
    page.locator("ul.search li a").first.click()
    page.wait_for_load_state()


@pytest.mark.slow
def test_the_search_finds_a_word_and_its_link_opens(
    site: Path, served: str, browser: Browser
) -> None:
    for start in (served, f"{site.as_uri()}/index.html"):
        page = browser.new_page()
        page.goto(start)
        page.wait_for_url("**/docs/index.html")
        search(page, "haematoxylin")
        assert page.url.partition("?")[0].startswith(urljoin(start, "docs/"))
        assert "aematoxylin" in page.locator("article").inner_text()
        search(page, "copy_lake")
        assert page.url.endswith("#slidelake.copy_lake")
        assert page.locator("[id='slidelake.copy_lake']").is_visible()
        page.close()


@pytest.mark.slow
def test_pages_fit_a_phone_and_ask_no_other_host(site: Path, served: str, browser: Browser) -> None:
    page = browser.new_page(viewport={"width": PHONE_PX, "height": 2 * PHONE_PX})
    asked: set[str] = set()
    faults: list[str] = []
    page.on("request", lambda request: asked.add(request.url))
    aborted = "net::ERR_ABORTED"  # an icon that was still on its way when the page was left
    page.on("requestfailed", lambda r: faults.append(r.url) if r.failure != aborted else None)
    page.on("response", lambda r: faults.append(r.url) if r.status >= 400 else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    wide = {}
    names = {str(path.relative_to(site)) for path in site.rglob("*.html")}
    for name in sorted(names - {"index.html"}):  # which leads on to docs/index.html
        page.goto(urljoin(served, name))
        if width := page.evaluate("document.documentElement.scrollWidth") - PHONE_PX:
            wide[name] = width
    assert wide == {}
    assert {url for url in asked if not url.startswith((served, "data:"))} == set()
    assert faults == []
    assert len(asked) > 40
