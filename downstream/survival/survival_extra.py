"""scikit-survival is an extra: it and its solver ecos are GPL-3, and the rest does without them."""

import importlib.util

from downstream.survival.risks import SurvivalError

NEEDED = ("sksurv", "ecos")


def has_scikit_survival() -> bool:
    """Whether the extra `survival` is installed."""
    return all(importlib.util.find_spec(name) is not None for name in NEEDED)


def require_scikit_survival() -> None:
    """Refuse to go on without the extra `survival`.

    Raises:
        SurvivalError: it is not installed; the message names the command that installs it.
    """
    if not has_scikit_survival():
        msg = (
            "survival needs scikit-survival, which is not installed: it is GPL-3 and therefore an "
            "extra; pip install 'slidelake[survival]' (docs/licences.md says what that means)"
        )
        raise SurvivalError(msg)
