"""The directives of the API pages: `public-names AREA`, and `public-index` of all areas.

A name that is added to the Python API (`slidelake.PUBLIC`) is on the page of its area at the next
build, by the module that it comes from.
"""

import importlib
import inspect
from dataclasses import dataclass
from functools import cache
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.parsing import nested_parse_to_nodes

import slidelake

#: The area of a name, by the longest of these that its module starts with.
AREA_OF_MODULE = {
    "featurestore": "lake",
    "featurestore.read": "reading",
    "featurestore.query": "reading",
    "ingest": "ingest",
    "ingest.teachers": "teachers",
    "distill": "distill",
    "downstream": "downstream",
    "commands": "ingest",
    "examples": "ingest",
    "cluster": "extending",
}
#: Public classes that functions return, and that have a place of their own.
NO_RESULTS = {"Lake", "Recipe"}

#: Names that are not on the front door, but given to or returned by those that are.
MORE = {
    "reading": (
        "featurestore.Bag",
        "featurestore.TileBatch",
        "featurestore.Pairs",
        "featurestore.read.torch_bags.Bags",
        "featurestore.read.stream.Stream",
    ),
    "distill": ("distill.Recipe", "distill.Term"),
    "downstream": (
        "downstream.run_study",
        "downstream.StudySpec",
        "downstream.LabelOptions",
        "downstream.FeatureOptions",
        "downstream.Plan",
        "downstream.ModelOptions",
        "downstream.MilSettings",
        "downstream.SurvivalSettings",
        "downstream.ComparisonOptions",
        "downstream.Resources",
        "downstream.ProbeSpec",
        "downstream.ProbeOptions",
        "downstream.RobustnessSpec",
        "downstream.RobustnessOptions",
        "downstream.SearchOptions",
        "downstream.load_labels",
        "downstream.nested_folds",
        "downstream.compare",
        "downstream.interval",
    ),
}
#: Packages whose door shows the errors that users meet, and modules that hold more of them.
ERRORS = ("featurestore", "featurestore.errors", "ingest", "downstream", "distill", "cluster")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A name on a page.

    Attributes:
        name: the dotted name by which it is imported.
        value: the class or function itself.
    """

    name: str
    value: Any

    @property
    def directive(self) -> str:
        """Return the directive of autodoc that describes it."""
        if not inspect.isclass(self.value):
            return f".. autofunction:: {self.name}"
        if issubclass(self.value, Exception):
            return f".. autoexception:: {self.name}\n   :show-inheritance:"
        return f".. autoclass:: {self.name}"

    @property
    def summary(self) -> str:
        """Return the first sentence of its docstring."""
        text = inspect.getdoc(self.value) or ""
        return " ".join(text.partition("\n\n")[0].split())


def area_of(value: Any) -> str:  # noqa: ANN401 - any public value
    """Return the area of a public name.

    Raises:
        LookupError: its module is in no area.
    """
    if inspect.isclass(value) and issubclass(value, Exception):
        return "errors"
    module = str(value.__module__)
    areas = [name for name in AREA_OF_MODULE if f"{module}.".startswith(f"{name}.")]
    if not areas:
        msg = f"no page of the API for {value!r} of module {module}: enter it in AREA_OF_MODULE"
        raise LookupError(msg)
    return AREA_OF_MODULE[max(areas, key=len)]


def result_of(function: Any) -> Any:  # noqa: ANN401 - any public value
    """Return the class of our own that a public function returns, or None."""
    if inspect.isclass(function):
        return None
    value = inspect.signature(function).return_annotation
    if isinstance(value, str):  # in quotes, as it is imported for type checkers alone
        value = getattr(importlib.import_module(function.__module__), value, None)
    ours = getattr(value, "__module__", "").partition(".")[0] in slidelake.PACKAGES
    return value if inspect.isclass(value) and ours else None


@cache
def entries_by_area() -> dict[str, list[Entry]]:
    """Return the names of each page: the public ones, then those that go with them."""
    areas: dict[str, list[Entry]] = {
        area: [] for area in (*dict.fromkeys(AREA_OF_MODULE.values()), "results", "errors")
    }
    listed: set[int] = set()

    def add(area: str, name: str, value: Any) -> None:  # noqa: ANN401 - any public value
        if id(value) not in listed:
            listed.add(id(value))
            areas[area].append(Entry(name=name, value=value))

    public = {name: getattr(slidelake, name) for name in slidelake.PUBLIC}
    results = [result for result in map(result_of, public.values()) if result]
    results = [result for result in results if result.__name__ not in NO_RESULTS]
    for name, value in public.items():
        area = "results" if value in results else area_of(value)
        add(area, f"slidelake.{name}", value)
    for area, names in MORE.items():
        for name in names:
            module, _, attribute = name.rpartition(".")
            add(area, name, getattr(importlib.import_module(module), attribute))
    for value in results:
        add("results", f"{value.__module__}.{value.__name__}", value)
    for door in ERRORS:
        module = importlib.import_module(door)
        for name, value in vars(module).items():
            if inspect.isclass(value) and issubclass(value, Exception):
                add("errors", f"{door}.{name}", value)
    return areas


class PublicNames(SphinxDirective):
    """Describe the names of one area, from their docstrings."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the descriptions, as autodoc makes them."""
        area = self.arguments[0]
        text = "\n\n".join(entry.directive for entry in entries_by_area()[area])
        return self.parse_rst(text)

    def parse_rst(self, text: str) -> list[nodes.Node]:
        """Return what reStructuredText makes on a page of Markdown."""
        fenced = f"```{{eval-rst}}\n{text}\n```"
        return nested_parse_to_nodes(self.state, fenced)


class PublicIndex(PublicNames):
    """List all names, with a link to their description and their first sentence."""

    required_arguments = 0

    def run(self) -> list[nodes.Node]:
        """Return a table for each area."""
        lines = []
        for area, entries in entries_by_area().items():
            lines += [f":doc:`/docs/api/{area}`", ""]
            lines += [f"* :py:obj:`{e.name} <{e.name}>`: {e.summary}" for e in entries]
            lines += [""]
        return self.parse_rst("\n".join(lines))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directives with Sphinx."""
    app.add_directive("public-names", PublicNames)
    app.add_directive("public-index", PublicIndex)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
