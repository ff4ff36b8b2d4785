"""What can be wrong with a slide or a teacher; the message is what the user reads."""

from typing import Any


class SlideError(ValueError):
    """A slide that can't be cut; the text becomes the `reason` in its row.

    Args:
        text: what is wrong, in one line.
        about: what was found out about the slide before, for its row.
    """

    def __init__(self, text: str, about: dict[str, Any] | None = None) -> None:
        super().__init__(text)
        self.about = about or {}


class InputError(ValueError):
    """What was given to a command can't be used."""


class TeacherError(ValueError):
    """A teacher that is not known, or whose weights are not here."""
