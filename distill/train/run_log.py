"""The log of a run: lines of JSON, TensorBoard, and a picture of its curves.

The lines are part of the checkpoint and the source of all three, so a run that continues from a
checkpoint never records a step twice.
"""

import io
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.train.loop import TrainingStep

LINES = 400
Line = dict[str, Any]


class Recorder:
    """Gathers training steps into lines of the log.

    Args:
        lines: lines recorded so far; new lines are added.
        steps: number of steps of the whole run, which gets about 400 lines.
        workers: number of workers that train together, each on as many tiles.
    """

    def __init__(self, lines: list[Line], *, steps: int, workers: int = 1) -> None:
        self.lines, self._every, self.workers = lines, max(1, steps // LINES), workers
        self._window: list[TrainingStep] = []

    def add(self, step: TrainingStep, *, epoch: int) -> None:
        """Add a step; a fixed number of steps become one line."""
        self._window.append(step)
        # By the step's number, so that a run that continues has lines at the same steps.
        if step.number % self._every == 0:
            self.lines.append(self._line(epoch))
            self._window = []

    def _line(self, epoch: int) -> Line:
        window, last = self._window, self._window[-1]
        losses = {
            name: sum(step.losses.get(name, 0.0) for step in window) / len(window)
            for name in last.losses
        }
        seconds = sum(step.seconds for step in window)
        total = sum(losses.values())
        return {
            "step": last.number,
            "epoch": epoch,
            "loss": round(total, 6),
            "losses": {name: round(loss, 6) for name, loss in losses.items()},
            "shares": shares_of(losses),
            "gradient": round(last.gradient, 6),
            "learning_rate": last.rate,
            "data_wait": round(sum(step.waited_s for step in window) / max(seconds, 1e-9), 4),
            "tiles_per_s": round(
                self.workers * sum(step.tiles for step in window) / max(seconds, 1e-9), 2
            ),
            "time": round(time.time(), 3),
        }

    def measured(self, fidelity: Mapping[str, Mapping[str, Any]], *, step: int, epoch: int) -> None:
        """Add a line of held-out fidelity, by prediction and mpp."""
        by_prediction = {name: dict(parts) for name, parts in fidelity.items()}
        self.lines.append(
            {"step": step, "epoch": epoch, "held_out": by_prediction, "time": round(time.time(), 3)}
        )


def shares_of(losses: Mapping[str, float]) -> dict[str, float]:
    """Return each term's share of the sum of magnitudes, which shows a term that dominates."""
    whole = sum(abs(loss) for loss in losses.values()) or 1.0
    return {name: round(abs(loss) / whole, 4) for name, loss in losses.items()}


def epochs_of(lines: Sequence[Line]) -> list[Line]:
    """Summarise each epoch: its last step, and the mean of each term over its lines."""
    epochs: dict[int, list[Line]] = {}
    for line in lines:
        if "losses" in line:
            epochs.setdefault(line["epoch"], []).append(line)
    return [
        {
            "epoch": epoch,
            "step": epoch_lines[-1]["step"],
            "loss": {
                name: round(sum(line["losses"][name] for line in epoch_lines) / len(epoch_lines), 6)
                for name in epoch_lines[0]["losses"]
            },
        }
        for epoch, epoch_lines in epochs.items()
    ]


def json_lines(lines: Sequence[Line]) -> bytes:
    """Return the lines as a file of one JSON object a line."""
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def tensorboard_events(lines: Sequence[Line]) -> bytes:
    """Return a TensorBoard event file of all numbers in the lines."""
    from tensorboardX import SummaryWriter

    with tempfile.TemporaryDirectory(prefix="slidelake-") as folder:
        writer = SummaryWriter(folder, flush_secs=3600)
        for line in lines:
            for name, number in _numbers(line).items():
                writer.add_scalar(name, number, line["step"], walltime=line["time"])
        writer.close()
        return b"".join(path.read_bytes() for path in sorted(Path(folder).glob("events*")))


def _numbers(part_of_line: Any, name: str = "") -> dict[str, float]:  # noqa: ANN401 - JSON
    """Return the numbers of a line by their path."""
    if isinstance(part_of_line, Mapping):
        numbers: dict[str, float] = {}
        for key, part in part_of_line.items():
            if key not in ("step", "time"):
                numbers |= _numbers(part, f"{name}/{key}" if name else str(key))
        return numbers
    return {name: float(part_of_line)} if isinstance(part_of_line, int | float) else {}


def curve_picture(lines: Sequence[Line], *, title: str) -> bytes:
    """Draw the loss by term, the held-out cosines and the speed; return a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    loss, held, speed = figure.subplots(1, 3)
    steps = [line for line in lines if "losses" in line]
    for name in steps[-1]["losses"] if steps else []:
        at = [(line["step"], line["losses"].get(name)) for line in steps]
        loss.plot(*zip(*at, strict=True), label=name, linewidth=1)
    measured = [line for line in lines if "held_out" in line]
    series: dict[str, list[tuple[int, float]]] = {}
    for line in measured:
        for name, parts in line["held_out"].items():
            for mpp, part in parts.items():
                series.setdefault(f"{name} at {mpp}", []).append((line["step"], part["centred"]))
    for name, points in series.items():
        held.plot(*zip(*points, strict=True), label=name, marker=".", linewidth=1)
    speed.plot(
        [line["step"] for line in steps], [line["tiles_per_s"] for line in steps], linewidth=1
    )
    for axis, text in (
        (loss, "loss by term"),
        (held, "held-out centred cosine"),
        (speed, "tiles/s"),
    ):
        axis.set(title=text, xlabel="step")
        if axis.get_legend_handles_labels()[1]:
            axis.legend(fontsize=6)
    figure.suptitle(title, fontsize=9)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()
