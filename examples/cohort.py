"""A synthetic cohort: pyramidal H&E slides whose labels and survival follow from what they show.

Every patient has a hidden state (grade, lymphocytes, tumour share); it decides the morphology of
the slides, the class and the hazard. Each slide is a pure function of the arguments and its own
number, so any number of processes gives the same bytes and a killed run goes on where it stopped.
The default cohort takes about 11 s on two idle cores, 0.5 GB a process, and is 33 MB.
"""

import csv
import io
import json
import math
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

from examples.cohort_patients import SITE_MPP, CohortPatient, draw_patients
from examples.slide_drawing import Pixels
from examples.slide_layout import Morphology, lay_out
from examples.slide_render import Scene, encoded_tiles, stain_colours
from examples.slide_textures import library
from examples.slide_writer import TILE_PX, aperio_pages, write_tiff

#: Part of the arguments a folder was made with: raise it when other pixels come out.
GENERATOR_VERSION = 2
COLUMNS = (
    "slide_id",
    "patient_id",
    "uri",
    "site",
    "label",
    "time_months",
    "event",
    "pen",
    "blur",
)

_SLIDES_PER_WORKER = 4  # below this a process spends longer on textures than on slides


@dataclass(frozen=True, kw_only=True)
class SlidePlan:
    """The inputs of one synthetic slide; it is sent to a process by pickle.

    Attributes:
        slide_id: name of the slide and of its files.
        patient: the patient of the slide.
        number: number of the slide in the cohort; with the seed it decides all random values.
        seed: the seed of the cohort.
        width_px: width of level 0.
        height_px: height of level 0.
        pen: whether there is a pen mark on the glass.
        blur: whether a region is out of focus.
    """

    slide_id: str
    patient: CohortPatient
    number: int
    seed: int
    width_px: int
    height_px: int
    pen: bool
    blur: bool


def plan_slides(
    patients: Sequence[CohortPatient], slides: int, size_px: tuple[int, int], seed: int
) -> list[SlidePlan]:
    """Deal slides to patients in turn and choose slides with a pen mark and a blurred region.

    Args:
        patients: the patients of the cohort.
        slides: number of slides; slides beyond the number of patients are further slides of the
            first patients.
        size_px: width and height of level 0.
        seed: the seed of the cohort.
    """
    rng = np.random.default_rng([seed, 1])
    marked = min(max(4, slides // 6), slides // 2)
    pen, blur = (set(rng.permutation(slides)[:marked].tolist()) for _ in range(2))
    plans = []
    for number in range(slides):
        ordinal, owner = divmod(number, len(patients))
        patient = patients[owner]
        plan = SlidePlan(
            slide_id=f"{patient.patient_id}-{ordinal + 1}",
            patient=patient,
            number=number,
            seed=seed,
            width_px=size_px[0],
            height_px=size_px[1],
            pen=number in pen,
            blur=number in blur,
        )
        plans.append(plan)
    return plans


# ------------------------------------------------------------------ one slide


def _scene(plan: SlidePlan) -> Scene:
    rng = np.random.default_rng([plan.seed, 2, plan.number])
    show = Morphology(
        tumour_share=plan.patient.tumour_share,
        high_grade_share=plan.patient.high_grade_share,
        lymphocytes=plan.patient.lymphocytes,
        pen=plan.pen,
        blur=plan.blur,
    )
    period = 1024 if max(plan.width_px, plan.height_px) <= 1536 else 2048
    return Scene(
        layout=lay_out(rng, plan.width_px, plan.height_px, show),
        library=library(period),
        origin=(int(rng.integers(period)), int(rng.integers(period))),
        colours=stain_colours(rng, plan.patient.site),
        grain=int(rng.integers(2**32)),
    )


def _render(scene: Scene, width_px: int, height_px: int) -> tuple[list[bytes], list[Pixels]]:
    """Return the encoded tiles of level 0 and the images reduced by 4 and by 16."""
    part = TILE_PX // 4
    columns, rows = -(-width_px // TILE_PX), -(-height_px // TILE_PX)
    quarter: Pixels = np.empty((rows * part, columns * part, 3), np.uint8)
    streams = []
    for number, (stream, rgb) in enumerate(encoded_tiles(scene, width_px, height_px)):
        streams.append(stream)
        y, x = (part * at for at in divmod(number, columns))
        quarter[y : y + part, x : x + part] = cv2.resize(
            rgb, (part, part), interpolation=cv2.INTER_AREA
        )
    quarter = quarter[: height_px // 4, : width_px // 4]
    size = (width_px // 16, height_px // 16)
    sixteenth: Pixels = cv2.resize(quarter, size, interpolation=cv2.INTER_AREA)
    return streams, [quarter, sixteenth]


def _replace(path: Path, content: bytes) -> None:
    """Write a file so that it is never seen half-written, whenever the process is killed."""
    # A process that outlives a killed run for a moment may be at the same file.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def _slide_path(folder: Path, slide_id: str) -> Path:
    return folder / "slides" / f"{slide_id}.svs"


def make_slide(folder: Path, plan: SlidePlan) -> None:
    """Make one slide with its truth; the slide itself comes last and marks the rest complete.

    Args:
        folder: the folder of the cohort, with `slides` and `truth` in it.
        plan: the plan of the slide.
    """
    scene = _scene(plan)
    streams, reduced = _render(scene, plan.width_px, plan.height_px)
    truth, svs = io.BytesIO(), io.BytesIO()
    np.savez_compressed(truth, allow_pickle=False, **scene.layout.truth())
    _replace(folder / "truth" / f"{plan.slide_id}.truth.npz", truth.getvalue())
    latents = json.dumps(asdict(plan), indent=1).encode()
    _replace(folder / "truth" / f"{plan.slide_id}.json", latents)
    size_px = (plan.width_px, plan.height_px)
    mpp = SITE_MPP[plan.patient.site]
    write_tiff(svs, aperio_pages(plan.slide_id, size_px, mpp, streams, reduced))
    _replace(_slide_path(folder, plan.slide_id), svs.getvalue())


# ------------------------------------------------------------------ all of them


def _leave_with_parent() -> None:
    """End this process when its parent ends: a pool would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _start_worker() -> None:
    cv2.setNumThreads(1)  # each process has a core; OpenCV's own threads would only compete
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _made(folder: Path, plans: Sequence[SlidePlan], workers: int) -> Iterator[None]:
    """Make the slides, in this process or in others, and yield after each."""
    if workers <= 1:
        for plan in plans:
            make_slide(folder, plan)
            yield
        return
    # Spawn, not fork: the caller may hold threads and locks (torch, Ray, OpenCV).
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start_worker) as pool:
        pending = [pool.submit(make_slide, folder, plan) for plan in plans]
        try:
            for done in as_completed(pending):
                done.result()
                yield
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _table(plans: Sequence[SlidePlan]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for plan in plans:
        patient = plan.patient
        uri = f"slides/{plan.slide_id}.svs"
        outcome = (patient.label, patient.time_months, patient.event)
        flags = (int(plan.pen), int(plan.blur))
        writer.writerow((plan.slide_id, patient.patient_id, uri, patient.site, *outcome, *flags))
    return text.getvalue().encode()


def _claim(folder: Path, arguments: dict[str, int]) -> None:
    """Make the folders, remove half-written files, and write the arguments down.

    Raises:
        ValueError: The folder holds a cohort made with other arguments.
    """
    for name in ("slides", "truth"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for half_written in (folder / name).glob("*.tmp"):
            half_written.unlink(missing_ok=True)
    note = folder / "truth" / "arguments.json"
    if note.exists() and (held := json.loads(note.read_text())) != arguments:
        msg = f"{folder} holds a cohort made with {held}, not {arguments}; choose another folder"
        raise ValueError(msg)
    if not note.exists():
        _replace(note, json.dumps(arguments).encode())


def _check(patients: int, slides: int, width_px: int, height_px: int) -> None:
    if patients < 2 or slides < patients:
        msg = f"need 2 patients or more and a slide each, not {patients=} and {slides=}"
        raise ValueError(msg)
    if min(width_px, height_px) < 512:
        msg = f"a slide is at least 512 pixels wide and high, not {width_px} x {height_px}"
        raise ValueError(msg)


def make_cohort(
    folder: Path,
    *,
    patients: int = 24,
    slides: int = 32,
    width_px: int = 3072,
    height_px: int = 2560,
    seed: int = 0,
    on_slide: Callable[[int, int], None] | None = None,
    workers: int | None = None,
) -> Path:
    """Make a cohort of slides with labels, survival and truth; one call per folder at a time.

    Slides that exist already are kept. With more than four slides to make, processes are
    spawned: a script that calls this needs the usual `if __name__ == "__main__"`.

    Args:
        folder: folder for `cohort.csv`, `slides/<slide_id>.svs`, and in `truth/` per slide the
            hidden state (json) and the masks at 1/32 (npz).
        patients: number of patients, at least 2.
        slides: number of slides, at least one per patient; more are further slides of the
            first patients.
        width_px: width of level 0, at least 512.
        height_px: height of level 0, at least 512.
        seed: seed of all random values. The same arguments give the same bytes.
        on_slide: function that is called after each slide with the numbers of done and all slides.
        workers: greatest number of processes; the number of cores if None.

    Returns:
        The path of `cohort.csv`, whose `uri` column is relative to its folder.

    Raises:
        ValueError: An argument is out of range, or the folder's cohort has other arguments.
    """
    _check(patients, slides, width_px, height_px)
    arguments = {
        "generator_version": GENERATOR_VERSION,
        "patients": patients,
        "slides": slides,
        "width_px": width_px,
        "height_px": height_px,
        "seed": seed,
    }
    _claim(folder, arguments)
    plans = plan_slides(draw_patients(patients, seed), slides, (width_px, height_px), seed)
    missing = [plan for plan in plans if not _slide_path(folder, plan.slide_id).exists()]
    processes = min(workers or os.cpu_count() or 1, math.ceil(len(missing) / _SLIDES_PER_WORKER))
    for done, _ in enumerate(_made(folder, missing, processes), slides - len(missing) + 1):
        if on_slide is not None:
            on_slide(done, slides)
    table = folder / "cohort.csv"
    _replace(table, _table(plans))
    return table
