"""Weights from which a student of pixels starts: a file, another network's, or timm's pretrained.

They are found by the process that starts a run, and kept in the run's folder, so that all workers
start from the same and no worker needs the file. Tensors are matched by name and shape: a teacher
of the student's width so gives its first layers to a student of fewer.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor, nn

from distill.errors import DistillError
from distill.recipes.student_settings import TileStudent
from featurestore import Licence, Store
from ingest import TeacherError, find_card, licence_of, student_folder
from ingest.teachers import WEIGHTS, build, load_weights, read_weights, resampled, student_file
from ingest.teachers import weights_of as teacher_weights

TIMM = "timm"
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
#: Least share of the student's parameters that has to come from the weights.
LEAST_SHARE = 0.5

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class InitialWeights:
    """The weights of a student at its start.

    Attributes:
        source: what `--init` names.
        sha256: SHA-256 of the file that the source is, or of timm's weights.
        tensors: number of the student's tensors that are taken from it.
        parameters: share of the student's parameters that is taken from it.
        licence: licence of the weights, as far as it is known.
        content: the taken tensors as a safetensors file.
    """

    source: str
    sha256: str
    tensors: int
    parameters: float
    licence: Licence
    content: bytes

    def record(self) -> dict[str, Any]:
        """Return the facts that are kept with the run and the student."""
        facts = {name: fact for name, fact in asdict(self).items() if name != "content"}
        return {**facts, "licence": self.licence.to_json()}


def find_initial_weights(store: Store, student: TileStudent) -> InitialWeights | None:
    """Return the weights that a student's settings name; None if it starts from random ones.

    Args:
        store: the lake's files, for a student of the lake.
        student: settings of the student.

    Raises:
        DistillError: there are no such weights, or they fill too little of the network.
    """
    if not student.init:
        return None
    network = build(student.architecture, student.input_px, student.arguments)
    try:
        tensors, sha256, licence = _read(store, student)
    except TeacherError as error:
        msg = f"--init {student.init}: {error}"
        raise DistillError(msg) from error
    taken, named = _matching(tensors, network)
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    share = sum(size for name, size in sizes.items() if name in taken) / sum(sizes.values())
    if share < LEAST_SHARE:
        raise DistillError(_too_little(student, named, network, share))
    return InitialWeights(
        source=student.init,
        sha256=sha256,
        tensors=len(taken),
        parameters=round(share, 4),
        licence=licence,
        content=save({name: tensor.contiguous().clone() for name, tensor in taken.items()}),
    )


def start_from(network: nn.Module, content: bytes) -> None:
    """Fill a network with the tensors of `InitialWeights.content`; the others stay as they are."""
    network.load_state_dict(load(content), strict=False)


def _read(store: Store, student: TileStudent) -> tuple[Tensors, str, Licence]:
    """Return the tensors that the settings name, with their hash and licence."""
    name = student.init
    if name == TIMM:
        tensors = _pretrained(student)
        digest = hashlib.sha256(save(dict(sorted(tensors.items())))).hexdigest()
        text = f"that of timm's weights of {student.architecture} on the hub"
        return tensors, digest, Licence(text=text)
    if name.endswith(SUFFIXES):
        path = Path(name)
        if not path.is_file():
            msg = "there is no such file"
            raise TeacherError(msg)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return read_weights(path), digest, Licence()
    if store.exists(f"{student_folder(name)}/{WEIGHTS}"):
        content = student_file(store, name, WEIGHTS)
        return load(content), hashlib.sha256(content).hexdigest(), licence_of(store, name)
    return _of_teacher(store, name)


def _of_teacher(store: Store, name: str) -> tuple[Tensors, str, Licence]:
    """Return the weights of a teacher under the names of its own network."""
    card = find_card(store, name)
    with teacher_weights(store, card) as path:
        network = build(card.architecture, card.input_px, card.arguments)
        load_weights(network, path, card)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return network.state_dict(), digest, licence_of(store, name)


def _pretrained(student: TileStudent) -> dict[str, Tensor]:
    """Return timm's pretrained weights of the student's architecture.

    Raises:
        TeacherError: timm has none, or the hub can't be reached.
    """
    try:
        network = build(student.architecture, student.input_px, student.arguments, pretrained=True)
    except TeacherError as error:
        msg = f"{error}; name a file of weights instead: --init PATH"
        raise TeacherError(msg) from error
    except Exception as error:  # of the hub, of the network between, or of timm
        why = " ".join(str(error).split())[:200]
        msg = (
            f"timm's weights of {student.architecture} can't be had ({why}); name a file of "
            "weights instead: --init PATH"
        )
        raise TeacherError(msg) from error
    return {name: tensor.contiguous() for name, tensor in network.state_dict().items()}


def _matching(tensors: Tensors, network: nn.Module) -> tuple[Tensors, Tensors]:
    """Return the tensors that fit the network, and all of the same prefix, by the network's names.

    Files of trainings have a prefix before the names of a network.
    """
    shapes = network.state_dict()
    best, named = dict[str, Tensor](), dict(tensors)
    for prefix in _prefixes(tensors, shapes):
        own = {n.removeprefix(prefix): x for n, x in tensors.items() if n.startswith(prefix)}
        own = resampled(own, network)
        taken = {n: x for n, x in own.items() if n in shapes and shapes[n].shape == x.shape}
        if len(taken) > len(best):
            best, named = taken, own
    return best, named


def _prefixes(tensors: Tensors, shapes: Tensors) -> list[str]:
    """Return the prefixes under which the network's names are in a file; averages come first.

    Files of self-supervised training hold a student and its moving average, the teacher.
    """
    counts: Counter[str] = Counter()
    for name in tensors:
        parts = name.split(".")
        starts = [".".join(parts[:at]) + "." for at in range(1, len(parts))]
        counts.update(start for start in ("", *starts) if name.removeprefix(start) in shapes)
    return sorted(counts, key=lambda start: ("teacher" not in start and "ema" not in start, start))


def _too_little(student: TileStudent, tensors: Tensors, network: nn.Module, share: float) -> str:
    shapes = network.state_dict()
    others = [
        f"{name} is {list(tensors[name].shape)} there and {list(shapes[name].shape)} here"
        for name in shapes
        if name in tensors and tensors[name].shape != shapes[name].shape
    ]
    reason = others[0] if others else f"none of its names is as {next(iter(shapes))}"
    return (
        f"--init {student.init} fills {share:.0%} of the parameters of {student.architecture}: "
        f"{reason}; take an architecture of the same width and layers, by --architecture and "
        "--set student.arguments=JSON"
    )
