"""How the code reads, held by numbers: folders, circles of imports, sizes, names, first lines."""

import ast
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGES = (
    "cluster", "commands", "distill", "downstream", "examples", "featurestore", "ingest",
)  # fmt: skip
MOST_MODULES = 16
MOST_LINES, MOST_PARAMETERS = 60, 10
MOST_FRAGMENTS, MOST_VAGUE = 10, 20

VAGUE = {
    *("found", "seen", "told", "said", "given", "asked", "about", "how", "what", "here", "there"),
    *("wanted", "mine", "theirs", "known", "took", "got", "result", "data", "value", "item"),
}
FRAGMENT = re.compile(
    r"^(Of|By|In|On|For|From|With|Without|Whose|Where|Which|What|How|When|As|At|To|That|Those|And"
    r"|Beside|Under|Over|Each|All|Both|Same)\b"
)


def modules() -> dict[str, tuple[Path, ast.Module]]:
    """Return path and syntax tree of each module of ours by its dotted name."""
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    trees = {}
    for path in [*paths, ROOT / "slidelake.py"]:
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        trees[name] = (path, ast.parse(path.read_text()))
    return trees


MODULES = modules()


def nodes(kind: type | tuple[type, ...]) -> Iterator[tuple[Path, ast.AST]]:
    """Yield each node of a kind with the path of its module."""
    for path, tree in MODULES.values():
        for node in ast.walk(tree):
            if isinstance(node, kind):
                yield path.relative_to(ROOT), node


def imported(tree: ast.Module) -> Iterator[str]:
    """Yield the modules of ours that a module imports, also in functions and for types alone."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if whole in MODULES or node.module in MODULES:
                    yield whole if whole in MODULES else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)


def circles() -> list[set[str]]:
    """Return sets of modules each of which can be reached from each other one of its set."""
    graph = {name: set(imported(tree)) - {name} for name, (_, tree) in MODULES.items()}
    reach: dict[str, set[str]] = {}
    for start in graph:
        reached: set[str] = set()
        border = set(graph[start])
        while border:
            reached |= border
            border = {after for one in border for after in graph[one]} - reached
        reach[start] = reached
    sets = {
        frozenset({name, *(one for one in reach[name] if name in reach[one])})
        for name in graph
        if name in reach[name]
    }
    return sorted(map(set, sets), key=sorted)


def test_no_circle_of_imports() -> None:
    assert not circles()


def test_folders_hold_few_modules() -> None:
    counts: dict[Path, int] = defaultdict(int)
    for path, _ in MODULES.values():
        counts[path.parent] += path.name != "__init__.py"
    assert not {str(folder): n for folder, n in counts.items() if n > MOST_MODULES}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_two_modules_of_one_name(package: str) -> None:
    names: dict[str, list[str]] = defaultdict(list)
    for name in MODULES:
        if name.partition(".")[0] == package and MODULES[name][0].name != "__init__.py":
            names[name.rpartition(".")[2]].append(name)
    assert not [twins for twins in names.values() if len(twins) > 1]


def test_no_two_public_classes_of_one_name() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path, tree in MODULES.values():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(str(path.relative_to(ROOT)))
    assert not {name: paths for name, paths in places.items() if len(paths) > 1}


def comments(path: Path) -> set[int]:
    """Return the lines of a file that are comments; one above a long function is its reason."""
    with path.open("rb") as file:
        return {
            token.start[0]
            for token in tokenize.tokenize(file.readline)
            if token.type == tokenize.COMMENT and token.line.strip().startswith("#")
        }


def test_functions_are_short_and_take_few_parameters() -> None:
    wrong = []
    for path, node in nodes((ast.FunctionDef, ast.AsyncFunctionDef)):
        assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        arguments = node.args
        count = len(arguments.args) + len(arguments.kwonlyargs) + len(arguments.posonlyargs)
        if lines > MOST_LINES or count > MOST_PARAMETERS:
            first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            if first - 1 not in comments(ROOT / path):
                wrong.append(f"{path}:{node.lineno} {node.name}: {lines} lines, {count} parameters")
    assert not wrong, "\n".join(wrong)


def test_docstrings_open_with_a_sentence() -> None:
    fragments = []
    for path, node in nodes((ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        doc = ast.get_docstring(node)
        if doc and FRAGMENT.match(doc):
            fragments.append(f"{path}:{node.lineno} {node.name}: {doc.splitlines()[0]}")
    assert len(fragments) <= MOST_FRAGMENTS, "\n".join(fragments)


def test_names_carry_nouns() -> None:
    vague = []
    for path, tree in MODULES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                name = node.id
            elif isinstance(node, ast.arg):
                name = node.arg
            else:
                continue
            if name in VAGUE:
                vague.append(f"{path.relative_to(ROOT)}:{node.lineno} {name}")
    assert len(vague) <= MOST_VAGUE, "\n".join(vague)
