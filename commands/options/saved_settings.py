"""The settings that a run has saved, for `--like RUN`."""

from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from featurestore import Lake


def saved_config(lake: "Lake", run: str, key: str) -> dict[str, Any]:
    """Return a part of a run's `config.json`.

    Args:
        lake: the lake, open.
        run: name of the run.
        key: name of the part, as `recipe`.

    Raises:
        BadParameter: there is no such run, or it has saved no such settings.
        DamageError: the file is not what was written.
    """
    from featurestore.storage import read_sealed

    path = f"runs/{run}/config.json"
    content = read_sealed(lake.store, path) if lake.exists(path) else {}
    if key not in content:
        msg = (
            f"--like {run}: {path} of {lake.uri} has no '{key}'; give a run that the same command "
            "has made, and that has saved its settings (`slidelake runs` lists the runs)"
        )
        raise typer.BadParameter(msg)
    part: dict[str, Any] = content[key]
    return part
