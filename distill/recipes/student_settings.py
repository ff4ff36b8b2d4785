"""Settings of a student's network, one frozen class per kind of student.

A class holds numbers and names only, since it is written down with the run. What its kind does
(build and train, keep, restore) is its entry in `distill.students.student_table`, under the name of
the class.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

from distill.errors import DistillError


class StudentSettings:
    """Base class of all settings of a student.

    Attributes:
        sees_pixels: whether the student reads the pixels of tiles; else it reads features alone.
    """

    sees_pixels: ClassVar[bool] = False

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
        decode: how tiles become the input in training: full (all pixels, and a resize, as `extract`
            does it) or scaled (libjpeg's scaled decode: faster, and slightly other pixels).

    Raises:
        DistillError: there is no such way to decode.
    """

    sees_pixels: ClassVar[bool] = True

    architecture: str = "mobilenetv4_conv_small_050"
    input_px: int = 128
    arguments: Mapping[str, object] = field(default_factory=dict)
    decode: Literal["full", "scaled"] = "full"

    def __post_init__(self) -> None:
        if self.decode not in get_args(type(self).__annotations__["decode"]):
            msg = f"decode='{self.decode}' given; allowed: full, scaled"
            raise DistillError(msg)


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
