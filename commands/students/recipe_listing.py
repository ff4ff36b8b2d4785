"""`slidelake distill --show`: every setting of a recipe, with its value and where it comes from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from commands.options.set_fields import field_at, field_paths

if TYPE_CHECKING:
    from distill import Recipe

DEFAULT = "default"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A recipe after one source of settings.

    Attributes:
        source: name of the source, as `recipe gpfm`, `--like RUN` or `--set`.
        recipe: the recipe with the settings of this source and of those before it.
        paths: paths of fields that the source names, also where it changes nothing.
    """

    source: str
    recipe: "Recipe"
    paths: Sequence[str] = ()


def setting_rows(stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """Return a row for each field that `--set` reaches: `setting`, `value` and `source`.

    Settings of terms that no source names are there, too, with their defaults.

    Args:
        stages: sources in their order; the first is the recipe itself.
    """
    recipe = stages[-1].recipe
    rows = [
        {"setting": path, "value": field_at(recipe, path).value, "source": _source(path, stages)}
        for path in field_paths(recipe)
        if not path.endswith(".settings")
    ]
    for place, term in enumerate(recipe.terms):
        path = f"terms.{place}.settings"
        for name, number in {**term_defaults(recipe, term.kind), **term.settings}.items():
            source = _source(f"{path}.{name}", stages) if name in term.settings else DEFAULT
            rows.append({"setting": f"{path}.{name}", "value": number, "source": source})
    return rows


def paths_of(recipe: "Recipe", name: str) -> list[str]:
    """Return the paths of the fields of a name, which an option of this name sets."""
    return [path for path in field_paths(recipe) if path.rpartition(".")[2] == name]


def term_defaults(recipe: "Recipe", kind: str) -> Mapping[str, float]:
    """Return the settings of a term with their defaults.

    Raises:
        DistillError: the recipe's kind of student has no such term.
    """
    from distill.students.student_table import kind_of

    return kind_of(recipe).term_settings(kind)


def check_term_settings(recipe: "Recipe", paths: Sequence[str]) -> None:
    """Refuse settings of terms that do not exist, before a run starts.

    Args:
        recipe: the recipe.
        paths: paths of changed fields.

    Raises:
        BadParameter: a term has no such setting.
    """
    for path in paths:
        place, _, name = path.partition(".settings.")
        if not name:
            continue
        kind = recipe.terms[int(place.removeprefix("terms."))].kind
        defaults = term_defaults(recipe, kind)
        if name not in defaults:
            msg = f"--set {path}: term '{kind}' has {', '.join(defaults) or 'no settings'}"
            raise typer.BadParameter(msg)


def listing(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as lines of text, in three columns."""
    texts = [(row["setting"], value_text(row["value"]), row["source"]) for row in rows]
    first, second = (max(len(text[column]) for text in texts) for column in (0, 1))
    return "\n".join(f"{path:<{first}}  {text:<{second}}  {end}" for path, text, end in texts)


def value_text(setting: object) -> str:
    """Return a value as `--set` takes it.

    >>> value_text((0.5, 2.0)), value_text(None), value_text(True), value_text({})
    ('0.5,2.0', 'none', 'true', '{}')
    """
    if isinstance(setting, tuple):
        return ",".join(map(str, setting)) or "-"
    if isinstance(setting, bool):
        return str(setting).lower()
    return "none" if setting is None else str(setting)


def _source(path: str, stages: Sequence[Stage]) -> str:
    """Return the last source that names a field or changes it."""
    for stage, before in reversed(list(zip(stages[1:], stages, strict=False))):
        if path in stage.paths or _value(stage.recipe, path) != _value(before.recipe, path):
            return stage.source
    recipe = stages[0].recipe
    owner, _, name = path.rpartition(".")
    if ".settings" in owner:
        return stages[0].source
    fields = field_at(recipe, path).owner.__dataclass_fields__  # type: ignore[attr-defined]
    is_default = fields[name].default == _value(recipe, path)
    return DEFAULT if is_default or _is_empty(recipe, path) else stages[0].source


def _value(recipe: "Recipe", path: str) -> object:
    try:
        return field_at(recipe, path).value
    except typer.BadParameter:  # a term that this source has not
        return None


def _is_empty(recipe: "Recipe", path: str) -> bool:
    return _value(recipe, path) in ((), {})
