"""A lake of the real slide alone, cut and filled in this process, without Ray."""

import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featurestore import Lake, LakeConfig, create_lake, open_lake
from ingest import Card, Teacher
from ingest.cut import cut_slide
from ingest.select.sources import fingerprint
from ingest.teachers.extract_plan import plan
from ingest.teachers.extractor import Extractor
from ingest.teachers.outputs import outputs_of
from ingest.teachers.views.chosen_views import choose_views
from ingest.teachers.views.field_of_view import FovMode
from ingest.teachers.work.units import Outcome, Unit
from tests.conftest import REAL_SLIDE, ROOT

EXAMPLE = ROOT / "examples" / "own_encoder.py"
Float32Array = npt.NDArray[np.float32]


def make_lake(folder: Path, config: LakeConfig) -> Lake:
    """Return a lake of the real slide, of which a copy lies beside it, as slide `real`."""
    folder.mkdir()
    uri = shutil.copy(REAL_SLIDE, folder / "slide.svs")
    lake = create_lake(folder / "lake", config)
    size, mark = fingerprint(str(uri))
    row = {"slide_id": "real", "uri": str(uri), "bytes": size, "fingerprint": mark}
    lake.committer.commit_slides([cut_slide(lake.store, config, lake.committer.register([row])[0])])
    return open_lake(folder / "lake")


def teacher_of(card: Card, name: str | None = None) -> Teacher:
    """Return a card as an encoder: the network of the example, which needs no weights."""
    return Teacher(
        card=card,
        outputs=tuple(outputs_of(name or card.name, card)),
        sha256="0" * 64,
        source=EXAMPLE.read_text(),
        where=EXAMPLE.name,
    )


def run(lake: Lake, unit: Unit, teachers: Sequence[Teacher]) -> Outcome:
    """Do what a worker does with a unit."""
    task = {"unit": pickle.dumps(unit), "teachers": pickle.dumps(list(teachers))}
    answer = Extractor()({**task, "store": lake.uri, "threads": 2, "device": "cpu"})
    outcome: Outcome = pickle.loads(answer["outcome"])
    assert outcome.reason is None
    return outcome


def fill(
    lake: Lake, *teachers: Teacher, mpp: float, mode: FovMode | None = None
) -> tuple[Lake, Outcome]:
    """Do what an extract does with a lake of one fragment."""
    chosen = choose_views(lake, teachers, [mpp], mode)
    (unit,) = plan(lake, teachers, [mpp], chosen=chosen)
    outcome = run(lake, unit, teachers)
    lake.committer.commit_columns(mpp, outcome.files)
    return lake.refreshed(), outcome


def cosines(one: npt.ArrayLike, other: npt.ArrayLike) -> Float32Array:
    """Return the cosine of each row of one array with that of another [N]."""
    a, b = np.asarray(one, np.float32), np.asarray(other, np.float32)
    cosine: Float32Array = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return cosine
