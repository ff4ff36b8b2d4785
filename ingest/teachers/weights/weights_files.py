"""Where a teacher's weights are: in a folder or bucket of the user's, a package, or the hub.

Nothing is downloaded unless a command needs it: `slidelake teachers` only looks.
"""

import importlib.util
import os
import socket
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Protocol

from ingest.errors import TeacherError
from ingest.teachers.cards.card import Card

FOLDER = "SLIDELAKE_WEIGHTS"
CONNECT_S = 5.0
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


class WeightsCard(Protocol):
    """The facts of a card that say where weights are: of a teacher, or of a slide encoder."""

    @property
    def name(self) -> str:
        """Return the name of the files in a user's folder."""

    @property
    def files(self) -> tuple[str, ...]:
        """Return the names of the files on the hub, first choice first."""

    @property
    def hub(self) -> str | None:
        """Return the repository on the hub."""

    @property
    def package(self) -> str | None:
        """Return the distribution that ships the weights."""

    @property
    def weights(self) -> str | None:
        """Return the path of the file inside that distribution."""


def has_onnx() -> bool:
    """Whether ONNX Runtime and the packages that export to it are installed."""
    return all(importlib.util.find_spec(name) for name in ("onnxruntime", "onnxscript"))


def find_weights(card: WeightsCard, folder: str | None = None) -> Path | None:
    """Return the path of the weights' file on this machine, or None.

    Weights in a bucket's folder are fetched to this machine first, once for all processes.

    Args:
        card: card of the teacher.
        folder: a folder of weights, or its URL in a bucket; SLIDELAKE_WEIGHTS if None. It holds
            `NAME.safetensors` (or .pth, .pt, .bin), or folders `NAME` as the hub has them.

    Raises:
        TeacherError: the bucket can't be read, or this machine has no room.
    """
    root = folder or os.environ.get(FOLDER)
    if root and "://" in root:
        from ingest.teachers.weights.node_cache import cached_file

        name = _in_bucket(card, root)
        path = cached_file(f"{root.rstrip('/')}/{name}") if name else None
    else:
        path = _in_folder(card, Path(root)) if root else None
    return path or _in_package(card) or _cached(card)


def has_weights(card: WeightsCard, folder: str | None = None) -> bool:
    """Whether `find_weights` finds weights; nothing is fetched.

    Args:
        card: card of the teacher.
        folder: as for `find_weights`.

    Raises:
        TeacherError: the bucket can't be read.
    """
    root = folder or os.environ.get(FOLDER)
    if root and "://" in root:
        path = _in_bucket(card, root) or _in_package(card) or _cached(card)
        return path is not None
    return find_weights(card, folder) is not None


def _in_bucket(card: WeightsCard, url: str) -> str | None:
    """Return the name of a card's file in a bucket's folder, by the same names as in a folder."""
    from ingest.teachers.weights.node_cache import bucket_names

    names = bucket_names(url)
    candidates = [f"{card.name}{suffix}" for suffix in SUFFIXES]
    candidates += [f"{card.name}/{name}" for name in card.files]
    inside = [name for name in names if name.startswith(f"{card.name}/")]
    candidates += [name for suffix in SUFFIXES for name in inside if name.endswith(suffix)]
    return next((name for name in candidates if name in names), None)


def _in_folder(card: WeightsCard, folder: Path) -> Path | None:
    files = [folder / f"{card.name}{suffix}" for suffix in SUFFIXES]
    files += [folder / card.name / name for name in card.files]
    inside = folder / card.name
    if inside.is_dir():
        files += [path for suffix in SUFFIXES for path in sorted(inside.glob(f"*{suffix}"))]
    return next((path for path in files if path.is_file()), None)


def _in_package(card: WeightsCard) -> Path | None:
    if card.package is None or card.weights is None:
        return None
    spec = importlib.util.find_spec(card.package.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]) / card.weights
    return path if path.is_file() else None


def _cached(card: WeightsCard) -> Path | None:
    if card.hub is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    cached = (try_to_load_from_cache(card.hub, name) for name in card.files)
    return next((Path(path) for path in cached if isinstance(path, str)), None)


def fetch_weights(card: Card) -> Path:
    """Return the path of weights fetched from the hub, with the user's own token.

    Raises:
        TeacherError: there is no such repository, no network, or no right to the weights.
    """
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
    )

    if card.hub is None or not _reachable(constants.ENDPOINT):
        raise TeacherError(missing(card, "the hub can't be reached" if card.hub else ""))
    why = ""
    for name in card.files:
        try:
            return Path(hf_hub_download(card.hub, name))
        except GatedRepoError:
            why = f"ask for access on the hub's page of {card.hub}, and run `hf auth login`"
            break
        except LocalEntryNotFoundError:
            why = "the hub can't be reached"
            break
        except EntryNotFoundError:
            why = f"{card.hub} has no {name}"
        except (HfHubHTTPError, OSError, ValueError) as error:
            why = f"the hub gave {type(error).__name__}"
            break
    raise TeacherError(missing(card, why))


def has_pretrained(hub: str) -> bool:
    """Whether a repository of timm's can be had: it is in the hub's cache, or the hub is reached.

    Args:
        hub: the repository, as `timm/vit_small_patch16_224.augreg_in21k`.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    cached = (try_to_load_from_cache(hub, name) for name in HUB_FILES)
    return any(isinstance(path, str) for path in cached) or _reachable(constants.ENDPOINT)


def _reachable(endpoint: str) -> bool:
    """Whether the hub can be reached: its own client tries for half a minute."""
    if urllib.request.getproxies():
        return True
    url = urllib.parse.urlsplit(endpoint)
    try:
        with socket.create_connection((url.hostname, url.port or 443), timeout=CONNECT_S):
            return True
    except OSError:
        return False


def missing(card: Card, why: str) -> str:
    """Return one line on how to get a teacher's weights."""
    from ingest.teachers.cards.card_table import CARDS

    available = [name for name, card in CARDS.items() if has_weights(card)]
    files = f"{card.name}.safetensors or {card.name}.pth"
    if card.package:
        where = f"install {card.package}"
    else:
        gate = ", which asks for its licence to be accepted first" if card.gated else ""
        where = f"they come from {card.hub or card.source}{gate}" + (f"; {why}" if why else "")
    return (
        f"the weights of '{card.name}' are not on this machine: {where}; or put {files} into the "
        f"folder that --weights or {FOLDER} names; usable now: {', '.join(available) or 'none'}"
    )
