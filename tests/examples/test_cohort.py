"""The synthetic cohort: real slides to OpenSlide, the same bytes again, and truth that is true."""

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openslide
import pytest

from examples.cohort import COLUMNS, make_cohort, plan_slides
from examples.cohort_patients import LABELS, SITE_MPP, draw_patients
from examples.slide_layout import Morphology, lay_out
from examples.slide_textures import CLASSES, FAT, library
from examples.slide_tissues import WRAP_PX

WIDTH_PX, HEIGHT_PX = 1024, 768


def make(folder: Path, *, slides: int = 4, seed: int = 0, workers: int | None = None) -> Path:
    return make_cohort(
        folder,
        patients=3,
        slides=slides,
        width_px=WIDTH_PX,
        height_px=HEIGHT_PX,
        seed=seed,
        workers=workers,
    )


def rows_of(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("cohort"))


def test_the_table_names_slides_relative_to_itself(table: Path) -> None:
    rows = rows_of(table)
    assert table.name == "cohort.csv"
    assert tuple(rows[0]) == COLUMNS
    assert [row["slide_id"] for row in rows] == ["P000-1", "P001-1", "P002-1", "P000-2"]
    assert all((table.parent / row["uri"]).is_file() for row in rows)


def test_openslide_takes_every_slide_for_an_aperio_pyramid(table: Path) -> None:
    for row in rows_of(table):
        with openslide.OpenSlide(str(table.parent / row["uri"])) as slide:
            assert slide.properties["openslide.vendor"] == "aperio"
            assert float(slide.properties["openslide.mpp-x"]) == SITE_MPP[row["site"]]
            assert slide.properties["openslide.objective-power"] == "20"
            assert slide.level_dimensions == ((1024, 768), (256, 192), (64, 48))
            assert slide.level_downsamples == (1.0, 4.0, 16.0)
            assert slide.properties["openslide.level[0].tile-width"] == "256"
            assert set(slide.associated_images) == {"label", "macro", "thumbnail"}
            assert slide.associated_images["label"].size == (400, 420)


def test_a_size_that_is_no_multiple_of_a_tile(tmp_path: Path) -> None:
    made = make_cohort(tmp_path, patients=2, slides=2, width_px=1000, height_px=701)
    with openslide.OpenSlide(str(made.parent / rows_of(made)[0]["uri"])) as slide:
        assert slide.level_dimensions == ((1000, 701), (250, 175), (62, 43))
        whole = slide.read_region((0, 0), 0, slide.dimensions)
        assert np.asarray(whole)[..., 3].min() == 255


def test_levels_lie_on_each_other(table: Path) -> None:
    with openslide.OpenSlide(str(table.parent / rows_of(table)[0]["uri"])) as slide:
        levels = [
            np.asarray(slide.read_region((0, 0), level, size).convert("L")).astype(np.float32)
            for level, size in enumerate(slide.level_dimensions)
        ]
    first, *others = (cv2.resize(level, (64, 48), interpolation=cv2.INTER_AREA) for level in levels)
    for other in others:
        apart = np.abs(other - first).mean()
        for axis in (0, 1):
            assert apart < np.abs(np.roll(other, 1, axis) - first).mean() / 2


def test_same_arguments_give_the_same_bytes(table: Path, tmp_path: Path) -> None:
    make(tmp_path)
    assert digests(tmp_path) == digests(table.parent)


def test_another_seed_gives_other_slides(table: Path, tmp_path: Path) -> None:
    make(tmp_path, seed=1)
    first, second = digests(table.parent), digests(tmp_path)
    assert first.keys() == second.keys()
    assert all(first[name] != second[name] for name in first if name.endswith(".svs"))


@pytest.mark.slow
def test_processes_change_nothing(tmp_path: Path) -> None:
    make(tmp_path / "one", slides=5, workers=1)
    make(tmp_path / "two", slides=5, workers=2)
    assert digests(tmp_path / "two") == digests(tmp_path / "one")


def test_a_killed_run_goes_on(table: Path, tmp_path: Path) -> None:
    made = make(tmp_path)
    gone = tmp_path / "slides" / "P001-1.svs"
    gone.unlink()
    half = gone.with_name("P001-1.svs.123.tmp")
    half.write_bytes(b"II*\0 half a slide")
    made.unlink()
    kept = (tmp_path / "slides" / "P000-1.svs").stat().st_mtime_ns
    progress: list[tuple[int, int]] = []
    make_cohort(
        tmp_path,
        patients=3,
        slides=4,
        width_px=WIDTH_PX,
        height_px=HEIGHT_PX,
        on_slide=lambda done, of: progress.append((done, of)),
    )
    assert progress == [(4, 4)]
    assert not half.exists()
    assert (tmp_path / "slides" / "P000-1.svs").stat().st_mtime_ns == kept
    assert digests(tmp_path) == digests(table.parent)


def test_a_folder_holds_one_cohort(table: Path) -> None:
    with pytest.raises(ValueError, match=r"made with .*'seed': 0.*choose another folder"):
        make(table.parent, seed=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patients": 1, "slides": 4}, "2 patients or more"),
        ({"patients": 4, "slides": 3}, "a slide each"),
        ({"width_px": 300}, "at least 512 pixels"),
    ],
)
def test_arguments_out_of_range(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_cohort(tmp_path / "cohort", **arguments)
    assert not (tmp_path / "cohort").exists()


@pytest.mark.parametrize("seed", range(6))
def test_classes_are_balanced_within_each_site(seed: int) -> None:
    patients = draw_patients(24, seed)
    for site in SITE_MPP:
        for label in LABELS:
            assert sum(p.site == site and p.label == label for p in patients) == 6
    assert all((p.label == "grade_3") == (p.high_grade_share > 0.5) for p in patients)


@pytest.mark.parametrize("seed", range(6))
def test_share_of_events(seed: int) -> None:
    patients = draw_patients(24, seed)
    assert 0.55 <= np.mean([p.event for p in patients]) <= 0.75
    assert all(1 < p.time_months <= 60 for p in patients)


@pytest.mark.parametrize("seed", range(6))
def test_survival_follows_the_hidden_state(seed: int) -> None:
    patients = draw_patients(24, seed)
    pairs = [
        (early.log_hazard, late.log_hazard)
        for early in patients
        for late in patients
        if early.event and early.time_months < late.time_months
    ]
    assert np.mean([early > late for early, late in pairs]) > 0.75


def test_pen_and_blur_are_on_some_slides() -> None:
    plans = plan_slides(draw_patients(24, 0), 32, (3072, 2560), 0)
    assert 4 <= sum(plan.pen for plan in plans) <= 8
    assert 4 <= sum(plan.blur for plan in plans) <= 8
    assert len({plan.slide_id for plan in plans}) == 32


def test_two_slides_of_a_patient(table: Path) -> None:
    rows = {row["slide_id"]: row for row in rows_of(table)}
    first, second = rows["P000-1"], rows["P000-2"]
    for column in ("patient_id", "site", "label", "time_months", "event"):
        assert first[column] == second[column]
    truth = [np.load(table.parent / "truth" / f"{name}.truth.npz") for name in ("P000-1", "P000-2")]
    assert (truth[0]["tissue"] != truth[1]["tissue"]).mean() > 0.05
    latents = [
        json.loads((table.parent / "truth" / f"{name}.json").read_text())["patient"]
        for name in ("P000-1", "P000-2")
    ]
    assert latents[0] == latents[1]


def test_truth_is_what_the_pixels_show(table: Path) -> None:
    for row in rows_of(table):
        truth = np.load(table.parent / "truth" / f"{row['slide_id']}.truth.npz")
        assert set(truth) == {"tissue", "tissue_class", "pen", "blur", "downsample"}
        assert truth["downsample"] == 32
        assert truth["tissue"].shape == (HEIGHT_PX // 32, WIDTH_PX // 32)
        with openslide.OpenSlide(str(table.parent / row["uri"])) as slide:
            pixels = slide.read_region((0, 0), 1, slide.level_dimensions[1]).convert("RGB")
        colourful = (np.ptp(np.asarray(pixels).astype(int), axis=2) > 25).astype(np.float32)
        coloured = cv2.resize(colourful, (WIDTH_PX // 32, HEIGHT_PX // 32), interpolation=3) > 0.5
        clear = ~truth["pen"] & (truth["tissue_class"] != FAT)  # ink has colour and fat has none
        both = (coloured & truth["tissue"])[clear].sum()
        assert both / (coloured | truth["tissue"])[clear].sum() > 0.8
        assert 0.35 < truth["tissue"].mean() < 0.55
        assert truth["pen"].any() == (row["pen"] == "1")
        assert truth["blur"].any() == (row["blur"] == "1")


def test_a_slide_shows_the_shares_of_its_patient() -> None:
    show = Morphology(
        tumour_share=0.5, high_grade_share=0.8, lymphocytes=0.5, pen=False, blur=False
    )
    truth = lay_out(np.random.default_rng(0), 3072, 2560, show).truth()
    counts = np.bincount(truth["tissue_class"][truth["tissue"]], minlength=len(CLASSES))
    share = dict(zip(CLASSES, counts / counts.sum(), strict=True))
    assert 0.4 <= truth["tissue"].mean() <= 0.5
    assert share["high_grade"] > 2 * share["low_grade"] > 0
    assert min(share.values()) > 0.005


def test_textures_repeat_without_a_seam() -> None:
    period = 1024
    for texture in library(period).classes:
        density = texture.haematoxylin.astype(int) + texture.eosin
        assert density.shape == (period + WRAP_PX, period + WRAP_PX)
        assert np.array_equal(density[:WRAP_PX, :period], density[period:, :period])
        steps = np.abs(np.diff(density[:, : period + 1], axis=1)).mean(0)
        assert steps[-1] < np.quantile(steps, 0.999)


def test_grades_have_the_same_mean_colour() -> None:
    textures = library(1024).classes
    low, high = (textures[CLASSES.index(name)] for name in ("low_grade", "high_grade"))
    assert abs(low.haematoxylin.mean() - high.haematoxylin.mean()) < 8
    assert abs(low.eosin.mean() - high.eosin.mean()) < 8
