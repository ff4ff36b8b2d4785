"""What a recipe says: the student, the targets, the terms of the loss, the views, the schedule.

A recipe is a frozen value: a hash of it, with the lake's, names a run. Recipes themselves are in
`recipes.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from distill.errors import DistillError

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class TileStudent:
    """A timm network that sees the pixels of a tile.

    Attributes:
        architecture: timm's name of it.
        input_px: side of the square that it sees.
        arguments: for building it, as a teacher card has them.
    """

    architecture: str = "mobilenetv4_conv_small_050"
    input_px: int = 128
    arguments: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FusionStudent:
    """A network over the teachers' features of a tile, which makes one vector of them.

    Attributes:
        width: of the vector.
        blocks: of cross-attention.
        heads: of attention.
    """

    width: int = 256
    blocks: int = 4
    heads: int = 4


@dataclass(frozen=True, kw_only=True)
class RegionStudent:
    """A network over a coarse tile's grids of features at three mpps.

    Attributes:
        width: of its tokens.
        depth: blocks of the encoder.
        heads: of attention.
        prompts: learned tokens in each block of the coarse stream.
        attention_layers: of hierarchical attention.
        prototypes: of self-distillation.
    """

    width: int = 192
    depth: int = 4
    heads: int = 4
    prompts: int = 10
    attention_layers: int = 2
    prototypes: int = 1024


@dataclass(frozen=True, kw_only=True)
class Term:
    """One part of the loss.

    Attributes:
        kind: a name in `terms.TERMS`.
        weight: of it.
        teachers: whose targets; all of the recipe's if empty.
        settings: numbers that the kind knows; its own defaults otherwise.
    """

    kind: str
    weight: float = 1.0
    teachers: tuple[str, ...] = ()
    settings: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Views:
    """How pixels are changed on the student's side; targets stay those of the tile as it is.

    Attributes:
        dihedral: turned and flipped at random, cached grids with them.
        stain: haematoxylin, eosin and the rest are scaled and shifted by up to this, each.
        brightness: brightness, contrast and saturation are scaled by up to 1 +- this.
    """

    dihedral: bool = True
    stain: float = 0.05
    brightness: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How the loop trains.

    Attributes:
        epochs: passes over the training tiles.
        batch_tiles: tiles in an optimiser step, over all workers and all its parts.
        accumulate: parts of a step whose gradients are added up, for batches beyond the memory.
        learning_rate: peak of AdamW's, after a warm-up and before a cosine decay to zero.
        weight_decay: AdamW's; not for biases and norms.
        warmup_share: of the steps.
        clip: the gradient's largest norm.
        ema: momentum of the moving average that is kept as the student; none if 0.
        precision: of the networks' arithmetic; losses and statistics are float32 always.
        compile: whether torch.compile is used.
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

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.accumulate < 1 or self.batch_tiles < 2 * self.accumulate:
            msg = (
                f"epochs={self.epochs}, batch_tiles={self.batch_tiles}, accumulate="
                f"{self.accumulate} given; at least 1 epoch and 2 tiles in each part of a step "
                "(batch normalisation needs two samples)"
            )
            raise DistillError(msg)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides a training run, apart from the data.

    Attributes:
        name: of the recipe.
        teachers: columns whose cached features are matched.
        student: what is trained.
        terms: of the loss.
        mpps: of the tiles; those of the lake that fit if empty. Of a recipe of several levels, one
            each, in any order.
        levels: nested mpps that a sample is of: 1, or a tile with the tiles under it.
        targets: normalisation of the teachers' features, one of `targets.NORMS`.
        head: kind of head, one of `heads.HEADS`.
        head_width: its hidden units.
        weighting: of teachers: static, keep-max or balance.
        keep: probability of keep-max.
        widths: first so many channels of the embedding that must do alone (Matryoshka).
        views: of the student's pixels.
        schedule: of training.
        holdout: share of the patients that nothing is fitted on.
        split_seed: of which patients these are.
        seed: of the initial weights, the order of tiles and the views.
    """

    name: str
    teachers: tuple[str, ...]
    student: TileStudent | FusionStudent | RegionStudent
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
        """Whether the student sees any."""
        return isinstance(self.student, TileStudent)

    def levels_of(self, known: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The mpps of the tiles that are read, and those of the tiles under them.

        Args:
            known: the lake's mpps.

        Raises:
            DistillError: the lake has no tiles at one of them, or there are not as many as levels.
        """
        missing = sorted(set(self.mpps) - set(known))
        if missing:
            msg = f"recipe '{self.name}' asks for mpps {missing}; the lake has {list(known)}"
            raise DistillError(msg)
        if self.levels == 1:
            return self.mpps or tuple(known), ()
        chosen = sorted(self.mpps or known, reverse=True)
        if len(chosen) != self.levels:
            msg = (
                f"recipe '{self.name}' is of {self.levels} mpps that nest, one in the other; "
                f"{chosen} given: name {self.levels} by --mpp"
            )
            raise DistillError(msg)
        return (chosen[0],), tuple(chosen[1:])

    def needs(self, known: Sequence[float]) -> list[tuple[str, float]]:
        """The (teacher, mpp) whose features every tile must have."""
        read, under = self.levels_of(known)
        if self.levels == 1:
            return [(teacher, mpp) for mpp in read for teacher in self.teachers]
        if isinstance(self.student, RegionStudent):
            # The first teacher is what the student sees; the others are matched at the finest.
            seen = [(self.teachers[0], mpp) for mpp in (*read, *under)]
            return seen + [(teacher, under[-1]) for teacher in self.teachers[1:]]
        return [(teacher, mpp) for mpp in under for teacher in self.teachers]
