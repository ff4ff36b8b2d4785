"""The documentation of a dataclass's fields, from its docstring."""

import inspect


def field_docs(documented_type: type[object]) -> dict[str, str]:
    """Return the text of each field under `Attributes:` in a class's docstring and its bases'.

    >>> class Grid:
    ...     '''A grid.
    ...
    ...     Attributes:
    ...         side: pixels of a tile,
    ...             across and down.
    ...     '''
    >>> field_docs(Grid)
    {'side': 'pixels of a tile, across and down.'}
    """
    docs: dict[str, str] = {}
    for base in reversed(documented_type.__mro__):
        docs |= _section(inspect.cleandoc(base.__doc__ or "").splitlines())
    return docs


def _section(lines: list[str]) -> dict[str, str]:
    if "Attributes:" not in lines:
        return {}
    texts: dict[str, str] = {}
    name = ""
    for line in lines[lines.index("Attributes:") + 1 :]:
        if line and not line.startswith("    "):
            break
        if line.startswith("     "):
            texts[name] += f" {line.strip()}"
        elif line:
            name, _, text = line.strip().partition(": ")
            texts[name] = text
    return texts
