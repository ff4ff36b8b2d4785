"""Microns per pixel of a slide: which of the values that a file states is taken.

A value that was given comes first, then the OME-XML, then the tags of the file, then the objective.
A stated value that no scanner has is passed over, and that is noted.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import sqrt

from ingest.errors import SlideError

MPP_RANGE = (0.05, 10.0)
OBJECTIVE_MPP = 10.0  # 20x is called 0.5 mpp; scanners differ from it by 10 % and more
ANISOTROPY_MAX = 0.02
# Scanners with an adapter behind the objective differ from it by up to a third.
CONTRADICTION = 1.4
REMEDY = "give the true value in a manifest's column 'mpp' or with --mpp-override"


@dataclass(frozen=True, kw_only=True)
class StatedMpp:
    """Microns per pixel as one source states them.

    Attributes:
        x: microns per pixel across.
        y: microns per pixel down.
        source: value of `mpp_source` in the slide's row: `given`, `file` or `objective`.
        place: where the value is stated, in words.
    """

    x: float
    y: float
    source: str
    place: str

    @property
    def mean(self) -> float:
        """Return the geometric mean of the mpps across and down."""
        return sqrt(self.x * self.y)

    @property
    def is_possible(self) -> bool:
        """Whether a scanner can have both mpps."""
        return all(MPP_RANGE[0] <= axis_mpp <= MPP_RANGE[1] for axis_mpp in (self.x, self.y))

    @property
    def is_anisotropic(self) -> bool:
        """Whether pixels are too far from square for one mpp to measure both directions."""
        return abs(self.x / self.y - 1) > ANISOTROPY_MAX


def given_mpp(mpp: float) -> StatedMpp:
    """Return the microns per pixel that a user gave."""
    return StatedMpp(x=mpp, y=mpp, source="given", place="what was given")


def choose_mpp(
    path: str,
    stated: Sequence[StatedMpp],
    objective: float | None,
    *,
    allow_anisotropic: bool = False,
) -> tuple[StatedMpp, list[str]]:
    """Choose the microns per pixel of a slide.

    Args:
        path: path of the slide, for messages.
        stated: stated values in the order in which they are preferred.
        objective: power of the objective, taken where no value is possible.
        allow_anisotropic: take the mean of x and y where they differ by more than 2 %.

    Returns:
        The value, and notes on its oddities.

    Raises:
        SlideError: no value is stated, no stated value is possible, or x and y differ.
    """
    if stated and stated[0].source == "given" and not stated[0].is_possible:
        msg = f"{path}: {stated[0].mean:g} mpp was given, outside {_range()}; {REMEDY}"
        raise SlideError(msg)
    chosen = next((one for one in stated if one.is_possible), None)
    chosen = chosen or _from_objective(path, stated, objective)
    notes = _passed_over(stated, chosen)
    if chosen.is_anisotropic:
        text = f"{chosen.x:g} mpp across and {chosen.y:g} mpp down"
        if not allow_anisotropic:
            msg = (
                f"{path} says {text} ({chosen.place}), and pixels must be square within "
                f"{ANISOTROPY_MAX:.0%}; {REMEDY}, or take their mean with --allow-anisotropic"
            )
            raise SlideError(msg)
        notes.append(f"its pixels are not square: {text}; the mean, {chosen.mean:.4g}, is taken")
    return chosen, [*notes, *_contradiction(chosen, objective)]


def _from_objective(path: str, stated: Sequence[StatedMpp], objective: float | None) -> StatedMpp:
    if objective:
        scan_mpp = OBJECTIVE_MPP / objective
        nominal = StatedMpp(x=scan_mpp, y=scan_mpp, source="objective", place="its objective")
        if nominal.is_possible:
            return nominal
    if stated:
        msg = f"{path} says {stated[0].mean:g} mpp, outside {_range()}; {REMEDY}"
        raise SlideError(msg)
    msg = f"{path} does not say its mpp, nor its objective; {REMEDY.replace('true value', 'mpp')}"
    raise SlideError(msg)


def _range() -> str:
    return f"{MPP_RANGE[0]} to {MPP_RANGE[1]}"


def _passed_over(stated: Iterable[StatedMpp], chosen: StatedMpp) -> list[str]:
    """Return notes on impossible values that were preferred to the chosen value."""
    notes = []
    for one in stated:
        if one is chosen:
            break
        notes.append(
            f"{one.place}: {one.mean:.4g} mpp, which no scanner has; {chosen.mean:.4g} of "
            f"{chosen.place} is taken"
        )
    return notes


def _contradiction(chosen: StatedMpp, objective: float | None) -> list[str]:
    """Return a note where the objective's power contradicts the chosen mpp."""
    if chosen.source != "file" or not objective:
        return []
    nominal = OBJECTIVE_MPP / objective
    if 1 / CONTRADICTION <= chosen.mean / nominal <= CONTRADICTION:
        return []
    note = (
        f"its {chosen.mean:.4g} mpp ({chosen.place}) and its objective of {objective:g}x (about "
        f"{nominal:g} mpp) contradict each other; {chosen.mean:.4g} mpp is taken"
    )
    return [note]
