"""Bags on the device of a model: on a GPU pinned, sent ahead, and kept there where they fit.

On a CPU a bag is where the model is, and its features are cast when they are used. A GPU has its
bags read, cut to size and sent by a thread, on a stream of their own, while it works on the bag
before. Bags go there as float16, half the bytes, and stay up to a share of its free memory, so that
later epochs send nothing. The order, the subsets and the numbers are the same either way.

Shape letters: N tiles, D feature width, K coordinates.
"""

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from downstream.mil.bag_sequence import BagSequence, as_tensor, floats
from downstream.mil.read_ahead import read_ahead

if TYPE_CHECKING:
    from downstream.run.feature_bags import PatientBag

#: Share of a GPU's free memory in which one training keeps bags.
KEPT_SHARE = 0.4

Rows = NDArray[np.int64] | NDArray[np.bool_] | slice
EVERY = slice(None)
Tensors = TypeVar("Tensors", bound="HasTensors")


class HasTensors(Protocol):
    """A step's input, with all the tensors that it was sent as."""

    def tensors(self) -> list[Tensor]:
        """Return the tensors on the device."""


@dataclass(frozen=True, kw_only=True)
class SentBag:
    """A whole bag on a device.

    Attributes:
        features: float16[N, D].
        places: int64[N, K].
        family: see `PatientBag`; it stays on the host, where subsets are drawn.
    """

    features: Tensor
    places: Tensor
    family: NDArray[np.int32]

    def __len__(self) -> int:
        """Return the number of tiles."""
        return len(self.family)


class Room:
    """Memory of a device that is left for bags.

    Args:
        size: bytes.
    """

    def __init__(self, size: int) -> None:
        self._left = size

    @classmethod
    def of(cls, device: torch.device) -> "Room":
        """Return a share of a GPU's free memory; nothing of a CPU, whose bags are there already."""
        if device.type != "cuda":
            return cls(0)
        return cls(int(KEPT_SHARE * torch.cuda.mem_get_info(device)[0]))

    def take(self, size: int) -> bool:
        """Take some bytes and return True, or return False where they are not left."""
        fits = size <= self._left
        self._left -= size if fits else 0
        return fits


class BagFeed:
    """The bags of some patients for a model on a device.

    Args:
        bags: one bag per patient.
        device: device of the model.
        room: memory of the device in which bags stay; several feeds may share it.
    """

    def __init__(self, bags: BagSequence, device: torch.device, *, room: Room) -> None:
        self._bags, self.device, self._room = bags, device, room
        self._kept: dict[int, SentBag] = {}

    def __len__(self) -> int:
        """Return the number of patients."""
        return len(self._bags)

    def bag(self, index: int) -> "PatientBag | SentBag":
        """Return a bag: where it is kept on the device, or else as it was read."""
        if index in self._kept:
            return self._kept[index]
        bag = self._bags[index]
        if not self._room.take(bag.features.nbytes + bag.places.nbytes):
            return bag
        self._kept[index] = SentBag(
            features=self.send(as_tensor(bag.features)),
            places=self.send(as_tensor(bag.places)),
            family=bag.family,
        )
        return self._kept[index]

    def tiles(self, bag: "PatientBag | SentBag", rows: Rows = EVERY) -> tuple[Tensor, Tensor]:
        """Return features float32[N, D] and places [N, K] of some tiles of a bag on the device."""
        if isinstance(bag, SentBag):
            if isinstance(rows, slice):
                return bag.features.to(torch.float32, copy=True), bag.places
            chosen = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
            rows_device = self.send(torch.from_numpy(chosen))
            return bag.features[rows_device].float(), bag.places[rows_device]
        features, places = bag.features[rows], as_tensor(bag.places[rows])
        if self.device.type == "cpu":
            return floats(features), places
        return self.send(as_tensor(features)).float(), self.send(places)

    def send(self, tensor: Tensor) -> Tensor:
        """Return a tensor of the host on the device; to a GPU it is copied without waiting."""
        if self.device.type != "cuda":
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)


def sent_ahead(items: Iterable[Tensors], device: torch.device) -> Generator[Tensors]:
    """Yield what is made and sent for the next steps of a model; for a GPU, ahead and in a thread.

    Args:
        items: made on the device one after the other, in the order of the steps.
        device: device of the model.
    """
    if device.type != "cuda":
        yield from items
        return
    own = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def made() -> Generator[tuple[Tensors, torch.cuda.Event]]:
        with torch.cuda.device(device), torch.cuda.stream(own):
            for step_input in items:
                yield step_input, own.record_event()

    for step_input, sent in read_ahead(made()):
        stream = torch.cuda.current_stream(device)
        stream.wait_event(sent)
        for tensor in step_input.tensors():
            tensor.record_stream(stream)  # its memory is not given away before the step is done
        yield step_input
