"""What a worker keeps from one cell of a run to the next: the lake, its bags, their means."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from downstream.cells.held_lake import held_bags, held_lake
from downstream.mil.bag_moments import bag_moments
from downstream.run.feature_bags import PatientBags, pooled_bag
from featurestore import Lake, open_lake
from tests.downstream.test_downstream_bags import MPP, PATIENTS, build, planted

SLIDES = [(f"s{number:02d}a", f"s{number:02d}b") for number in range(PATIENTS)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("held") / "lake"
    build(path, planted())
    return path


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """The slides of every bag that is read."""
    slides: list[Sequence[str]] = []
    slide_rows = Lake.slide_rows

    def counted(self: Lake, slide_ids: Sequence[str], *args: Any, **options: Any) -> Any:  # noqa: ANN401
        slides.append(slide_ids)
        return slide_rows(self, slide_ids, *args, **options)

    monkeypatch.setattr(Lake, "slide_rows", counted)
    return slides


def test_bags_are_read_once_for_all_cells_of_a_feature_set(
    folder: Path, reads: list[Sequence[str]]
) -> None:
    version = open_lake(folder).version
    for _ in range(3):
        bags = held_bags(held_lake(str(folder), version), SLIDES, "good", mpps=(MPP,))
        for index in range(PATIENTS):
            np.testing.assert_array_equal(bags.pooled(index), pooled_bag(bags[index]))
            expected = bag_moments(bags[index].features)
            np.testing.assert_array_equal(bags.moments(index).squares, expected.squares)
    assert reads == SLIDES
    other = held_bags(held_lake(str(folder), version), SLIDES, "noise", mpps=(MPP,))
    assert other is not bags
    assert (other[0].features != bags[0].features).any()


def test_means_of_bags_that_are_not_kept_are(folder: Path, reads: list[Sequence[str]]) -> None:
    bags = PatientBags(open_lake(folder), SLIDES[:2], "good", mpps=(MPP,), cache_bytes=0)
    for _ in range(2):
        bags.pooled(0)
        bags.moments(0)
    assert reads == [SLIDES[0], SLIDES[0]]  # once for each of the two
    bags[0]
    assert len(reads) == 3


def test_another_lake_in_the_same_folder_is_another_lake(tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "lake"
    shutil.copytree(folder, path)
    version = open_lake(path).version
    first = held_lake(str(path), version)
    assert held_lake(str(path), version) is first
    shutil.rmtree(path)
    build(path, planted(seed=5))
    second = held_lake(str(path), version)
    assert second is not first
    features = planted(seed=5)["good"]["s00a"]
    np.testing.assert_array_equal(second.bag("s00a", "good", mpp=MPP).features, features)
