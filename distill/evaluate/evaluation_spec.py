"""The settings of an evaluation as one value, which the report keeps."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from distill.errors import DistillError


@dataclass(frozen=True, kw_only=True)
class EvaluationSpec:
    """Settings of an evaluation.

    Attributes:
        labels: a table of tile labels, see `read_labels`; without one, no probe and no retrieval.
        label_column: column of the classes; the only other one if None.
        site: column of the tile's site in that table, or `tcga` to read it off TCGA barcodes; None
            if no site is known.
        distinct_ids: whether ids that differ by case, blanks or Unicode form only are different,
            see `read_labels`.
        single: the student of one teacher to compare with; the best of the same network if None.
        mpps: mpps of the tiles; the students' if None.
        tiles: largest number of tiles per mpp, for training slides and for held-out slides each.
        robust_tiles: largest number of held-out tiles that are perturbed, each in 16 variants.
        teacher_seconds: a teacher that would need more seconds for the perturbed tiles is left out.
        seed: seed of all random draws.
        device: torch's name of the device; if None, a GPU if there is one.
        threads: number of CPU threads; all if None.

    Raises:
        DistillError: too few tiles or threads.
    """

    labels: str | None = None
    label_column: str | None = None
    site: str | None = None
    distinct_ids: bool = False
    single: str | None = None
    mpps: Sequence[float] | None = None
    tiles: int = 2048
    robust_tiles: int = 256
    teacher_seconds: float = 300.0
    seed: int = 0
    device: str | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.site is not None and self.labels is None:
            msg = f"site={self.site!r} without labels; robustness to sites needs labels of tiles"
            raise DistillError(msg)
        least = 1 if self.threads is None else self.threads
        if self.tiles < 16 or self.robust_tiles < 2 or least < 1:
            msg = (
                f"tiles={self.tiles}, robust_tiles={self.robust_tiles}, threads={self.threads} "
                "given; at least 16, 2 and 1"
            )
            raise DistillError(msg)

    def on_this_machine(self) -> "EvaluationSpec":
        """Return the same settings with device and threads filled in."""
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        return replace(self, device=device, threads=self.threads or os.cpu_count() or 1)

    @property
    def runs_on(self) -> dict[str, Any]:
        """Return the device and the threads of networks, as keyword arguments."""
        return {"device": self.device or "cpu", "threads": self.threads or 1}

    def to_json(self) -> dict[str, Any]:
        """Return the settings for the report, without `distinct_ids`, which shows in the labels."""
        return {name: part for name, part in asdict(self).items() if name != "distinct_ids"}
