"""The types that typer parses in place of field types that it does not support."""

from types import GenericAlias
from typing import Annotated, Any, cast, get_args, get_origin

from typer.models import ParameterInfo


def typer_type(field_type: Any, *, optional: bool) -> Any:  # noqa: ANN401 - a type
    """Return the type by which typer reads a field: a list for a tuple of any length.

    >>> typer_type(tuple[str, ...], optional=True)
    list[str] | None

    Args:
        field_type: type of the field.
        optional: whether a tuple is empty where the option is not given.
    """
    if get_origin(field_type) is not tuple:
        return field_type
    list_type = GenericAlias(list, (get_args(field_type)[0],))
    return list_type | None if optional else list_type


def annotated(value_type: object, info: ParameterInfo) -> Any:  # noqa: ANN401 - a type
    """Return a type that is annotated with typer's description of the parameter."""
    return cast("Any", Annotated)[value_type, info]
