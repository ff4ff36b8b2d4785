"""The settings of a run in its folder (`config.json`), for another run to start from."""

import json
from typing import TYPE_CHECKING, Any

from downstream.run.spec_json import JsonSettings
from downstream.run.study_errors import StudyError
from downstream.run.study_spec import StudySpec

if TYPE_CHECKING:
    from featurestore import Lake


def save_spec(lake: "Lake", run: str, spec: JsonSettings) -> None:
    """Write settings to the run's folder, unless some are there."""
    path = f"runs/{run}/config.json"
    if not lake.exists(path):
        lake.write_json(path, {"lake_version": lake.version, "spec": spec.to_json()})


def saved_settings(lake: "Lake", run: str) -> dict[str, Any]:
    """Return the settings of a run as JSON: of a `StudySpec`, or of a probe's `ProbeSpec`.

    Raises:
        StudyError: The run has not saved any: there is no such run, or it is older than this.
    """
    path = f"runs/{run}/config.json"
    content = json.loads(lake.read_bytes(path)) if lake.exists(path) else {}
    if "spec" not in content:
        msg = (
            f"{path} in {lake.uri} holds no settings of a study; name a run of `slidelake runs` "
            "that was made since runs keep their settings"
        )
        raise StudyError(msg)
    settings: dict[str, Any] = content["spec"]
    return settings


def saved_spec(lake: "Lake", run: str) -> StudySpec:
    """Return the settings that a study was started with.

    Raises:
        StudyError: See `saved_settings`.
        SpecError: What was saved is not the settings of a study.
    """
    return StudySpec.from_json(saved_settings(lake, run))
