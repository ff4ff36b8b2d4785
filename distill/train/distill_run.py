"""A distillation run as one value: all inputs that determine it, and the files of its folder."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from cluster import extension_sha256
from distill.recipes.recipe import Recipe
from distill.targets.missing_stats import split_slides
from distill.targets.tile_classes import read_classes
from distill.terms.term_table import TERMS
from distill.train.tile_choice import choose_tiles
from featurestore import Lake, Licence, check_licences, mpp_name
from ingest import column_licences, student_folder


@dataclass(frozen=True, kw_only=True)
class DistillRun:
    """A run of the training: student, recipe, data and folder. `config.json` holds the same.

    Attributes:
        student: name of the student.
        recipe: recipe of the training.
        identities: identity of each column that is read, by `TEACHER@MPP`.
        train: slides that the student is trained on.
        held_out: slides of the held-out patients.
        lake: URI of the lake.
        lake_version: version of the lake that all workers read.
        run: name of the run's folder, with a hash of all that determines the student.
        licences: licence of each teacher's column, with what it forbids.
        permission: the user's words on a permission for what a licence forbids; None if none.
        workers: number of workers that share each step. It decides which tiles are together in a
            step, and which random views they get.
        initial: facts of the weights from which the student starts; empty for random ones.
        tiles: facts of the training tiles, by mpp, where not all are seen.
        classes: facts of the classes of tiles, by the annotation's column that gives them.
    """

    student: str
    recipe: Recipe
    identities: Mapping[str, Any]
    train: Sequence[str]
    held_out: Sequence[str]
    lake: str
    lake_version: int
    run: str
    licences: Mapping[str, Licence]
    permission: str | None = None
    workers: int = 1
    initial: Mapping[str, Any] = field(default_factory=dict)
    tiles: Mapping[str, Any] = field(default_factory=dict)
    classes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def report_path(self) -> str:
        """Return the path of the student's report, which is written last."""
        return f"{student_folder(self.student)}/report.json"

    @property
    def config_path(self) -> str:
        """Return the path of the run's settings."""
        return self.path("config.json")

    @property
    def norms_path(self) -> str:
        """Return the path of the norms of the targets."""
        return self.path("norms.safetensors")

    @property
    def initial_path(self) -> str:
        """Return the path of the weights from which the student starts, if it has any."""
        return self.path("init.safetensors")

    @property
    def tiles_path(self) -> str:
        """Return the path of the numbers of the tiles that are seen, if not all are."""
        return self.path("tiles.safetensors")

    @property
    def checkpoint_path(self) -> str:
        """Return the path of the checkpoint."""
        return self.path("checkpoint.pt")

    @property
    def status_path(self) -> str:
        """Return the path of the file in which the first worker records its progress."""
        return self.path("status.json")

    @property
    def error_path(self) -> str:
        """Return the path of the error that stopped all workers."""
        return self.path("error.json")

    @property
    def lines_path(self) -> str:
        """Return the path of the record of all steps, a JSON object a line."""
        return self.path("metrics.jsonl")

    @property
    def events_path(self) -> str:
        """Return the path of the same record for TensorBoard."""
        return self.path("tensorboard/events.out.tfevents.slidelake")

    @property
    def curve_path(self) -> str:
        """Return the path of the picture of the losses."""
        return self.path("curve.png")

    def path(self, name: str) -> str:
        """Return the path in the lake of a file of the run's folder."""
        return f"runs/{self.run}/{name}"

    def name_of(self, path: str) -> str:
        """Return the name in the run's folder of a file of the lake."""
        return path.removeprefix(self.path(""))

    def to_json(self) -> dict[str, Any]:
        """Return the run as the content of `config.json`."""
        return {
            "student": self.student,
            "identities": dict(self.identities),
            "train": list(self.train),
            "held_out": list(self.held_out),
            "lake": self.lake,
            "lake_version": self.lake_version,
            "run": self.run,
            "workers": self.workers,
            "initial": dict(self.initial),
            "tiles": dict(self.tiles),
            "classes": dict(self.classes),
            "recipe": asdict(self.recipe),
            "licences": {name: licence.to_json() for name, licence in self.licences.items()},
            "permission": self.permission,
        }


def second_name(student: str) -> str:
    """Return the name of the second student of mutual distillation.

    >>> second_name("small")
    'small-peer'
    """
    return f"{student}-peer"


# Long for what it is given: all that decides a student.
def plan_run(
    lake: Lake,
    recipe: Recipe,
    *,
    student: str,
    slides: Sequence[str] | None = None,
    workers: int = 1,
    initial: Mapping[str, Any] | None = None,
    permission: str | None = None,
) -> DistillRun:
    """Split the slides and return the run, named by a hash of all inputs that determine it.

    Args:
        lake: the lake at the version that the workers read.
        recipe: recipe of the training.
        student: name of the student.
        slides: slides that are split into training and held-out slides; all ready slides if None.
        workers: number of workers that share each step.
        initial: facts of the weights from which the student starts, their hash among them.
        permission: the user's words on a permission for what a licence forbids.

    Raises:
        DistillError: a slide is not in the lake, or not ready, or the workers can't share a step.
        LicenceError: the licence of a teacher forbids to train models on its outputs.
    """
    recipe.schedule.tiles_of_worker(workers)
    licences = column_licences(lake, recipe.teachers)
    check_licences(licences, "training on outputs", permission=permission)
    train, held = split_slides(lake, holdout=recipe.holdout, seed=recipe.split_seed, slides=slides)
    chosen = choose_tiles(lake, recipe, train)
    tiles = {mpp_name(mpp): part.record() for mpp, part in chosen.items()}
    classes = {name: read_classes(lake, name).record() for name in recipe.class_columns}
    identities = {
        f"{teacher}@{mpp_name(mpp)}": lake.identity(teacher, mpp=mpp)
        for teacher, mpp in recipe.needs(lake.config.mpps)
    }
    hashed_inputs = {
        "student": student,
        "recipe": _hashed_recipe(recipe),
        "identities": identities,
        "train": train,
        "held_out": held,
        **_own_terms(recipe),
        # A single worker is left out: runs of earlier versions keep their names.
        **({"workers": workers} if workers > 1 else {}),
        **({"initial": dict(initial)} if initial else {}),
        **({"tiles": tiles} if tiles else {}),
        **({"classes": classes} if classes else {}),
    }
    text = json.dumps(hashed_inputs, sort_keys=True)
    return DistillRun(
        student=student,
        recipe=recipe,
        identities=identities,
        train=train,
        held_out=held,
        lake=lake.uri,
        lake_version=lake.version,
        run=f"distill-{recipe.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}",
        workers=workers,
        initial=initial or {},
        tiles=tiles,
        classes=classes,
        licences=licences,
        permission=permission,
    )


#: Fields that earlier versions did not have, with the values that stand for what these did.
LATER_FIELDS: Mapping[str, Mapping[str, object]] = {
    "student": {"init": "", "decode": "full", "sizes": (), "size_balance": "steps", "peer": ""},
    "views": {"shift": 0.0, "neighbours": False},
    "schedule": {"self_paced": 1.0},
    "tiles": {"clusters": 64, "coreset": "", "share": 1.0, "column": ""},
    "terms": {"labels": ""},
    "": {"tiles": {"where": "", "per_slide": 0, "balance": ""}},
}


def _hashed_recipe(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe without later fields at their defaults, so that earlier runs go on."""
    settings = asdict(recipe)
    parts = {"": [settings], "terms": settings["terms"]}
    for group, later in LATER_FIELDS.items():
        for part in parts.get(group) or [settings[group]]:
            for name, default in later.items():
                if part.get(name) == default:
                    del part[name]
    return settings


def _own_terms(recipe: Recipe) -> dict[str, Any]:
    """Return the hash of the file of each term that is a user's own; empty if none is."""
    own = {
        term.kind: sha256
        for term in recipe.terms
        if term.kind in TERMS and (sha256 := extension_sha256(TERMS[term.kind].loader))
    }
    return {"extensions": own} if own else {}
