"""The page of a search that was measured on labelled slides."""

from pathlib import Path
from typing import Any

Json = dict[str, Any]

#: What each measure is, in words.
MEANINGS = {
    "acc@1": "the nearest slide is of the query's class",
    "acc@3": "one of the three nearest is",
    "acc@5": "one of the five nearest is",
    "mvacc@3": "the majority of the three nearest is; of a tie, the nearest counts",
    "mvacc@5": "the majority of the five nearest is",
    "mmv@5": "mvacc@5 as the mean over classes, so that rare ones count the same",
}


def write_page(answer: Json, out: Path) -> Path:
    """Write the measures of a search as an HTML page; return its path."""
    from ingest.pages import environment

    template = environment(Path(__file__).parent / "templates").get_template("labelled.html.j2")
    out.write_text(template.render(answer=answer, meanings=MEANINGS), encoding="utf-8")
    return out
