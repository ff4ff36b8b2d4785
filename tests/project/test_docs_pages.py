"""What the pages for readers say of the code: drawings, messages, licences of teachers."""

import ast
import re
import runpy
from functools import cache

import slidelake
from ingest import CARDS
from tests.conftest import ROOT

DOCS = ROOT / "docs"
#: A message of a page: text between backticks in the first column of a table.
MESSAGE = re.compile(r"^\| ((?:(?! \|).)*`(?:(?! \|).)*) \|", re.MULTILINE)
HOLE = "\0"


@cache
def messages_in_the_code() -> str:
    """Return every text in the code, with a hole for each value that is put in."""
    texts = []
    paths = [ROOT / "slidelake.py"]
    paths += [path for package in slidelake.PACKAGES for path in (ROOT / package).rglob("*.py")]
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [n.value if isinstance(n, ast.Constant) else HOLE for n in node.values]
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts).replace("`", "")


def pieces_of(message: str) -> list[str]:
    """Return the parts of a message on a page that stand in the code as they are."""
    return [piece for part in message.split("...") if len(piece := part.strip(" ;:,()'")) > 3]


def test_messages_of_troubleshooting_are_those_of_the_code() -> None:
    found = MESSAGE.findall((DOCS / "troubleshooting.md").read_text())
    messages = [text for cell in found for text in re.findall(r"`([^`]+)`", cell)]
    assert len(messages) > 35
    code = messages_in_the_code()
    missing = {
        message: [piece for piece in pieces_of(message) if piece not in code]
        for message in messages
    }
    assert [piece for pieces in missing.values() for piece in pieces] == []


def test_drawings_are_what_their_script_draws() -> None:
    drawings = runpy.run_path(str(DOCS / "images" / "draw_concepts.py"))["DRAWINGS"]
    text = (DOCS / "concepts.md").read_text()
    for name, draw in drawings.items():
        assert (DOCS / "images" / name).read_text() == draw()
        assert re.search(rf"!\[[^\]]{{40,}}\]\(images/{name}\)", text), "a picture needs words"
        assert "prefers-color-scheme: dark" in draw()
        assert "<desc" in draw()


def test_names_of_other_tools_encoders_stand_beside_cards() -> None:
    text = (DOCS / "coming-from" / "trident.md").read_text()
    table = text.partition("| TRIDENT's encoder | teacher |")[2].partition("\n\n")[0]
    teachers = [cell for line in table.splitlines()[2:] for cell in line.split("|")[2:3]]
    named = re.findall(r"`([^`]+)`", "".join(teachers))
    assert len(named) > 20
    assert set(named) <= set(CARDS)
