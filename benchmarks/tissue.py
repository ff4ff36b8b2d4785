"""Tissue detection against other projects' detectors, on slides whose tissue is known.

    python -m benchmarks.tissue SLIDES --rivals PYTHON [--pictures FOLDER]

SLIDES holds slides of the generator with their `.truth.npz`; one named `plain.svs` has no pen.
PYTHON is an interpreter with hs2p and histolab. All see the same overview at 16 mpp; the clock
leaves out reading it, and runs on one thread. Truth and pens of the generated slides come from one
program; the painted pens have colours that others took from real scans.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.report import RESULTS, table, write_report
from benchmarks.tissue_cases import Case, Mask, Picture, edge_cases, painted, read_slide
from ingest.readers.open_slide import open_slide
from ingest.tissue.overview_tissue import find_tissue

RIVALS = Path(__file__).with_name("tissue_rivals.py")
REAL = Path(__file__).parent.parent / "examples" / "data" / "CMU-1-Small-Region.svs"
REPEATS = 5
OURS: dict[str, Callable[[Picture], Mask]] = {
    "slidelake": lambda picture: find_tissue(picture, 16.0).mask,
    "slidelake, veto off": lambda picture: find_tissue(picture, 16.0, pen_veto=False).mask,
}


@dataclass(frozen=True, kw_only=True)
class Score:
    """Scores of one detector on a group of pictures; None without pixels to measure.

    Attributes:
        group: name of the group of pictures.
        detector: name of the detector.
        pictures: number of pictures in the group.
        dice: Dice coefficient of tissue, away from pen.
        lost: share of the true tissue away from pen that was missed.
        lost_fat: share of the true fat away from pen that was missed.
        pen_called_tissue: share of pen on bare glass that was called tissue.
        lost_under_pen: share of the tissue under pen that was missed.
        glass_called_tissue: share of glass without pen that was called tissue.
        kept: share of the picture that was called tissue.
        ms: median milliseconds for a picture.
    """

    group: str
    detector: str
    pictures: int
    dice: float | None
    lost: float | None
    lost_fat: float | None
    pen_called_tissue: float | None
    lost_under_pen: float | None
    glass_called_tissue: float | None
    kept: float | None
    ms: float


def measure(case: Case, mask: Mask) -> dict[str, float | None]:
    """Return all shares of one mask."""
    kept = float(mask.mean())
    if case.tissue is None:
        return {"kept": kept}
    clear, tissue = ~case.pen, case.tissue & ~case.pen
    ink, glass = case.pen & ~case.tissue, ~case.tissue & ~_wider(case.pen)
    hits = mask & clear

    def share(part: Mask, of: Mask) -> float | None:
        return float((part & of).sum() / of.sum()) if of.any() else None

    both = hits.sum() + tissue.sum()
    return {
        "dice": float(2 * (hits & tissue).sum() / both) if case.tissue.any() else None,
        "lost": share(~mask, tissue),
        "lost_fat": share(~mask, case.fat & clear),
        "pen_called_tissue": share(mask, ink),
        "lost_under_pen": share(~mask, case.tissue & case.pen),
        "glass_called_tissue": share(mask, glass),
        "kept": kept,
    }


def _wider(pen: Mask) -> Mask:
    wide: Mask = cv2.dilate(pen.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
    return wide


def run_ours(cases: Iterable[Case]) -> tuple[dict[str, Mask], dict[str, dict[str, float]]]:
    """Return masks by `name|detector`, and milliseconds by detector and name, of our detector."""
    masks: dict[str, Mask] = {}
    times: dict[str, dict[str, float]] = {detector: {} for detector in OURS}
    for case in cases:
        for detector, run in OURS.items():
            seconds = []
            for _ in range(REPEATS):
                start = time.perf_counter()
                masks[f"{case.name}|{detector}"] = run(case.picture)
                seconds.append(time.perf_counter() - start)
            times[detector][case.name] = 1e3 * statistics.median(seconds)
    return masks, times


def run_rivals(
    cases: Iterable[Case], python: str
) -> tuple[dict[str, Mask], dict[str, dict[str, float]]]:
    """Return masks and milliseconds of the rivals, as `run_ours` does."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "pictures.npz", Path(folder) / "masks.npz"
        np.savez(source, allow_pickle=False, **{case.name: case.picture for case in cases})
        subprocess.run([python, str(RIVALS), str(source), str(target)], check=True)
        with np.load(target) as kept:
            masks = {name: kept[name] for name in kept.files}
        return masks, json.loads(target.with_suffix(".json").read_text())


def real_cases(python: str) -> Iterator[Case]:
    """Yield pictures of real slides, without truth."""
    with open_slide(str(REAL)) as slide:
        yield real_case("real H&E (CMU, inked margin)", "CMU", slide.overview(16.0)[0])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ihc.npz"
        subprocess.run([python, str(RIVALS), "--ihc", str(path)], check=True)
        with np.load(path) as file:
            yield real_case("real IHC (DAB, scikit-image)", "ihc", reduced(file["ihc"]))


def real_case(group: str, name: str, picture: Picture) -> Case:
    """Return the case of a picture without truth."""
    none = np.zeros(picture.shape[:2], bool)
    return Case(group=group, name=name, picture=picture, tissue=None, pen=none, fat=none)


def reduced(picture: Picture) -> Picture:
    """Return a field at about 0.5 mpp at the overview's mpp, repeated to some size."""
    small = cv2.resize(picture, None, fx=1 / 16, fy=1 / 16, interpolation=cv2.INTER_AREA)
    mirrored = np.concatenate([small, small[:, ::-1]], 1)
    tiled: Picture = np.tile(np.concatenate([mirrored, mirrored[::-1]]), (6, 8, 1))
    return tiled


def scores(
    cases: list[Case], masks: dict[str, Mask], times: dict[str, dict[str, float]]
) -> list[Score]:
    """Return one score per group and detector."""
    lines = []
    for group in dict.fromkeys(case.group for case in cases):
        members = [case for case in cases if case.group == group]
        for detector, ms in times.items():
            measures = [measure(case, masks[f"{case.name}|{detector}"]) for case in members]
            mean = {
                key: round(statistics.mean(values), 4)
                if (values := _known(measures, key))
                else None
                for key in Score.__dataclass_fields__
                if key not in {"group", "detector", "pictures", "ms"}
            }
            median_ms = round(statistics.median(ms[case.name] for case in members), 1)
            lines.append(
                Score(group=group, detector=detector, pictures=len(members), ms=median_ms, **mean)
            )
    return lines


def _known(measures: list[dict[str, float | None]], key: str) -> list[float]:
    return [value for one in measures if (value := one.get(key)) is not None]


def draw(cases: list[Case], masks: dict[str, Mask], detectors: Iterable[str], to: Path) -> None:
    """Draw each picture, pixels not called tissue in green, the detectors side by side."""
    to.mkdir(parents=True, exist_ok=True)
    for case in cases:
        parts = [case.picture]
        for detector in detectors:
            part = case.picture.copy()
            part[~masks[f"{case.name}|{detector}"]] = (0, 200, 0)
            parts.append(part)
        sheet = cv2.resize(np.concatenate(parts, 1), None, fx=0.4, fy=0.4)
        cv2.imwrite(str(to / f"{case.name}.png"), sheet[..., ::-1])


def main() -> None:
    """Run, print a table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("slides", type=Path)
    parser.add_argument("--rivals", required=True, help="an interpreter with hs2p and histolab")
    parser.add_argument("--pictures", type=Path, help="a folder to draw all masks into")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    plain = read_slide(options.slides / "plain.svs", "generated, no pen")
    penned = [p for p in sorted(options.slides.glob("*.svs")) if p.stem != "plain"]
    cases = [read_slide(path, "generated, with pen") for path in penned]
    cases += [plain, *painted(plain), *edge_cases(plain)]
    cases += real_cases(options.rivals)
    their_masks, their_times = run_rivals(cases, options.rivals)
    our_masks, our_times = run_ours(cases)
    masks, times = {**our_masks, **their_masks}, {**our_times, **their_times}
    lines = scores(cases, masks, times)
    settings: dict[str, Any] = {"slides": len(penned) + 1, "mpp": 16, "repeats": REPEATS}
    print(table([asdict(line) for line in lines]))
    print(write_report(RESULTS, lines, settings, name="tissue"))
    if options.pictures:
        draw(cases, masks, times, options.pictures)


if __name__ == "__main__":
    main()
