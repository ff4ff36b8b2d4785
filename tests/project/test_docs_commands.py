"""Every command line of README, docs and help texts: parsed against the options, and run.

What is only parsed is listed in `PARSED_ONLY` and `PARSED_LINES`, with the reason. The others are
run page by page, in order, on a copy of a small lake that has the names which pages use.
"""

import importlib
import inspect
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import openpyxl
import polars as pl
import pytest
import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup
from typer.exceptions import TyperException

import slidelake
from commands.options.dataclass_options import build_options, command_line_names
from downstream.run.model_tables import AGGREGATORS, CLINICAL, POOLED, PROBES
from examples.demo import STUDENT, TEACHERS
from featurestore.interop import READABLE, WRITABLE
from ingest import CARDS
from ingest.scores.score_table import SCORES
from ingest.tissue.tissue_methods import chosen_method
from tests.conftest import ROOT
from tests.downstream.test_downstream_bags import WIDTH, build, slide_names
from tests.worlds.command_lines import Output, run_words
from tests.worlds.page_commands import PageCommand, commands_of, help_commands, inline_commands

APP = cast("TyperGroup", typer.main.get_command(slidelake.app))
COMMANDS = cast("dict[str, TyperCommand]", APP.commands)
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "cluster" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("README.md")),
]


def commands_of_help() -> Iterator[PageCommand]:
    """Yield the examples of all commands' help, and the commands that it names."""
    for name, command in COMMANDS.items():
        page = f"slidelake {name} --help"
        yield from help_commands(inspect.cleandoc(command.help or ""), page)
        for parameter in command.params:
            yield from help_commands(getattr(parameter, "help", None) or "", page)


def commands_of_sources() -> Iterator[PageCommand]:
    """Yield the commands between backticks in our sources: docstrings, and advice in messages."""
    for package in slidelake.PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for command in inline_commands(path.read_text(), str(path.relative_to(ROOT))):
                if not set("{<") & set(" ".join(command.words)):  # words are put in
                    yield command


def all_commands() -> list[PageCommand]:
    """Return every command line and every mention of a command."""
    of_pages = [
        command
        for page in PAGES
        for command in commands_of(page.read_text(), str(page.relative_to(ROOT)))
    ]
    return [*of_pages, *commands_of_help()]


ALL = all_commands()
EXTENDING = "docs/extending/"  # names in these pages are those of a user's own file


# ---------------------------------------------------------------------- parsing


def parsed(words: tuple[str, ...]) -> tuple[TyperCommand, Any]:
    """Return the command of some words and its parsed options, as the command line has them.

    Raises:
        TyperException: there is no such command or option, or a value or an argument is wrong.
    """
    outer = APP.make_context("slidelake", list(words), resilient_parsing=words[0].startswith("--"))
    rest = [*outer._protected_args, *outer.args]
    if not rest:
        return cast("TyperCommand", APP), outer
    name, command, after = APP.resolve_command(outer, rest)
    assert command is not None
    context = command.make_context(name, list(after), parent=outer)
    return cast("TyperCommand", command), context


def without_extensions(words: tuple[str, ...]) -> tuple[str, ...]:
    """Return the words of a command line without the files that it runs first."""
    while words[:1] == ("--extend",):
        words = words[2:]
    return words


def reason_against(command: PageCommand) -> str | None:
    """Return why a command line or a mention of a command is wrong; None if it is right."""
    words = without_extensions(command.words)
    if words[0] == "submit" and "--" in words:
        at = words.index("--")
        inner = words[at + 1 :]
        if inner and inner != ("COMMAND",):
            nested = PageCommand(page=command.page, line=command.line, words=inner)
            if why := reason_against(nested):
                return why
        words = (*words[: at + 1], *(inner or ("info", "LAKE")))
    try:
        parsed_command, context = parsed(words)
        if not command.page.startswith(EXTENDING):
            check_values(parsed_command, context)
    except TyperException as error:
        text = error.format_message()
        lacks = text.removeprefix("Invalid value: ").startswith("Missing ")
        return None if lacks and command.inline and is_mention(words) else text
    except ValueError as error:
        return str(error)
    return None


def is_mention(words: tuple[str, ...]) -> bool:
    """Return whether words within a sentence name a command or options of it, and no argument."""
    command = COMMANDS[words[0]]
    context = command.make_context(words[0], list(words[1:]), resilient_parsing=True)
    arguments = [
        parameter.name for parameter in command.params if isinstance(parameter, TyperArgument)
    ]
    return not context.args and not any(context.params.get(str(name)) for name in arguments)


def check_values(command: TyperCommand, context: typer.Context) -> None:
    """Check values that a command itself checks before it opens a lake.

    Raises:
        ValueError: a value is not known, or settings do not go together.
        TyperException: an option is missing that the command demands.
    """
    options_type = getattr(command.callback, "options_type", None)
    if options_type is None:
        return
    options: Any = build_options(options_type, context.params, command_line_names(context))
    check = VALUE_CHECKS.get(str(command.name))
    if check is not None and not getattr(options, "like", None):
        check(options)


def _study(module: str, name: str) -> Callable[[Any], object]:
    def check(options: Any) -> None:  # noqa: ANN401 - of any command
        from commands.studies.study_options import study_spec

        studies = importlib.import_module(module)
        if options.task_folder is not None:
            return  # a folder of the reader, which names labels and folds
        template, fields = (getattr(studies, f"{name}_{part}") for part in ("TEMPLATE", "OPTIONS"))
        spec = study_spec(template, options.settings, options, fields)
        _one_of([*AGGREGATORS, *PROBES, *POOLED, *CLINICAL], *spec.models.names)

    return check


def _probe(options: Any) -> None:  # noqa: ANN401
    from commands.studies.probe import probe_spec

    probe_spec(options)


def _robustness(options: Any) -> None:  # noqa: ANN401
    from commands.studies.robustness import robustness_spec

    robustness_spec(options)


def _recipe(options: Any) -> None:  # noqa: ANN401
    from commands.students.distill import chosen_recipe

    chosen_recipe(options)


def _tissue(options: Any) -> None:  # noqa: ANN401
    tissue = options.reading.tissue
    if tissue and not tissue.endswith(".py"):
        chosen_method(tissue)


def _one_of(names: Any, *options: str) -> None:  # noqa: ANN401
    for option in options:
        if option not in names:
            msg = f"{option!r} is none of {', '.join(names)}"
            raise ValueError(msg)


VALUE_CHECKS: dict[str, Callable[[Any], object]] = {
    "mil": _study("commands.studies.mil", "MIL"),
    "robustness": _robustness,
    "survival": _study("commands.studies.survival", "SURVIVAL"),
    "probe": _probe,
    "distill": _recipe,
    "ingest": _tissue,
    "build": _tissue,
    "import": lambda options: _one_of(READABLE, options.format),
    "export": lambda options: _one_of(WRITABLE, options.format),
    "score": lambda options: _one_of([*SCORES, "NAME"], *options.names),
}


def test_every_command_line_is_one_of_slidelake() -> None:
    assert len(ALL) > 150
    wrong = [f"{one}\n    {why}" for one in ALL if (why := reason_against(one))]
    assert wrong == [], "\n".join(["", *wrong])


def test_commands_that_messages_advise_exist() -> None:
    commands = list(commands_of_sources())
    assert len(commands) > 60
    wrong = [f"{one}\n    {why}" for one in commands if (why := reason_against(one))]
    assert wrong == [], "\n".join(["", *wrong])


def test_every_command_has_an_example_or_needs_none() -> None:
    """Each command is shown with its arguments on a page or in its help."""
    shown = {one.words[0] for one in ALL if not one.inline}
    assert set(COMMANDS) - shown == set()


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("slidelake frobnicate my-lake", "No such command 'frobnicate'"),
        ("slidelake ingest s3://archive/slides --lake s3://lab/my-lake", "No such option: --lake"),
        ("slidelake ingest my-lake", "Missing argument 'SLIDES...'"),
        ("slidelake ingest my-lake slides/ --mpp fine", "Input should be a valid number"),
        ("slidelake extract my-lake --teacher x --precision half", "'half' is not one of"),
        ("slidelake submit -- info", "Missing argument 'LAKE'"),
        ("slidelake submit -- info LAKE --deep", "No such option: --deep"),
        ("slidelake mil my-lake --labels labels.csv --features uni2_h", "--target"),
        ("slidelake mil L --labels l.csv --target g --features u --model abnil", "abnil"),
        ("slidelake distill my-lake --teacher uni2_h --recipe aglomerate", "aglomerate"),
        ("slidelake ingest my-lake slides/ --tissue cels", "cels"),
        ("slidelake import my-lake DIR --format clamm", "clamm"),
        ("RAY_ADDRESS=auto slidelake info | jq .", "Missing argument 'LAKE'"),
        ("slidelake query my-lake \\\n  --tabel a=b.csv 'SELECT 1'", "No such option: --tabel"),
    ],
)
def test_what_is_wrong_is_found_with_its_line(line: str, why: str) -> None:
    page = f"# A page\n\nAs here:\n\n```bash\ncat > x.csv <<'END'\nslidelake no\nEND\n{line}\n```\n"
    (command,) = commands_of(page, "page.md")
    assert (command.page, command.line) == ("page.md", 9)
    assert why in str(reason_against(command))


def test_mentions_within_sentences_need_no_arguments_but_right_names() -> None:
    text = "By `slidelake mil`, `slidelake repair --checksums`, `slidelake ls\nLAKE` and\n"
    commands = commands_of(text + "`slidelake mill`, `slidelake repair --check`.", "page.md")
    assert [(one.line, bool(reason_against(one))) for one in commands] == [
        (1, False), (1, False), (1, False), (3, True), (3, True),
    ]  # fmt: skip


# ---------------------------------------------------------------------- names

#: Options that take names of columns.
NAMED = ("teachers", "features", "students", "single", "teacher")
PLACEHOLDERS = {"FILE", "NAME", "X", "TEACHER", "colour-moments", "our_vit", "small-net"}


def names_in(command: PageCommand) -> tuple[set[str], set[str]]:
    """Return the columns that a command line reads, and those that it makes."""
    words = without_extensions(command.words)
    if words[0] == "submit" and "--" in words:
        words = words[words.index("--") + 1 :]
    if words in ((), ("COMMAND",)):
        return set(), set()
    parsed_command, context = parsed(words)
    texts = [
        text
        for name, values in context.params.items()
        if name in NAMED and values
        for text in ([values] if isinstance(values, str) else values)
    ]
    columns = {
        re.split("[:@=]", part)[0]
        for text in texts
        if not text.endswith(".py")
        for part in text.split("+")
    }
    if parsed_command.name == "import":
        return set(), columns
    if parsed_command.name == "encode":
        return columns, {".".join([str(context.params["slide_encoder"]), *sorted(columns)])}
    return columns, {context.params["name"]} if parsed_command.name == "distill" else set()


def test_names_of_columns_are_cards_of_the_demo_or_made_before() -> None:
    wrong, page, columns = [], "", set[str]()
    for command in ALL:
        words = without_extensions(command.words)
        if reason_against(command) or (command.inline and is_mention(words)):
            continue
        if command.page != page:
            page, columns = command.page, {*CARDS, *TEACHERS, STUDENT, *PLACEHOLDERS}
            if page.endswith("--help"):
                columns |= {"small", "small-seed1", "small-seed2"}  # of other commands' help
        reads, makes = names_in(command)
        wrong += [
            f"{command}\n    no card, and no column so far: {name}" for name in reads - columns
        ]
        columns |= makes
    assert wrong == [], "\n".join(["", *wrong])


# ---------------------------------------------------------------------- running

#: Commands that are parsed and not run here, and why.
PARSED_ONLY = {
    "demo": "takes a minute; tests/cli/test_options_ray.py runs it",
    "submit": "needs a cluster; tests/cluster/test_cluster_ray.py sends jobs to one",
    "jobs": "needs a cluster; tests/cluster/test_cluster_ray.py sends jobs to one",
    "build": "cuts slides by Ray; tests/ingest/test_lake_building.py and tests/cli run it",
    "ingest": "cuts slides by Ray; tests/ingest and tests/cli run it",
    "extract": "runs networks by Ray; tests/ingest/teachers and tests/cli run it",
    "distill": "trains; tests/cli/test_options_ray.py runs it",
    "evaluate": "needs a trained student; tests/cli/test_options_ray.py runs it",
    "export-student": "needs a trained student; tests/cli/test_options_ray.py runs it",
    "mil": "trains; tests/downstream/test_docs_downstream.py runs the pages",
    "survival": "trains; tests/downstream/test_docs_downstream.py runs the pages",
    "attention": "needs a trained run; tests/cli/test_options_lake.py runs it",
    "predict": "needs a trained run; tests/cli/test_options_ray.py runs it",
    "probe": "trains; tests/cli/test_options_lake.py runs it",
    "robustness": "needs sites; tests/project/test_docs_downstream.py runs its page",
    "import": "needs other tools' files; tests/cli/test_interop_cli.py runs it",
}
#: Starts of pages whose lines are parsed and not run here, and why.
PARSED_PAGES = {
    EXTENDING: "test_docs_extending.py runs them",
    "docs/tutorial.md": "test_docs_tutorial.py runs it",
    "docs/howto/": "test_docs_howto.py runs them",
    "docs/coming-from/": "test_docs_howto.py runs them",
    "docs/recipes.md": "test_docs_recipes.py runs it",
    "docs/index.md": "the demo's commands, which tests/cli/test_options_ray.py runs",
    "docs/troubleshooting.md": "remedies for lakes that are damaged; tests of each are elsewhere",
    "docs/faq.md": "answers with the user's own names",
}
#: Patterns of lines that are parsed and not run, and why.
PARSED_LINES = {
    r"\w+://": "there is no bucket here; tests on a server of S3 run these commands",
    r"(^| )(LAKE|DIR|RUN|FILE\S*)( |$)": "a placeholder stands for the user's own",
    r"--at 41\b": "version 41 of a lake that has many; tests/cli/test_options_edits.py restores",
    r"--tcga-patients": "slides with TCGA barcodes; tests/cli/test_options_edits.py runs it",
    r"-encoder (titan|my_encoder)|^encode .* conch15": "weights, or a column, of the user's own",
    r"--like (slide7|SLIDE)": "a slide with a name of the user's own",
}


def reason_not_run(command: PageCommand) -> str | None:
    """Return why a command line is only parsed, or None if it is run."""
    if command.inline:
        if is_mention(command.words):
            return "a mention"
        if "my-lake" not in command.words:
            return "a placeholder stands for the lake"
    for start, reason in PARSED_PAGES.items():
        if command.page.startswith(start):
            return reason
    line = " ".join(command.words)
    if why := PARSED_ONLY.get(command.words[0]):
        return why
    return next((why for pattern, why in PARSED_LINES.items() if re.search(pattern, line)), None)


RUN: dict[str, list[PageCommand]] = {}
for _one in ALL:
    if _one.words[0] in COMMANDS and not reason_not_run(_one):
        RUN.setdefault(_one.page.partition(" --help")[0], []).append(_one)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `my-lake`, which has the names of pages, and tables beside it."""
    made = tmp_path_factory.mktemp("pages")
    rng = np.random.default_rng(0)
    columns = ("good", "uni2_h", "virchow2", "resnet50", "small", *TEACHERS, STUDENT)
    names = [*slide_names(), "P000-1", "P003-1"]
    shapes = {name: (5 + name.endswith("b"), WIDTH) for name in names}
    lake = build(
        made / "my-lake",
        {
            column: {name: rng.standard_normal(shapes[name]).astype(np.float16) for name in names}
            for column in columns
        },
    )
    lake.snapshot("paper-v1")
    lake.snapshot("paper")
    tiles = [(name, 256 * at) for name, (count, _) in shapes.items() for at in range(count)]
    pl.DataFrame(
        {
            "slide_id": [name for name, _ in tiles],
            "x": [place for _, place in tiles],
            "y": [place for _, place in tiles],
            "region": ["tumour" if place else "stroma" for _, place in tiles],
        }
    ).write_csv(made / "regions.csv")
    clinical = pl.DataFrame({"slide_id": names, "grade": [len(name) % 3 for name in names]})
    clinical.write_csv(made / "clinical.csv")
    clinical.write_csv(made / "labels.csv")
    book = openpyxl.Workbook()
    for row in (clinical.columns, *clinical.iter_rows()):
        book.active.append(list(row))
    book.save(made / "clinical.xlsx")
    pl.DataFrame({"slide_id": names, "patient_id": [f"p{name[1:3]}" for name in names]}).write_csv(
        made / "patients.csv"
    )
    return made


@pytest.mark.parametrize("page", RUN)
def test_command_lines_of_a_page_run(
    page: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    here = tmp_path / "here"
    shutil.copytree(folder, here)
    shutil.copytree(folder / "my-lake", here / "my-copy")  # what `cp` and `rsync` make on a page
    monkeypatch.chdir(here)
    for command in RUN[page]:
        # folders at the root of the user's machine are ours here
        words = [re.sub(r"^/", f"{tmp_path}/elsewhere/", word) for word in command.words]
        answer = run_words(capsys, words, code=None)
        assert answer.code == 0, f"{command}\n{answer.stdout}\n{answer.stderr}"


def test_reasons_for_parsing_only_are_all_needed() -> None:
    lines = [" ".join(one.words) for one in ALL]
    assert {name for name in PARSED_ONLY if not any(one.words[0] == name for one in ALL)} == set()
    unused = {
        pattern for pattern in PARSED_LINES if not any(re.search(pattern, one) for one in lines)
    }
    assert unused == set()
    pages = {one.page for one in ALL}
    assert not [start for start in PARSED_PAGES if not any(p.startswith(start) for p in pages)]
    assert sum(map(len, RUN.values())) > 40
