"""Slide encoders by name, or by the path of a user's own file, as networks that are ready to run.

Weights are the user's: tensors of a safetensors file, or of a PyTorch file without objects. Nothing
is downloaded.
"""

import difflib
import hashlib
import importlib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cluster import extension_sha256
from ingest.errors import SlideEncoderError
from ingest.slide_encoders.slide_card import SlideCard
from ingest.slide_encoders.slide_card_table import SLIDE_ENCODERS
from ingest.teachers.own_file import own_weights, run_file
from ingest.teachers.weights.file_hash import sha256_of
from ingest.teachers.weights.weights_files import find_weights

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from ingest.slide_encoders.slide_network import NetworkInputs


@dataclass(frozen=True, kw_only=True)
class SlideEncoder:
    """A slide encoder that was found: its card, its weights and the hashes of both.

    Attributes:
        card: the card.
        sha256: hashes that go into the identity, of `weights`, `code` and `file`.
        weights: path of the weights; None for an encoder without any.
        source: text of a user's own file; None for a card of ours.
        path: path of that file.
        code: folder of the authors' code, where one was given.
    """

    card: SlideCard
    sha256: dict[str, str]
    weights: Path | None = None
    source: str | None = None
    path: str = ""
    code: Path | None = None

    def identity(self) -> dict[str, Any]:
        """Return what decides the numbers beside the tiles."""
        return {**self.card.identity(), **{f"{k}_sha256": v for k, v in self.sha256.items()}}

    def network(self, inputs: "NetworkInputs") -> "nn.Module":
        """Return the network with its weights, ready to run.

        Raises:
            SlideEncoderError: the network can't be built, or the weights are not its own.
        """
        if self.source is not None:
            network = own_network(self.source, self.path, inputs)
        else:
            module, _, function = self.card.loader.partition(":")
            build = getattr(importlib.import_module(module), function)
            network = cast("nn.Module", build(self.card, inputs))
        if self.weights is not None:
            load_weights(network, self.weights, self.card)
        return network.eval()


def find_slide_encoder(name: str, *, code: str | None = None) -> SlideEncoder:
    """Return the slide encoder of a name, or of a user's own file, before weights are looked for.

    Args:
        name: name of a card, or path of a Python file.
        code: folder of the authors' code, for cards that run it.

    Raises:
        SlideEncoderError: there is no such card or file.
    """
    folder = None if code is None else Path(code).expanduser().absolute()
    if folder is not None and not folder.is_dir():
        msg = f"--code {code} is no folder on this machine"
        raise SlideEncoderError(msg)
    if name.endswith(".py"):
        return _own_encoder(name, folder)
    if name not in SLIDE_ENCODERS:
        close = difflib.get_close_matches(name, SLIDE_ENCODERS)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        msg = (
            f"no slide encoder '{name}': {hint}there are {', '.join(SLIDE_ENCODERS)}, and files "
            "of your own, as my_encoder.py"
        )
        raise SlideEncoderError(msg)
    card = SLIDE_ENCODERS[name]
    hashes = {}
    if sha256 := extension_sha256(card.loader):
        hashes["file"] = sha256
    if folder is not None:
        hashes["code"] = code_sha256(folder)
    return SlideEncoder(card=card, sha256=hashes, code=folder)


def with_weights(encoder: SlideEncoder, folder: str | None) -> SlideEncoder:
    """Return a slide encoder with the weights of its card, if that has any.

    Args:
        encoder: the encoder, without weights.
        folder: folder that is searched for `NAME.safetensors`; SLIDELAKE_WEIGHTS if None.

    Raises:
        SlideEncoderError: the weights are not on this machine.
    """
    if not encoder.card.has_weights or encoder.source is not None:
        return encoder
    path = find_weights(encoder.card, folder)
    if path is None:
        raise SlideEncoderError(_missing_weights(encoder.card))
    hashes = {**encoder.sha256, "weights": sha256_of(path)}
    return replace(encoder, weights=path, sha256=hashes)


def _missing_weights(card: SlideCard) -> str:
    gate = " after its licence was accepted there" if card.gated else ""
    return (
        f"the weights of {card.name} are not on this machine ({card.source}{gate}; licence "
        f"{card.licence}): put them into a folder as {card.name}.safetensors and name it by "
        "--weights DIR or SLIDELAKE_WEIGHTS"
    )


def _own_encoder(path: str, code: Path | None) -> SlideEncoder:
    try:
        source = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{path} can't be read: {error}"
        raise SlideEncoderError(msg) from error
    module = run_file(source, path, SlideEncoderError)
    card = getattr(module, "CARD", None)
    if not isinstance(card, SlideCard) or not callable(getattr(module, "build", None)):
        msg = f"{path} must define CARD, a slidelake.SlideCard, and build(), which gives a network"
        raise SlideEncoderError(msg)
    if card.name in SLIDE_ENCODERS:
        msg = f"{path} calls itself '{card.name}', which is a slide encoder of slidelake's own"
        raise SlideEncoderError(msg)
    hashes = {"file": hashlib.sha256(source.encode()).hexdigest()}
    if (weights := own_weights(module, path, SlideEncoderError)) is not None:
        hashes["weights"] = sha256_of(weights)
    if code is not None:
        hashes["code"] = code_sha256(code)
    return SlideEncoder(card=card, sha256=hashes, source=source, path=path, code=code)


def own_network(source: str, path: str, inputs: "NetworkInputs") -> "nn.Module":
    """Return the network that a user's file builds: `build()`, or `build(inputs)` if it takes one.

    Raises:
        SlideEncoderError: the file can't be run, or builds no network.
    """
    import inspect

    from torch import nn

    module = run_file(source, path, SlideEncoderError)
    build: Callable[..., Any] = module.build
    try:
        network = build(inputs) if inspect.signature(build).parameters else build()
    except Exception as error:
        msg = f"{path}: build() failed: {type(error).__name__}: {error}"
        raise SlideEncoderError(msg) from error
    if not isinstance(network, nn.Module):
        msg = f"{path}: build() gives {type(network).__name__}, and must give a torch.nn.Module"
        raise SlideEncoderError(msg)
    return network


def load_weights(network: "nn.Module", path: Path, card: SlideCard) -> None:
    """Fill a slide encoder's network with the tensors of a file.

    Raises:
        SlideEncoderError: the file can't be read, lacks a tensor, or has one too many.
    """
    from ingest.teachers.weights.weight_keys import read_weights

    tensors = {
        name: tensor
        for name, tensor in read_weights(path).items()
        if not (card.unused and re.fullmatch(card.unused, name))
    }
    for pattern, into in card.keys:
        tensors = {re.sub(pattern, into, name): tensor for name, tensor in tensors.items()}
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    wrong = [name for name, shape in shapes.items()
             if name not in tensors or tensors[name].shape != shape]  # fmt: skip
    wrong += [name for name in tensors if name not in shapes]
    if wrong:
        msg = (
            f"{path.name} does not hold the weights of {card.name}: {len(wrong)} of "
            f"{len(shapes)} tensors differ, first {wrong[0]}"
        )
        raise SlideEncoderError(msg)
    network.load_state_dict(tensors)


def code_sha256(folder: Path) -> str:
    """Return one hash of all Python files of a folder, by their paths in it."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
