"""The types by which typer reads fields that it does not know as they are."""

from typing import Any, Optional, get_args, get_origin


def typer_type(field_type: object, *, optional: bool) -> Any:  # noqa: ANN401 - a type
    """Return the type by which typer reads a field: a list for a tuple of any length.

    Args:
        field_type: type of the field.
        optional: whether a tuple is empty where the option is not given.
    """
    if get_origin(field_type) is not tuple:
        return field_type
    values = list[get_args(field_type)[0]]  # type: ignore[misc]
    return Optional[values] if optional else values  # noqa: UP045 - not written as a type
