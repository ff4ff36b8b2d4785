"""What a kind of file needs to be checked: its damage, files without a checksum, and adding it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from featurestore.keep.verify.damage import Damage
from featurestore.lake import Lake


@dataclass(frozen=True, kw_only=True)
class FileCheck:
    """Checks one kind of file whose checksum is kept somewhere in the lake.

    A kind that `verify` checks anyhow while it reads slide after slide (indexes of shards) yields
    no damage here; it only counts and adds.

    Attributes:
        name: the kind in the plural, for people: "indexes of shards".
        damage: yields what is not as its checksum says, without raising for damage.
        missing: counts the files of a lake that have no checksum.
        add: records the checksums that are missing, and returns how many; the files are read as
            they are now. It takes the lake's lock by itself.
    """

    name: str
    damage: Callable[[Lake], Iterator[Damage]]
    missing: Callable[[Lake], int]
    add: Callable[[Lake], int]
