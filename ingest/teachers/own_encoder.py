"""An encoder of a user's own: one Python file with a `CARD` and a function `build`.

Such a file is run as it is, so only one that the user names in the command is ever read; none comes
out of a lake. See `examples/own_encoder.py`.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from ingest.errors import TeacherError
from ingest.teachers.cards.card import Card
from ingest.teachers.own_file import own_weights, run_file, split_own

if TYPE_CHECKING:
    from torch import nn

__all__ = ["card_from_user_file", "own_network", "split_own"]


def card_from_user_file(code: str, path: str) -> tuple[Card, Path | None]:
    """Run a user's encoder file; return its `CARD`, and the path of its weights or None.

    Args:
        code: text of the file.
        path: path of the file, for messages.

    Raises:
        TeacherError: the file can't be run, or defines no card or no `build`.
    """
    module = run_file(code, path, TeacherError)
    card = getattr(module, "CARD", None)
    if not isinstance(card, Card) or not callable(getattr(module, "build", None)):
        msg = f"{path} must define CARD, a slidelake.Card, and build(), which gives the network"
        raise TeacherError(msg)
    return card, own_weights(module, path, TeacherError)


def own_network(code: str, path: str) -> "nn.Module":
    """Return the network that a user's file builds, wrapped in timm's protocol if it lacks that.

    Args:
        code: text of the file.
        path: path of the file, for messages.

    Raises:
        TeacherError: the file can't be run, or builds no network.
    """
    from ingest.teachers.networks import Plain

    module = run_file(code, path, TeacherError)
    try:
        network = module.build()
    except Exception as error:
        msg = f"{path}: build() failed: {type(error).__name__}: {error}"
        raise TeacherError(msg) from error
    if hasattr(network, "forward_features"):
        encoder: nn.Module = network
        return encoder
    return Plain(network, module.CARD.prefix_tokens)
