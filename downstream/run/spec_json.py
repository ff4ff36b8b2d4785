"""Frozen dataclasses of settings to JSON and back; strict, so that a typing error is no default.

The values are what settings hold: texts, numbers, booleans, None, tuples of these, and dataclasses
of settings. Every value that is read is compared with the type of its field.
"""

import types
from dataclasses import MISSING, Field, asdict, fields, is_dataclass
from typing import Any, Literal, Self, TypeVar, Union, get_args, get_origin, get_type_hints

S = TypeVar("S")


class SpecError(ValueError):
    """An error for JSON that does not match the dataclass of its settings."""


class JsonSettings:
    """Frozen dataclasses of settings that are saved as JSON."""

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON; `from_json` reads them back."""
        return to_json(self)

    @classmethod
    def from_json(cls, content: Any) -> Self:  # noqa: ANN401 - any JSON
        """Return the settings object that JSON describes.

        Raises:
            SpecError: A name that is no field, a field that is missing, or a value of another type.
        """
        return from_json(cls, content)


def to_json(spec: Any) -> dict[str, Any]:  # noqa: ANN401 - any dataclass of settings
    """Return settings as JSON: nested objects, tuples as lists.

    >>> from downstream.run.fit_settings import SurvivalSettings
    >>> to_json(SurvivalSettings())["trees"]
    300
    """
    content: dict[str, Any] = _as_lists(asdict(spec))
    return content


def from_json(kind: type[S], content: Any, *, name: str = "") -> S:  # noqa: ANN401 - any JSON
    """Return the settings object that JSON describes; a field that is left out keeps its default.

    Args:
        kind: the frozen dataclass of the settings.
        content: JSON from `to_json`, or a part of it.
        name: path of the settings in a larger document, for error messages.

    Raises:
        SpecError: A name that is no field, a field that is missing, or a value of another type.
        ValueError: The dataclass itself refuses the settings.

    >>> from downstream.run.fit_settings import SurvivalSettings
    >>> from_json(SurvivalSettings, {"trees": 10}).trees
    10
    """
    place, all_fields = name or kind.__name__, _fields(kind)
    if not isinstance(content, dict):
        msg = f"{place} is {content!r}; write an object with the fields {_names(kind)}"
        raise SpecError(msg)
    unknown = sorted(set(content) - {field.name for field in all_fields})
    if unknown:
        msg = f"{place} has no field {', '.join(map(repr, unknown))}; its fields are {_names(kind)}"
        raise SpecError(msg)
    types_by_field = get_type_hints(kind)
    settings = {}
    for field in all_fields:
        if field.name in content:
            path = f"{name}.{field.name}" if name else field.name
            settings[field.name] = _read(types_by_field[field.name], content[field.name], path)
        elif field.default is MISSING and field.default_factory is MISSING:
            msg = f"{place} lacks {field.name!r}; its fields are {_names(kind)}"
            raise SpecError(msg)
    return kind(**settings)


def _as_lists(content: Any) -> Any:  # noqa: ANN401 - any JSON
    """Return JSON with lists in place of tuples."""
    if isinstance(content, dict):
        return {key: _as_lists(inner) for key, inner in content.items()}
    if isinstance(content, list | tuple):
        return [_as_lists(inner) for inner in content]
    return content


def _names(kind: type[Any]) -> str:
    """Return the names of a dataclass's fields, for messages."""
    return ", ".join(field.name for field in _fields(kind))


def _fields(kind: Any) -> tuple[Field[Any], ...]:  # noqa: ANN401 - any dataclass
    """Return the fields of a dataclass."""
    return fields(kind)


def _read(kind: Any, content: Any, path: str) -> Any:  # noqa: ANN401 - any type, any JSON
    """Return a field's content as its type; an integer is also a number, a boolean is not."""
    options = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    for option in options:
        if is_dataclass(option):
            nested: Any = option
            return from_json(nested, content, name=path)
        if get_origin(option) is tuple and isinstance(content, list | tuple):
            return tuple(_read(get_args(option)[0], inner, path) for inner in content)
        if get_origin(option) is Literal and content in get_args(option):
            return content
        if option is float and type(content) in (int, float):
            return float(content)
        if option in (types.NoneType, None) and content is None:
            return None
        if option in (str, int, bool) and type(content) is option:
            return content
    allowed = " or ".join(_described(option) for option in options)
    msg = f"{path} is {content!r}; it is {allowed}"
    raise SpecError(msg)


def _described(kind: Any) -> str:  # noqa: ANN401 - any type
    """Return a type in words, for messages."""
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        return f"a list, of each element {_described(get_args(kind)[0])}"
    words = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
    return words.get(kind, "null")
