"""The settings of a run in its folder (`config.json`), for another run to start from."""

from typing import TYPE_CHECKING, Any

from downstream.run.spec_json import JsonSettings
from downstream.run.study_errors import StudyError
from downstream.run.study_spec import StudySpec
from featurestore.storage import json_bytes, read_sealed, sealed

if TYPE_CHECKING:
    from featurestore import Lake


def save_spec(lake: "Lake", run: str, spec: JsonSettings) -> None:
    """Write the settings of a run to its folder, unless the folder has settings already."""
    path = f"runs/{run}/config.json"
    if not lake.exists(path):
        fields = {"lake_version": lake.version, "spec": spec.to_json()}
        lake.write_bytes(path, json_bytes(sealed(fields, {})))


def saved_settings(lake: "Lake", run: str) -> dict[str, Any]:
    """Return the settings of a run as JSON: a `StudySpec`, or the `ProbeSpec` of a probe.

    Raises:
        StudyError: There are no saved settings: the run does not exist, or predates saving.
        DamageError: The file is not what was written.
    """
    path = f"runs/{run}/config.json"
    content = read_sealed(lake.store, path) if lake.exists(path) else {}
    if "spec" not in content:
        msg = (
            f"{path} in {lake.uri} holds no settings of a study; name a run of `slidelake runs` "
            "that was made since runs keep their settings"
        )
        raise StudyError(msg)
    settings: dict[str, Any] = content["spec"]
    folds = settings.get("folds", {})
    if folds.get("sites") and "split" not in folds:
        folds["split"] = "site"  # what naming the sites meant before there was `split`
    return settings


def saved_spec(lake: "Lake", run: str) -> StudySpec:
    """Return the settings that a study was started with.

    Raises:
        StudyError: See `saved_settings`.
        SpecError: The saved settings are not those of a study.
    """
    return StudySpec.from_json(saved_settings(lake, run))
