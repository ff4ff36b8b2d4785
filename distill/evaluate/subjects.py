"""What is compared on one split: students and their comparators, each as a way to embed tiles."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from distill.errors import DistillError
from distill.evaluate.compared_students import Found, Split
from distill.evaluate.embeddings import (
    Runner,
    fit_pca,
    joined_features,
    run_student,
    run_teacher,
    run_undistilled,
)
from distill.evaluate.sampled_tiles import Tiles
from featurestore import Lake

if TYPE_CHECKING:
    from ingest.teachers.cards.card import Card

Kind = Literal["student", "single_teacher", "undistilled", "pca", "teacher"]
Array = npt.NDArray[np.floating]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One embedding that is measured.

    Attributes:
        kind: what it is.
        name: of the student, teacher, network or PCA.
        alike: equal for subjects whose numbers are put together: seeds of one student.
        seed: of it, if it has one.
        embed: embeddings [N, D] of tiles.
        runner: what runs it on pixels, if that can be done here.
        found: the student that it is.
    """

    kind: Kind
    name: str
    alike: str
    seed: int | None
    embed: Callable[[Tiles], Array]
    runner: Runner | None = None
    found: Found | None = None


@dataclass(frozen=True, kw_only=True)
class How:
    """How an evaluation is run: see `evaluate`.

    Attributes:
        tiles: most tiles per mpp, of training slides and of held-out ones each.
        robust_tiles: most held-out tiles that are perturbed.
        teacher_seconds: a teacher that would take longer on perturbed tiles is left out there.
        seed: of all that is drawn.
        device: torch's name of it.
        threads: of the CPU.
    """

    tiles: int = 2048
    robust_tiles: int = 256
    teacher_seconds: float = 300.0
    seed: int = 0
    device: str = "cpu"
    threads: int = 1

    def __post_init__(self) -> None:
        if self.tiles < 16 or self.robust_tiles < 2 or self.threads < 1:
            msg = (
                f"tiles={self.tiles}, robust_tiles={self.robust_tiles}, threads={self.threads} "
                "given; at least 16, 2 and 1"
            )
            raise DistillError(msg)

    @property
    def on(self) -> dict[str, Any]:
        """Where networks run."""
        return {"device": self.device, "threads": self.threads}


def subjects(
    lake: Lake, split: Split, train: Mapping[float, Tiles], how: How
) -> tuple[list[Subject], list[str]]:
    """All that is compared on a split, and what could not be run on pixels.

    Args:
        lake: where they are.
        split: the students.
        train: training tiles per mpp, on which PCA and batch norms are fitted.
        how: device and seeds.
    """
    students = [_student(lake, found, split, how) for found in split.runnable]
    some = train[min(train)].first(1)
    widths = {subject.embed(some).shape[1] for subject in students if subject.kind == "student"}
    fitted = [_pca(split, train, width) for width in sorted(widths)]
    teachers, notes = _teachers(lake, split, min(train), how)
    notes += [
        f"{found.name} sees features: no untrained network beside it, no pixels to perturb"
        for found in split.students
        if found.card is None
    ]
    return [*students, *_undistilled(split, train, how), *fitted, *teachers], notes


def _student(lake: Lake, found: Found, split: Split, how: How) -> Subject:
    runner = None if found.card is None else run_student(lake, found.name, **how.on)
    seed = found.recipe.get("seed")
    return Subject(
        kind="student" if found in split.students else "single_teacher",
        name=found.name,
        alike=found.alike,
        seed=None if seed is None else int(seed),
        embed=_Cached(found.name) if runner is None else runner.embed,
        runner=runner,
        found=found,
    )


def _undistilled(split: Split, train: Mapping[float, Tiles], how: How) -> list[Subject]:
    """Each network untrained, with as many seeds as it has students."""
    networks: dict[str, list[Card]] = {}
    for student in split.students:
        if student.card is not None:
            networks.setdefault(student.network, []).append(student.card)
    # Of the finest mpp: an untrained network has no reason to see one rather than another.
    tiles = train[min(train)]
    found = []
    for network, (card, *more) in networks.items():
        for seed in range(how.seed, how.seed + 1 + len(more)):
            runner = run_undistilled(card, tiles, seed=seed, **how.on)
            found.append(
                Subject(
                    kind="undistilled",
                    name=f"undistilled {card.architecture}",
                    alike=network,
                    seed=seed,
                    embed=runner.embed,
                    runner=runner,
                )
            )
    return found


def _pca(split: Split, train: Mapping[float, Tiles], width: int) -> Subject:
    pca = fit_pca(joined_features(list(train.values()), split.teachers), width)
    name = f"PCA {width} of {len(split.teachers)} teachers"

    def embed(tiles: Tiles) -> Array:
        return pca({teacher: _Cached(teacher)(tiles) for teacher in split.teachers})

    return Subject(kind="pca", name=name, alike=name, seed=None, embed=embed)


def _teachers(lake: Lake, split: Split, mpp: float, how: How) -> tuple[list[Subject], list[str]]:
    """Cached features; with the network too where its weights are on this machine."""
    found, notes = [], []
    for name in split.teachers:
        runner = None
        try:
            _refuse_under(split, name)
            runner = run_teacher(lake, name, mpp=mpp, **how.on)
        except DistillError as error:
            notes.append(f"{error}; its robustness and speed were not measured")
        shown = f"{name} under" if split.under else name
        found.append(
            Subject(
                kind="teacher",
                name=shown,
                alike=shown,
                seed=None,
                embed=_Cached(name),
                runner=runner,
            )
        )
    return found, notes


def _refuse_under(split: Split, name: str) -> None:
    if split.under:
        msg = f"{name}: taken as its mean over the tiles of {split.under} mpp under each tile"
        raise DistillError(msg)


@dataclass(frozen=True)
class _Cached:
    """A column as the lake has it."""

    name: str

    def __call__(self, tiles: Tiles) -> Array:
        if self.name not in tiles.features:
            msg = f"labelled tiles have no features of {self.name}"
            raise DistillError(msg)
        return tiles.features[self.name]
