"""Which options and arguments of a command are paths, and of what.

A field of an options dataclass is marked by `Annotated[..., PathKind.FILES]`, a `FieldOption` by
its `path_kind`. `slidelake submit` reads the marks: a job runs on other machines, where a path of
this one is of no use.
"""

from dataclasses import fields, is_dataclass
from typing import Annotated, Any, cast, get_args, get_origin, get_type_hints

from commands.options.field_options import FieldOptions
from commands.options.path_kind import PathKind


def path_kinds(options_type: type[object]) -> dict[str, PathKind]:
    """Return the kind of each parameter of a command that is a path, by the parameter's name.

    Args:
        options_type: the dataclass of the command's options, with its groups.
    """
    kinds: dict[str, PathKind] = {}
    for name, hint in _hints(options_type).items():
        if is_dataclass(hint):
            kinds |= path_kinds(cast("type[object]", hint))
            continue
        for extra in _extras(hint):
            if isinstance(extra, PathKind):
                kinds[name] = extra
            elif isinstance(extra, FieldOptions):
                kinds |= {
                    option.parameter_name: option.path_kind
                    for option in extra.options
                    if option.path_kind is not None
                }
    return kinds


def field_path_kinds(options_type: type[object]) -> dict[str, PathKind]:
    """Return the kind of each field of a run's settings that is a path, by its path for `--set`."""
    return {
        option.path: option.path_kind
        for hint in _hints(options_type).values()
        for extra in _extras(hint)
        if isinstance(extra, FieldOptions)
        for option in extra.options
        if option.path_kind is not None
    }


def _hints(options_type: type[object]) -> dict[str, Any]:
    hints = get_type_hints(options_type, include_extras=True)
    return {field.name: hints[field.name] for field in fields(cast("Any", options_type))}


def _extras(hint: object) -> tuple[object, ...]:
    return get_args(hint)[1:] if get_origin(hint) is Annotated else ()
