"""Settings of a student's network, one frozen class per kind of student.

A class holds numbers and names only, since it is written down with the run. What its kind does
(build and train, keep, restore) is its entry in `distill.students.student_table`, under the name of
the class.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, get_args

from distill.errors import DistillError


class StudentSettings:
    """Base class of all settings of a student.

    Attributes:
        sees_pixels: whether the student reads the pixels of tiles; else it reads features alone.
    """

    sees_pixels: ClassVar[bool] = False

    @property
    def class_columns(self) -> tuple[str, ...]:
        """Return the columns of annotations that the student's training reads."""
        return ()

    def needs(
        self, teachers: Sequence[str], read: Sequence[float], under: Sequence[float]
    ) -> list[tuple[str, float]]:
        """Return the (teacher, mpp) of the features that every tile must have.

        Args:
            teachers: the recipe's teachers.
            read: mpps of the tiles that are read.
            under: finer mpps of the tiles under these that are read too, coarse to fine.
        """
        return [(teacher, mpp) for mpp in under or read for teacher in teachers]


@dataclass(frozen=True, kw_only=True)
class TileStudent(StudentSettings):
    """A timm network that reads the pixels of a tile.

    Attributes:
        architecture: timm's name of the network.
        input_px: side of the square input, in pixels.
        arguments: arguments for building the network, as in a teacher's card.
        init: weights to start from, matched by name and shape: `timm` (pretrained ones of the
            architecture), a file of weights, a student of the lake, or a teacher, whose first
            layers are taken where it has more; random weights if empty.
        decode: how tiles become the input in training: full (all pixels, and a resize, as `extract`
            does it) or scaled (libjpeg's scaled decode: faster, and slightly other pixels).
        sizes: further sides of the input, in pixels; each step draws one of all sides. The student
            is run at `input_px`, and its fidelity is measured at each.
        size_balance: how often a side is drawn: steps (all equally often) or tokens (as many tokens
            of each side over the run).
        peer: timm's name of the second network that the term `mutual` trains beside this one; the
            same as `architecture` if empty.

    Raises:
        DistillError: there is no such way to decode or to balance, or a side is not above 0.
    """

    sees_pixels: ClassVar[bool] = True

    architecture: str = "mobilenetv4_conv_small_050"
    input_px: int = 128
    arguments: Mapping[str, object] = field(default_factory=dict)
    init: str = ""
    decode: Literal["full", "scaled"] = "full"
    sizes: tuple[int, ...] = ()
    size_balance: Literal["steps", "tokens"] = "steps"
    peer: str = ""

    def __post_init__(self) -> None:
        for name in ("decode", "size_balance"):
            allowed = get_args(type(self).__annotations__[name])
            if getattr(self, name) not in allowed:
                msg = f"{name}='{getattr(self, name)}' given; allowed: {', '.join(allowed)}"
                raise DistillError(msg)
        if min((self.input_px, *self.sizes)) < 1:
            msg = f"input_px={self.input_px}, sizes={list(self.sizes)} given; each side is above 0"
            raise DistillError(msg)

    def of_peer(self) -> "TileStudent":
        """Return the settings of the second network of mutual distillation."""
        if self.peer in ("", self.architecture):
            return replace(self, peer="", init="")
        return replace(self, architecture=self.peer, arguments={}, peer="", init="")

    @property
    def all_sizes(self) -> tuple[int, ...]:
        """Return all sides of the input in pixels, ascending, each once."""
        return tuple(sorted({self.input_px, *self.sizes}))


@dataclass(frozen=True, kw_only=True)
class FusionStudent(StudentSettings):
    """A network that fuses the teachers' features of a tile into one vector.

    Attributes:
        width: width of the vector.
        blocks: number of blocks of cross-attention.
        heads: number of attention heads.
    """

    width: int = 256
    blocks: int = 4
    heads: int = 4


@dataclass(frozen=True, kw_only=True)
class RegionStudent(StudentSettings):
    """A network over a coarse tile's grids of features at three mpps.

    Attributes:
        width: width of the tokens.
        depth: number of blocks of the encoder.
        heads: number of attention heads.
        prompts: number of learned tokens in each block of the coarse stream.
        attention_layers: number of layers of hierarchical attention.
        prototypes: number of prototypes of self-distillation.
    """

    width: int = 192
    depth: int = 4
    heads: int = 4
    prompts: int = 10
    attention_layers: int = 2
    prototypes: int = 1024

    def needs(
        self, teachers: Sequence[str], read: Sequence[float], under: Sequence[float]
    ) -> list[tuple[str, float]]:
        """Return the first teacher (the student's input) at all mpps, the others at the finest."""
        if not under:
            return super().needs(teachers, read, under)
        input_features = [(teachers[0], mpp) for mpp in (*read, *under)]
        return input_features + [(teacher, under[-1]) for teacher in teachers[1:]]


@dataclass(frozen=True, kw_only=True)
class ContextStudent(StudentSettings):
    """A network that sees a coarse tile together with the tiles of finer mpps under it.

    Attributes:
        width: width of the tokens and of the vector.
        depth: number of blocks of the encoder.
        decoder_depth: number of blocks of the decoder, which is not needed after training.
        heads: number of attention heads.
        reads: teacher whose features make the student's column; the first teacher if empty.
            Training reads each teacher in turn, so that any one will do.
    """

    width: int = 384
    depth: int = 6
    decoder_depth: int = 1
    heads: int = 6
    reads: str = ""

    def needs(
        self, teachers: Sequence[str], read: Sequence[float], under: Sequence[float]
    ) -> list[tuple[str, float]]:
        """Return all teachers at all mpps."""
        return [(teacher, mpp) for mpp in (*read, *under) for teacher in teachers]


@dataclass(frozen=True, kw_only=True)
class RobustStudent(StudentSettings):
    """A small head on a teacher's column that makes it less dependent on stain and site.

    Attributes:
        atoms: number of low-rank maps that are mixed for each tile.
        rank: rank of each map.
        hidden: hidden units of the two networks that mix the maps and shift the vector.
        site: annotation's column of sites or scanners, as `clinical.site`; if empty, all slides
            count as of one site.
    """

    atoms: int = 16
    rank: int = 8
    hidden: int = 256
    site: str = ""

    @property
    def class_columns(self) -> tuple[str, ...]:
        """Return the column of sites."""
        return (self.site,) if self.site else ()
