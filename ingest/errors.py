"""Errors of slides, teachers and arguments; users read their messages."""

from typing import Any


class SlideError(ValueError):
    """A slide that can't be cut; the text becomes the `reason` in its row.

    Args:
        text: reason of the failure, in one line.
        facts: columns of the slide's row that were known before the slide failed.

    Examples:
        >>> str(sl.SlideError("the scan holds no mpp"))
        'the scan holds no mpp'
    """

    def __init__(self, text: str, facts: dict[str, Any] | None = None) -> None:
        super().__init__(text)
        self.facts = facts or {}


class InputError(ValueError):
    """Arguments of a command that can't be used.

    Examples:
        >>> sl.ingest("new-lake", ["scans/*.svs"], sl.LakeConfig())
        Traceback (most recent call last):
            ...
        ingest.errors.NoSlidesError: no slides found in scans/*.svs; ...
    """


class NoSlidesError(InputError):
    """Inputs that can be read and hold no slide (yet)."""


class SlideEncoderError(ValueError):
    """A slide encoder that is not known, lacks its weights, or would see other tiles than it knows.

    Examples:
        >>> sl.encode("my-lake", "titan", features=["student"], mpp=0.5)
        Traceback (most recent call last):
            ...
        ingest.errors.SlideEncoderError: titan was trained on conch15 ...
    """


class TeacherError(ValueError):
    """A teacher that is not known, or whose weights are not on this machine.

    Examples:
        >>> sl.extract("my-lake", ["uni3_h"])
        Traceback (most recent call last):
            ...
        ingest.errors.TeacherError: no teacher 'uni3_h': did you mean uni2_h or uni? ...
    """


class FieldError(TeacherError):
    """A field of view that rows of a lake do not have; the text says what they have instead.

    Examples:
        >>> issubclass(sl.FieldError, sl.TeacherError)
        True
    """
