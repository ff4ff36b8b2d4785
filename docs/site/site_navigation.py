"""The order of the site's pages, put into its front page as Sphinx reads it.

On GitHub the front page stays free of directives. Each page is on the list, or in a folder that is:
a page of no list is an error of a strict build, as a listed one that is not there.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]

#: Pages outside of docs/, and folders whose pages are read.
ROOT_PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "cluster/README.md",
              "examples/data/README.md")  # fmt: skip
FOLDERS = ("docs",)

#: Headings of the navigation and their pages; `folder/` stands for its pages by name, below
#: its index where it has one.
NAVIGATION = {
    "Start": (
        "docs/installing",
        "docs/tutorial",
        "docs/concepts",
        "docs/howto/",
        "docs/coming-from/",
    ),
    "Slides and teachers": (
        "docs/ingest",
        "docs/tissue",
        "docs/teachers",
        "docs/slide_encoders",
        "docs/stats",
        "docs/quantised",
        "docs/annotations",
    ),
    "Students": ("docs/distillation", "docs/evaluate"),
    "Studies": (
        "docs/cohorts",
        "docs/mil",
        "docs/survival",
        "docs/probes",
        "docs/robustness",
        "docs/search",
        "docs/report",
    ),
    "Reading a lake": ("docs/reading", "docs/recipes", "docs/questions", "docs/interop"),
    "Keeping a lake": (
        "docs/keeping",
        "docs/damage",
        "docs/buckets",
        "docs/scale",
        "docs/format",
    ),
    "Python": ("docs/api/", "docs/extending/"),
    "Help": (
        "docs/troubleshooting",
        "docs/faq",
        "docs/licences",
        "docs/feature-licences",
        "docs/citing",
    ),
    "The project": (
        "docs/architecture",
        "docs/decisions",
        "CONTRIBUTING",
        "CHANGELOG",
        "cluster/README",
        "examples/data/README",
        "README <README>",
    ),
}

#: Pages that repeat what others say: the search leaves them out.
NOT_SEARCHED = {"README", "CHANGELOG"}


def pages_of(folder: str) -> list[str]:
    """Return the pages of a folder by name, without its index."""
    return [
        f"{folder}{path.stem}" for path in sorted((ROOT / folder).glob("*.md"))
        if path.stem != "index"
    ]  # fmt: skip


def entries(names: tuple[str, ...]) -> Iterator[str]:
    """Yield the pages of one heading: those of a folder without an index one by one."""
    for name in names:
        if not name.endswith("/"):
            yield name
        elif (ROOT / name / "index.md").exists():
            yield f"{name}index"
        else:
            yield from pages_of(name)


def toctree(pages: list[str], caption: str = "") -> str:
    """Return the directive that puts pages into the navigation, and shows nothing on the page."""
    lines = [f"{page.split(' <')[0]} </{page.split(' <')[1]}" if " <" in page else f"/{page}"
             for page in pages]  # fmt: skip
    options = [":hidden:", *([f":caption: {caption}"] if caption else [])]
    return "\n".join(["", "```{toctree}", *options, "", *lines, "```", ""])


def add_navigation(app: Sphinx, docname: str, source: list[str]) -> None:
    """Append to the front page, and to the index of a folder, the pages below it."""
    if docname == app.config.root_doc:
        for caption, names in NAVIGATION.items():
            if pages := list(entries(names)):
                source[0] += toctree(pages, caption)
    elif docname.endswith("/index"):
        source[0] += toctree(pages_of(docname.removesuffix("index")))


def leave_out_of_search(app: Sphinx, _doctree: nodes.document) -> None:
    """Mark the page that was read as one that the search leaves out, if it is."""
    if app.env.docname in NOT_SEARCHED:
        app.env.metadata[app.env.docname]["nosearch"] = "yes"


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the navigation with Sphinx."""
    app.connect("source-read", add_navigation)
    app.connect("doctree-read", leave_out_of_search)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
