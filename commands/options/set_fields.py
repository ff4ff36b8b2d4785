"""`--set group.field=value`: changes of any field of a run's settings.

Settings are nested frozen dataclasses. A path names a field by its groups, as `schedule.epochs`,
an element of a tuple by its position, as `terms.0.weight`, and an entry of a mapping by its key.
Values are converted to the type of the field; all changes are applied at once, so that the checks
of a class see the finished settings.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import typer

Settings = TypeVar("Settings")

#: Words for None, true and false on the command line.
NONE_WORDS, BOOL_WORDS = ("none", "null"), {"true": True, "false": False}


def with_assignments(settings: Settings, assignments: Sequence[str]) -> Settings:
    """Return settings with the values of `PATH=VALUE` texts.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Grid:
    ...     side_px: int = 256
    ...     mpps: tuple[float, ...] = (0.5,)
    >>> with_assignments(Grid(), ["mpps=0.5,2"])
    Grid(side_px=256, mpps=(0.5, 2.0))

    Raises:
        BadParameter: a text is not of this form, names no field, or its value is of another type.
    """
    changes = dict(parse_assignment(settings, text) for text in assignments)
    return with_values(settings, changes)


def parse_assignment(settings: object, text: str) -> tuple[str, object]:
    """Return the path of a `PATH=VALUE` text, and its value in the type of the field."""
    path, equals, value_text = text.partition("=")
    if not equals:
        msg = f"--set {text}: give FIELD=VALUE; fields are {', '.join(field_paths(settings))}"
        raise typer.BadParameter(msg)
    field_type = field_at(settings, path.strip()).type
    try:
        return path.strip(), parse_value(value_text.strip(), field_type)
    except ValueError as error:
        msg = f"--set {text}: {path} is {type_text(field_type)}"
        raise typer.BadParameter(msg) from error


def with_values(settings: Settings, changes: Mapping[str, object]) -> Settings:
    """Return settings with the fields at some paths changed, all at once."""
    tree: dict[str, Any] = {}
    for path, setting in changes.items():
        *groups, name = path.split(".")
        branch = tree
        for group in groups:
            branch = branch.setdefault(group, {})
        branch[name] = _NewValue(setting)
    return cast("Settings", _rebuilt_settings(settings, tree))


def field_paths(settings: object, prefix: str = "") -> Iterator[str]:
    """Yield the path of each field that `--set` can change."""
    for name, child in _children(settings).items():
        path = f"{prefix}{name}"
        if _children(child):
            yield from field_paths(child, f"{path}.")
        elif not (isinstance(child, tuple) and any(map(is_dataclass, child))):
            yield path


def parse_value(text: str, field_type: object) -> object:
    """Return the value of a text in the type of a field.

    Raises:
        ValueError: the text is no value of this type.
    """
    origin, arguments = get_origin(field_type), get_args(field_type)
    if origin in (Union, UnionType):
        return _parse_union(text, arguments)
    if origin is Literal:
        return (
            {str(choice): choice for choice in arguments}[text]
            if text in map(str, arguments)
            else _refuse(text)
        )
    if origin in (tuple, Sequence, list):
        parts = [part.strip() for part in text.split(",") if part.strip()]
        return tuple(parse_value(part, arguments[0]) for part in parts)
    if field_type is bool:
        return BOOL_WORDS[text.lower()] if text.lower() in BOOL_WORDS else _refuse(text)
    if field_type in (int, float, str):
        return field_type(text)
    return json.loads(text)  # a mapping, or a value of any type


def type_text(field_type: object) -> str:
    """Return a type in words.

    >>> type_text(int | None), type_text(tuple[str, ...]), type_text(Literal["a", "b"])
    ('a whole number or none', 'texts, separated by commas', 'one of a, b')
    """
    origin, arguments = get_origin(field_type), get_args(field_type)
    if origin in (Union, UnionType):
        return " or ".join(type_text(argument) for argument in arguments)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin in (tuple, Sequence, list):
        plural = type_text(arguments[0]).removeprefix("a ")
        return f"{plural}s, separated by commas"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return words.get(cast("type", field_type), "none" if field_type is NoneType else "JSON")


class _NewValue:
    """A new value, at the end of a path."""

    def __init__(self, setting: object) -> None:
        self.setting = setting


def _refuse(text: str) -> object:
    raise ValueError(text)


def _parse_union(text: str, arguments: Sequence[object]) -> object:
    if NoneType in arguments and text.lower() in NONE_WORDS:
        return None
    for argument in arguments:
        if argument is NoneType:
            continue
        try:
            return parse_value(text, argument)
        except ValueError:  # the next type of the union may take it
            continue
    return _refuse(text)


def _children(settings: object) -> dict[str, Any]:
    """Return a dataclass's fields by name or a dataclass tuple's elements by position; else {}."""
    if is_dataclass(settings) and not isinstance(settings, type):
        return {field.name: getattr(settings, field.name) for field in fields(settings)}
    if isinstance(settings, tuple) and settings and all(map(is_dataclass, settings)):
        return {str(position): element for position, element in enumerate(settings)}
    return {}


@dataclass(frozen=True, kw_only=True)
class FieldPlace:
    """A field of nested settings.

    Attributes:
        owner: dataclass of the field.
        name: name of the field in that class.
        type: type of its values.
        value: value of the field.
    """

    owner: type[object]
    name: str
    type: object
    value: object


def field_at(settings: object, path: str) -> FieldPlace:
    """Return the field at a path.

    Raises:
        BadParameter: there is no such field; the message lists the fields.
    """
    node: object = settings
    owner: type[object] = type(settings)
    field_type: object = owner
    *_, last = names = path.split(".")
    for name in names:
        children = _children(node)
        if isinstance(node, Mapping):
            field_type, node = get_args(field_type)[1], node.get(name)
            continue
        if name not in children:
            paths = list(field_paths(settings))
            near = [name for name in paths if name.rpartition(".")[2] == last]
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            msg = f"--set {path}: there is no such field; {hint}fields are {', '.join(paths)}"
            raise typer.BadParameter(msg)
        if is_dataclass(node):
            owner = type(node)
            field_type = get_type_hints(owner)[name]
        node = children[name]
    if _children(node):
        msg = f"--set {path}: give one of its fields, {', '.join(field_paths(node, f'{path}.'))}"
        raise typer.BadParameter(msg)
    return FieldPlace(owner=owner, name=last, type=field_type, value=node)


def _rebuilt_settings(settings: object, tree: Mapping[str, Any]) -> object:
    if isinstance(settings, Mapping):
        return {**settings, **{key: leaf.setting for key, leaf in tree.items()}}
    children = _children(settings)
    changed = {
        name: branch.setting
        if isinstance(branch, _NewValue)
        else _rebuilt_settings(children[name], branch)
        for name, branch in tree.items()
    }
    if isinstance(settings, tuple):
        return tuple(changed.get(name, element) for name, element in children.items())
    return replace(cast("Any", settings), **changed)
