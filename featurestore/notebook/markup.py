"""Parts of the HTML that notebooks show: escaped, self-contained, and bounded in size.

Colours are inherited and lines are half transparent grey, so that a page is readable on light and
dark ground; there is no script, and nothing is loaded from elsewhere.
"""

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

MOST_CHARACTERS = 200
MOST_ENTRIES = 12

STYLE = """<style>
.slidelake {font-size: 13px; line-height: 1.4; max-width: 72em; color: inherit}
.slidelake table {border-collapse: collapse; margin: .4em 0; color: inherit;
  font-size: inherit}
.slidelake th, .slidelake td {border-bottom: 1px solid rgba(128, 128, 128, .35);
  padding: 2px 10px 2px 0; text-align: left; vertical-align: top; background: transparent}
.slidelake .pictures {display: flex; flex-wrap: wrap; gap: 8px; margin: .5em 0}
.slidelake figure {margin: 0; width: 120px}
.slidelake figure img {max-width: 120px; max-height: 90px; display: block}
.slidelake figcaption {font-size: 11px; overflow-wrap: anywhere}
.slidelake .soft {opacity: .7}
</style>"""


def escaped(content: object, most: int = MOST_CHARACTERS) -> str:
    """Return a value as text for HTML, cut to a number of characters.

    >>> escaped("<script>"), escaped("abcdef", most=4)
    ('&lt;script&gt;', 'abc…')
    """
    return html.escape(cut(str(content), most))


def cut(text: str, most: int = MOST_CHARACTERS) -> str:
    """Return a text without line breaks, with an ellipsis if it is longer than `most`."""
    words = " ".join(text[: 4 * most].split())
    return words if len(words) <= most else words[: most - 1] + "…"


def page(title: str, *parts: str) -> str:
    """Return parts of HTML under a title, which is plain text, with their style."""
    body = "\n".join(part for part in parts if part)
    return f'<div class="slidelake">{STYLE}\n<b>{escaped(title)}</b>\n{body}\n</div>'


def paragraph(text: str, *, soft: bool = False) -> str:
    """Return a plain text as a paragraph; nothing for an empty text."""
    kind = ' class="soft"' if soft else ""
    return f"<div{kind}>{escaped(text, 4 * MOST_CHARACTERS)}</div>" if text else ""


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return rows of values as a table; nothing if there are none."""
    cells = ["".join(f"<td>{value_html(content)}</td>" for content in row) for row in rows]
    if not cells:
        return ""
    names = "".join(f"<th>{escaped(name)}</th>" for name in head)
    header = f"<tr>{names}</tr>" if head else ""
    return f"<table>{header}{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def value_html(content: object) -> str:
    """Return a value as HTML: lists and mappings with their first entries, others as text."""
    if isinstance(content, Mapping):
        some = [f"{escaped(key)}: {escaped(summary(one))}" for key, one in _first(content.items())]
        return _with_rest(some, len(content))
    if isinstance(content, list | tuple):
        return _with_rest([escaped(_entry(one)) for one in _first(content)], len(content))
    return escaped(content if isinstance(content, str) else summary(content))


def _entry(one: object) -> str:
    """Return an entry of a list as text: a mapping, as a failed slide is, without its brackets."""
    if isinstance(one, Mapping):
        return ", ".join(f"{key}: {cut(str(content), 100)}" for key, content in _first(one.items()))
    return one if isinstance(one, str) else summary(one)


def _first(values: Iterable[Any]) -> list[Any]:
    return [one for one, _ in zip(values, range(MOST_ENTRIES), strict=False)]


def _with_rest(some: list[str], count: int) -> str:
    rest = [f"and {count - len(some):,} more"] if count > len(some) else []
    return "<br>".join([*some, *rest]) or "none"


def summary(content: object) -> str:
    """Return a value as short text: arrays as type and shape, long collections as their size.

    >>> summary([1, 2, 3]), summary({"0.5": 12}), summary(0.123456), summary("mil")
    ('[3 entries]', "{'0.5': 12}", '0.1235', "'mil'")
    """
    shape, dtype = getattr(content, "shape", None), getattr(content, "dtype", None)
    if shape is not None:
        kind = type(content).__name__ if dtype is None else str(dtype).removeprefix("torch.")
        return f"{kind} [{', '.join(map(str, shape))}]"
    if isinstance(content, float):
        return f"{content:.4g}"
    if isinstance(content, Mapping):
        some = {key: summary(one) for key, one in _first(content.items())}
        text = "{" + ", ".join(f"{key!r}: {one}" for key, one in some.items()) + "}"
        return text if len(content) <= 4 and len(text) <= 100 else f"{{{_entries(len(content))}}}"
    if isinstance(content, list | tuple | set | frozenset):
        return f"[{_entries(len(content))}]"
    return cut(repr(content), 100)


def _entries(count: int) -> str:
    return "1 entry" if count == 1 else f"{count:,} entries"


def pictures(jpegs: Iterable[tuple[str, bytes | None]]) -> str:
    """Return small pictures with their names below; one without bytes is only named."""
    figures = []
    for name, jpeg in jpegs:
        source = "" if jpeg is None else base64.b64encode(jpeg).decode()
        image = f'<img alt="{escaped(name)}" src="data:image/jpeg;base64,{source}">'
        caption = f"<figcaption>{escaped(name, 60)}</figcaption>"
        figures.append(f"<figure>{image if jpeg is not None else ''}{caption}</figure>")
    return f'<div class="pictures">{"".join(figures)}</div>' if figures else ""


def link(uri: str, text: str) -> str:
    """Return a link to a file of a lake; a file in a bucket, which no browser opens, is named.

    >>> link("s3://lab/lake/report.html", "page")
    'page: s3://lab/lake/report.html'
    """
    if "://" in uri and not uri.startswith(("file://", "http://", "https://")):
        return f"{escaped(text)}: {escaped(uri, 400)}"
    address = uri if "://" in uri else f"file://{quote(uri)}"
    return f'<a href="{html.escape(address)}">{escaped(text)}</a>'
