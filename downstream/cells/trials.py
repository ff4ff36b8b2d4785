"""Tuning: a small random search of settings inside each fold, judged by its inner validation alone.

A trial is an arm on one fold with one draw of settings; the draws are the same for all arms and
folds. Trial 0 has the run's own settings. Each trial's loss is kept in `runs/<run>/search/`.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from downstream.run.study_errors import StudyError

if TYPE_CHECKING:
    from downstream.run.fit_settings import MilSettings
    from downstream.run.study import Cell
    from featurestore import Lake


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A trial: one draw of settings, for one arm on one fold.

    Attributes:
        cell: the arm and fold, with the first seed.
        number: number of the draw; 0 is the run's own settings.
    """

    cell: "Cell"
    number: int

    @property
    def path(self) -> str:
        """Return the path of the file that keeps the trial's validation loss."""
        return f"runs/{self.cell.study.run}/search/{self.cell.stem}-{self.number}.json"

    @property
    def settings(self) -> "MilSettings":
        """Return the settings that the trial trains with."""
        study = self.cell.study
        return drawn_settings(study.settings, self.number, seed=study.seed)


def drawn_settings(settings: "MilSettings", number: int, *, seed: int) -> "MilSettings":
    """Return the settings of a draw; draw 0 is the given settings unchanged."""
    if number == 0:
        return settings
    rng = np.random.default_rng([seed, number])
    return replace(
        settings,
        learning_rate=float(10 ** rng.uniform(-4.5, -2.5)),
        weight_decay=float(10 ** rng.uniform(-6, -2)),
        dropout=float(rng.choice([0.0, 0.25, 0.5])),
        hidden=int(rng.choice([128, 256, 512])),
    )


def trials_of(cells: Sequence["Cell"]) -> list[Trial]:
    """Return the trials of every MIL arm on every fold; an empty list without tuning."""
    return [
        Trial(cell=cell, number=number)
        for cell in cells
        if cell.seed == 0 and cell.is_mil
        for number in range(cell.study.tune)
    ]


def run_trial(trial: Trial) -> float:
    """Train on each inner split; store and return the mean of the best validation losses.

    Raises:
        StudyError: A split has no validation part.
    """
    from downstream.cells.cell_models import fit_member
    from downstream.cells.cell_patients import CellPatients
    from downstream.cells.held_lake import held_lake

    study = trial.cell.study
    lake = held_lake(study.lake_uri, study.lake_version)
    patients = CellPatients(lake, trial.cell, settings=trial.settings)
    losses = []
    for split in trial.cell.splits:
        validation_losses = fit_member(patients, split).training_record["validation_loss"]
        if not validation_losses:
            msg = f"fold {split.fold} has no validation patients; tuning needs them"
            raise StudyError(msg)
        losses.append(min(validation_losses))
    loss = float(np.mean(losses))
    content = {"loss": loss, "settings": asdict(trial.settings)}
    lake.write_bytes(trial.path, json.dumps(content).encode())
    return loss


def settings_of(lake: "Lake", cell: "Cell") -> "MilSettings":
    """Return the settings of a cell: those of the trial with the least validation loss."""
    study = cell.study
    if not study.tune or not cell.is_mil:
        return study.settings
    tried = trials_of([replace(cell, seed=0)])
    losses: list[Any] = [json.loads(lake.read_bytes(trial.path))["loss"] for trial in tried]
    return tried[int(np.argmin(losses))].settings
