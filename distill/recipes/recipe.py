"""A recipe: the student, the targets, the terms of the loss, the views, the schedule.

A recipe is a frozen value: a hash of it, with the lake's, names a run. Recipes themselves are in
`distill.recipes.recipe_table`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from cluster import counted
from distill.errors import DistillError
from distill.recipes.student_settings import StudentSettings

Precision = Literal["float32", "bfloat16"]
CORESETS = ("coverage", "hard", "easy", "random")
Settings = TypeVar("Settings", bound=StudentSettings)


@dataclass(frozen=True, kw_only=True)
class Term:
    """One part of the loss.

    Attributes:
        kind: a name in `terms.TERMS`.
        weight: weight of the term in the loss.
        teachers: columns that are matched; all columns of the recipe if empty.
        settings: numbers that replace the kind's defaults, by name.
        labels: column of an annotation of tiles, slides or patients that gives the tiles' classes,
            as `clinical.grade`; none if empty.
    """

    kind: str
    weight: float = 1.0
    teachers: tuple[str, ...] = ()
    settings: Mapping[str, float] = field(default_factory=dict)
    labels: str = ""


@dataclass(frozen=True, kw_only=True)
class Views:
    """Changes of the pixels that the student reads; targets stay those of the unchanged tile.

    Attributes:
        dihedral: whether tiles are turned and flipped at random, cached grids with them.
        stain: largest change of scale and shift of haematoxylin, eosin and the residual, each.
        brightness: largest relative change of brightness, contrast and saturation, each.
        shift: standard deviation of a shift down and across, in the student's tokens, rounded to
            whole ones; no shift if 0. The tile is mirrored at its border; patch tokens that are
            then seen at another place are compared there, mirrored ones not at all.
        neighbours: whether a shifted view shows the tiles to the right and below in place of a
            mirrored border, with their patch tokens as targets; tiles without these neighbours are
            then not seen. Shifts go down and to the right, before the turn.
    """

    dihedral: bool = True
    stain: float = 0.05
    brightness: float = 0.0
    shift: float = 0.0
    neighbours: bool = False

    def __post_init__(self) -> None:
        if self.shift < 0 or (self.neighbours and not self.shift):
            msg = (
                f"shift={self.shift:g}, neighbours={self.neighbours} given; a shift is 0 or more, "
                "and neighbours are seen in shifted views alone: --set views.shift=0.5"
            )
            raise DistillError(msg)


@dataclass(frozen=True, kw_only=True)
class TileChoice:
    """The training tiles that are seen; those without a teacher's features never are.

    Attributes:
        where: predicate on the tiles' columns and annotations, as `tissue > 0.5`; all if empty.
        per_slide: greatest number of tiles of a slide, drawn at random; all if 0.
        balance: groups that are seen equally often: slide, patient, cluster (k-means on a column),
            or a column of an annotation of slides or patients (`clinical.site`, or `site` where one
            annotation alone has it); none if empty. An epoch stays as long: of large groups a part
            is seen, small ones come again.
        clusters: number of clusters of k-means.
        coreset: how a share of the tiles is chosen: coverage (of each slide tiles that are far from
            each other), hard or easy (far from or near to the centre of their cluster) or random;
            all if empty.
        share: share of the tiles that a coreset keeps.
        column: column of features of clusters and coresets; the first embedding of the recipe's
            teachers if empty.
    """

    where: str = ""
    per_slide: int = 0
    balance: str = ""
    clusters: int = 64
    coreset: str = ""
    share: float = 1.0
    column: str = ""

    def __post_init__(self) -> None:
        if self.coreset not in ("", *CORESETS) or not 0 < self.share <= 1 or self.clusters < 2:
            msg = (
                f"coreset='{self.coreset}', share={self.share:g}, clusters={self.clusters} given; "
                f"a coreset is {', '.join(CORESETS)} or none, its share above 0 and at most 1, and "
                "clusters are 2 or more"
            )
            raise DistillError(msg)
        if (self.share < 1) != bool(self.coreset):
            msg = (
                f"coreset='{self.coreset}', share={self.share:g} given; a coreset has a share "
                "below 1, and a share a coreset: --coreset random --share 0.4"
            )
            raise DistillError(msg)
        if self.per_slide < 0:
            msg = f"per_slide={self.per_slide} given; give 1 or more, or 0 for all tiles"
            raise DistillError(msg)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Settings of the training loop.

    Attributes:
        epochs: passes over the training tiles.
        batch_tiles: tiles in an optimiser step, over all workers and all parts of the step: each
            worker has `batch_tiles / (workers x accumulate)` in each part, a whole number. The
            result depends on it, not on how many workers share it but for batch norms, which see
            a worker's own part.
        accumulate: number of parts of a step; gradients are summed, for batches beyond the memory.
            Terms that compare tiles compare those of a part.
        learning_rate: peak learning rate of AdamW, after warm-up and before a cosine decay to zero.
        weight_decay: weight decay of AdamW; biases and norms have none.
        warmup_share: share of the steps that are warm-up.
        clip: largest norm of the gradient.
        ema: momentum of the moving average that is kept as the student; no average if 0.
        precision: precision of the networks' arithmetic; losses and statistics are always float32.
        compile: whether torch.compile is used.
        self_paced: share of a step's tiles, those of the smallest losses, that count at the first
            step; it grows linearly to 1, which it has from the middle of the run on. No pace if 1.
    """

    epochs: int = 8
    batch_tiles: int = 64
    accumulate: int = 1
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup_share: float = 0.1
    clip: float = 1.0
    ema: float = 0.0
    precision: Precision = "float32"
    compile: bool = False
    self_paced: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.self_paced <= 1:
            msg = f"self_paced={self.self_paced:g} given; a share above 0 and at most 1"
            raise DistillError(msg)
        if self.epochs < 1 or self.accumulate < 1 or self.batch_tiles < 2 * self.accumulate:
            msg = (
                f"epochs={self.epochs}, batch_tiles={self.batch_tiles}, accumulate="
                f"{self.accumulate} given; at least 1 epoch and 2 tiles in each part of a step "
                "(batch normalisation needs two samples)"
            )
            raise DistillError(msg)
        self.tiles_of_worker()

    def tiles_of_worker(self, workers: int = 1) -> int:
        """Return the number of tiles that each worker has in each part of a step.

        Args:
            workers: number of workers that share a step.

        Raises:
            DistillError: the step can't be shared equally, or a worker would have a single tile,
                of which batch norms make nothing.
        """
        parts = workers * self.accumulate
        share, rest = divmod(self.batch_tiles, parts)
        if share < 2 or rest:
            sharing = f"{counted(workers, 'worker')} x {counted(self.accumulate, 'part')}"
            fitting = [parts * number for number in (max(2, share), max(2, share) + bool(rest))]
            sizes = " or ".join(map(str, dict.fromkeys(fitting)))
            msg = (
                f"a step of {counted(self.batch_tiles, 'tile')} over {sharing} is "
                f"{self.batch_tiles / parts:.3g} tiles for each; a whole number of at least 2 is "
                f"needed: --batch-tiles {sizes}"
            )
            raise DistillError(msg)
        return share


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings that determine a training run, apart from the data.

    Attributes:
        name: the recipe's name.
        teachers: columns of cached features that are matched.
        student: settings of the network that is trained.
        terms: terms of the loss.
        mpps: mpps of the tiles; if empty, the mpps of the lake that fit. With several levels one
            mpp for each level, in any order.
        levels: number of nested mpps in a sample: 1, or more for a tile with the tiles under it.
        targets: normalisation of the teachers' features, one of `target.NORMS`.
        head: kind of head, one of `heads.HEADS`.
        head_width: number of hidden units of a head.
        weighting: weighting of teachers: static, keep-max or balance.
        keep: probability with which keep-max keeps a teacher.
        widths: numbers of first channels of the embedding that are trained alone too (Matryoshka).
        views: random changes of the student's pixels.
        tiles: the training tiles that are seen.
        schedule: settings of the training loop.
        holdout: share of the patients that no part is fitted on.
        split_seed: seed of the choice of held-out patients.
        seed: seed of the initial weights, the order of tiles and the views.

    Examples:
        >>> recipe = sl.make_recipe("agglomerate", ("uni2_h", "virchow2"), epochs=5)
        >>> recipe.teachers, recipe.schedule.epochs, recipe.targets
        (('uni2_h', 'virchow2'), 5, 'phi-s')
    """

    name: str
    teachers: tuple[str, ...]
    student: StudentSettings
    terms: tuple[Term, ...]
    mpps: tuple[float, ...] = ()
    levels: int = 1
    targets: str = "phi-s"
    head: str = "mlp"
    head_width: int = 512
    weighting: str = "static"
    keep: float = 0.5
    widths: tuple[int, ...] = ()
    views: Views = Views()
    tiles: TileChoice = TileChoice()
    schedule: Schedule = Schedule()
    holdout: float = 0.25
    split_seed: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.teachers:
            msg = f"recipe '{self.name}' needs at least one teacher"
            raise DistillError(msg)
        if not self.terms:
            msg = f"recipe '{self.name}' has no terms, so nothing to learn"
            raise DistillError(msg)

    @property
    def pixels(self) -> bool:
        """Whether the student reads pixels.

        Examples:
            >>> sl.make_recipe("agglomerate", ("uni2_h",)).pixels
            True
        """
        return self.student.sees_pixels

    @property
    def class_columns(self) -> tuple[str, ...]:
        """Return the columns of annotations that terms and student read, each once.

        Examples:
            >>> sl.make_recipe("agglomerate", ("uni2_h",)).class_columns
            ()
        """
        named = [term.labels for term in self.terms if term.labels]
        return tuple(dict.fromkeys([*named, *self.student.class_columns]))

    def student_as(self, kind: type[Settings]) -> Settings:
        """Return the student's settings, checked to be of a kind.

        Raises:
            TypeError: the settings are of another kind.
        """
        if not isinstance(self.student, kind):
            msg = (
                f"recipe '{self.name}' trains a {type(self.student).__name__}, not a "
                f"{kind.__name__}"
            )
            raise TypeError(msg)
        return self.student

    def levels_of(self, lake_mpps: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the mpps of the tiles that are read, and the finer mpps of the tiles under them.

        Args:
            lake_mpps: mpps of the lake.

        Raises:
            DistillError: the lake has no tiles at an mpp, or the number of mpps is not `levels`.
        """
        missing = sorted(set(self.mpps) - set(lake_mpps))
        if missing:
            msg = f"recipe '{self.name}' needs mpps {missing}; the lake has {list(lake_mpps)}"
            raise DistillError(msg)
        if self.levels == 1:
            return self.mpps or tuple(lake_mpps), ()
        chosen = sorted(self.mpps or lake_mpps, reverse=True)
        if len(chosen) != self.levels:
            msg = (
                f"recipe '{self.name}' is of {self.levels} mpps that nest, one in the other; "
                f"{chosen} given: name {self.levels} by --mpp"
            )
            raise DistillError(msg)
        return (chosen[0],), tuple(chosen[1:])

    def needs(self, lake_mpps: Sequence[float]) -> list[tuple[str, float]]:
        """Return the (teacher, mpp) of the features that every tile must have.

        Args:
            lake_mpps: mpps of the lake.
        """
        read, under = self.levels_of(lake_mpps)
        return self.student.needs(self.teachers, read, under)
