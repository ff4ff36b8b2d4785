"""The plan of a study's folds; apart from the code of the splits, so that it imports no numpy."""

from dataclasses import dataclass
from typing import Literal

SplitKind = Literal["patient", "site", "preserved-site", "monte-carlo"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A plan of folds over the patients of a study.

    Attributes:
        folds: Outer folds; each patient is tested in one of them.
        inner: Inner splits of each fold: 1 for one validation part; with more, a model is trained
            on each and their predictions are averaged.
        repeats: Repetitions of the cross-validation with other folds.
        split: How patients are split: `patient` for stratified folds over all patients, `site` to
            test each site once (external validation), `preserved-site` for folds of whole sites
            with like shares of each class, `monte-carlo` for as many random splits as folds, of 80
            % training, 10 % validation and 10 % test (CLAM's).
        sites: Column of the site, or `tcga` to read it off TCGA barcodes; None if no site is known.
            Folds over patients use it only to say how far label and site go together.
        file: A split file or folder, see `split_files.read_splits`; it replaces all other settings
            of this group but `shots`.
        shots: Training patients of each class (few-shot); None for all.
        validation: Whether training patients are held out for validation where a split file has no
            validation part; without, nothing can be chosen on them.

    Examples:
        >>> sl.Plan(folds=5, repeats=3)
        Plan(folds=5, inner=1, repeats=3, split='patient', sites=None, ..., validation=True)
    """

    folds: int = 5
    inner: int = 1
    repeats: int = 1
    split: SplitKind = "patient"
    sites: str | None = None
    file: str | None = None
    shots: int | None = None
    validation: bool = True

    @property
    def columns(self) -> list[str]:
        """Return the columns of the label table that the plan needs.

        Examples:
            >>> sl.Plan(sites="hospital").columns
            ['hospital']
        """
        return [] if self.sites is None or self.sites == "tcga" else [self.sites]
