"""Settings that a slide was cut with, beside its file and the lake's own, and what has changed.

They are kept with each slide (`cut_with` in `slides`), so that a second ingest with another mpp,
mask or way to find tissue cuts the slide again, and one without them changes nothing.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from featurestore.storage import shown
from ingest.tissue.tissue_methods import STANDARD

UserSettings = Mapping[str, Any]
"""Those fields of `CutSettings` that a user gave."""


@dataclass(frozen=True, kw_only=True)
class CutSettings:
    """The settings that decide the pixels and tiles of one slide.

    Attributes:
        mpp: microns per pixel of level 0 that a user gave; None: the file's own.
        tissue: name of the way to find tissue, or of a user's segmenter with its hash.
        pen_veto: whether pen is left out; None: as the way to find tissue does.
        mask: path or URL of the user's mask; None: there was none.
        mask_mark: size and CRC-32 of the user's mask.
        icc: whether colours are converted to sRGB by the slide's ICC profile.
        allow_anisotropic: whether mpps across and down may differ by more than 2 %.
    """

    mpp: float | None = None
    tissue: str = STANDARD
    pen_veto: bool | None = None
    mask: str | None = None
    mask_mark: str | None = None
    icc: bool = False
    allow_anisotropic: bool = False

    @property
    def leaves_pen_out(self) -> bool:
        """Whether tiles under pen are left out."""
        return self.tissue == STANDARD if self.pen_veto is None else self.pen_veto

    def to_json(self) -> str:
        """Return the settings as the text that a slide's row keeps."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the settings from a slide's row's text; keys of later versions are ignored."""
        names = {field.name for field in fields(cls)}
        return cls(**{key: setting for key, setting in json.loads(text).items() if key in names})

    def with_user_settings(self, user_settings: UserSettings) -> Self:
        """Return these settings, replaced by a user's settings where the user gave some."""
        return type(self)(**{**asdict(self), **user_settings})


def differences(
    cut_with: CutSettings | None, mpp: float | None, user_settings: UserSettings
) -> list[str]:
    """Return, in words, the user's settings that differ from the settings a slide was cut with.

    Args:
        cut_with: the slide's settings; None: not known (an earlier slidelake cut it), and then
            only the mpp is compared.
        mpp: microns per pixel of level 0, as the slide was cut.
        user_settings: the settings that the user gives now.
    """
    words = []
    new_mpp = user_settings.get("mpp")
    if new_mpp is not None and mpp is not None and not math.isclose(new_mpp, mpp, rel_tol=1e-6):
        words.append(f"mpp {mpp:g}, now {new_mpp:g}")
    if cut_with is None:
        return words
    new = cut_with.with_user_settings(user_settings)
    if new.icc != cut_with.icc:
        words.append(f"colours {_colour_words(cut_with)}, now {_colour_words(new)}")
    if new.mask_mark != cut_with.mask_mark:
        words.append(_mask_words(cut_with, new))
    if new.mask_mark is None:  # a mask takes the place of both
        if new.tissue != cut_with.tissue:
            words.append(f"tissue by {cut_with.tissue}, now by {new.tissue}")
        elif new.leaves_pen_out != cut_with.leaves_pen_out:
            words.append(f"pen {_pen_words(cut_with)}, now {_pen_words(new)}")
    return words


def _mask_words(old: CutSettings, new: CutSettings) -> str:
    if new.mask is None:
        return f"mask {shown(old.mask or '')}, now none"
    if old.mask is None:
        return f"no mask, now {shown(new.mask)}"
    return f"mask {shown(old.mask)}, now {shown(new.mask)} with another content"


def _colour_words(settings: CutSettings) -> str:
    return "by the ICC profile" if settings.icc else "as stored"


def _pen_words(settings: CutSettings) -> str:
    return "left out" if settings.leaves_pen_out else "kept"
