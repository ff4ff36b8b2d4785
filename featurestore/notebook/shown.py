"""Results that show themselves: one line in a terminal, a small table in a notebook.

Nothing here raises: an object that can't be shown, as after damage, still prints its name.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from featurestore.notebook.markup import (
    cut,
    link,
    page,
    paragraph,
    summary,
    table,
)

#: Rows of a table that are shown; a dict may have thousands.
MOST_ROWS = 200


def never_failing(work: Callable[[], str], fallback: str) -> str:
    """Return the text that some work makes, or the fallback with the error if it fails.

    >>> never_failing(lambda: str(1 / 0), "a lake")
    "a lake (can't be shown: division by zero)"
    """
    text, error = _attempt(work)
    return text if error is None else f"{fallback} ({error})"


def never_failing_html(work: Callable[[], str], title: str) -> str:
    """Return the HTML that some work makes, or the title with the error if it fails."""
    text, error = _attempt(work)
    return text if error is None else paragraph(f"{title} ({error})")


def _attempt(work: Callable[[], str]) -> tuple[str, str | None]:
    """Return the text that some work makes, and its error; one of them is empty."""
    try:
        return work(), None
    except (KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError):
        raise
    except BaseException as error:  # noqa: BLE001 - to be shown is no reason to fail; Lance panics
        return "", f"can't be shown: {cut(str(error) or type(error).__name__)}"


class Shown:
    """A base of dataclasses: one line as text, a table in notebooks, both short.

    The dataclass is declared with `repr=False`.
    """

    def __repr__(self) -> str:
        name = type(self).__name__
        return never_failing(lambda: one_line(name, dict(_facts(self))), name)

    def _repr_html_(self) -> str:
        name = type(self).__name__
        return never_failing_html(lambda: page(name, table((), _facts(self))), name)


def _facts(shown: object) -> Iterator[tuple[str, Any]]:
    """Yield the names and values of a dataclass's fields."""
    if is_dataclass(shown):
        for field in fields(shown):
            yield field.name, getattr(shown, field.name)


def one_line(name: str, facts: Mapping[str, Any]) -> str:
    """Return facts as one line of bounded length; what is None or an empty text is left out.

    >>> one_line("Result", {"ready": 7, "failed": [], "sheet": ""})
    'Result(ready=7, failed=[0 entries])'
    """
    some = [
        f"{key}={summary(fact)}"
        for key, fact in facts.items()
        if fact is not None and not (isinstance(fact, str) and not fact)
    ]
    return f"{name}({cut(', '.join(some))})"


class ResultDict(dict[str, Any]):
    """A result as a dict of JSON values, which shows itself in one line and as a table.

    Args:
        content: the keys and values.
        name: name of the result, as shown.
        uri: folder or URL of the lake; empty if there is none.

    >>> result = ResultDict({"run": "mil-1", "patients": 24}, name="mil")
    >>> result, result["patients"]
    (mil(run='mil-1', patients=24), 24)
    """

    def __init__(self, content: Mapping[str, Any], *, name: str = "result", uri: str = "") -> None:
        super().__init__(content)
        self.name, self.uri = name, uri

    def __repr__(self) -> str:
        return never_failing(self._line, self.name)

    def _line(self) -> str:
        if "metrics" not in self or "run" not in self:
            return one_line(self.name, self)
        names = ("run", "target", "task", "patients", "slides", "lake_version")
        facts = {key: self[key] for key in names if key in self}
        scores = "; ".join(f"{arm} {score}" for arm, score in self._scores())
        return f"{one_line(self.name, facts)}: {cut(scores)}"

    def _scores(self) -> Iterator[tuple[str, str]]:
        for arm, metric in self["metrics"].items():
            yield arm, scored(metric)

    def _repr_html_(self) -> str:
        return never_failing_html(self._page, self.name)

    def _page(self) -> str:
        if "metrics" not in self or "run" not in self:
            return page(self.name, table((), list(self.items())[:MOST_ROWS]))
        names = ("target", "task", "patients", "slides", "folds", "seeds", "lake_version", "notes")
        facts = [(key, self[key]) for key in names if self.get(key)]
        address = f"{self.uri}/runs/{self['run']}/report.html" if self.uri else ""
        return page(
            f"{self.name} {self['run']}",
            table(("arm", "score [95 % interval]"), list(self._scores())[:MOST_ROWS]),
            table((), facts),
            f"<div>{link(address, 'page of this run')}</div>" if address else "",
        )


def scored(metric: Mapping[str, Any]) -> str:
    """Return an arm's main measure with its interval as text.

    >>> scored({"metric": "auroc", "estimate": 0.8123, "low": 0.7, "high": 0.9})
    'auroc 0.812 [0.700, 0.900]'
    >>> scored({"metric": "auroc", "estimate": None})
    'auroc undefined'
    """
    estimate, low, high = (metric.get(key) for key in ("estimate", "low", "high"))
    if estimate is None:
        return f"{metric.get('metric')} undefined"
    interval = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
    return f"{metric.get('metric')} {estimate:.3f}{interval}"
