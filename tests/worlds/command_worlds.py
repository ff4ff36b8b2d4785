"""Small lakes and tables for command lines: most are written by hand, none is run by Ray."""

from pathlib import Path

import cv2
import numpy as np
import polars as pl
import tifffile

from featurestore import Lake, LakeConfig, create_lake
from ingest.readers.openslide_reader import OpenSlideReader
from tests.conftest import REAL_SLIDE
from tests.downstream.test_downstream_bags import PATIENTS, build, planted, slide_names
from tests.ingest.tissue.test_tissue import slide_with_stroke
from tests.worlds.small_lake import add_slides, add_teacher

#: Slides of `two_fragments`: their tiles at each mpp. 310 tiles are enough for an index.
SIZES = {"a": 5, "b": 5, "c": 300}


def bags_lake(folder: Path) -> Path:
    """A lake of twelve patients with tiles of 0.5 mpp, and teachers `good` and `noise`."""
    build(folder / "bags", planted())
    return folder / "bags"


def labels(folder: Path) -> Path:
    """Classes, numbers, survival and a site of the patients of `bags_lake`."""
    rows = [
        f"p{p:02d},{p % 2},{p // 2 % 2},{'ABC'[p % 3]},{20 - 10 * (p % 2) + p / 10:.1f},"
        f"{int(p > 1)},{'north' if p < PATIENTS // 2 else 'south'}"
        for p in range(PATIENTS)
    ]
    path = folder / "labels.csv"
    path.write_text("\n".join(["patient_id,tumour,kras,kind,months,dead,hospital", *rows, ""]))
    return path


def some_labels(folder: Path, name: str, patients: range) -> Path:
    """Write the labels of some of the patients."""
    table = pl.read_csv(labels(folder)).filter(
        pl.col("patient_id").is_in([f"p{p:02d}" for p in patients])
    )
    table.write_csv(folder / f"{name}.csv")
    return folder / f"{name}.csv"


def task_folder(folder: Path, task: str) -> Path:
    """Write a task of Patho-Bench on the patients of `bags_lake`: classes, or survival (`OS`)."""
    place = folder / "splits" / task
    place.mkdir(parents=True)
    extra = "[OS_event, OS_days]" if task == "OS" else "[]"
    (place / "config.yaml").write_text(
        f"sample_col: case_id\ntask_col: {task}\nextra_cols: {extra}\n"
        "label_dict: {0: wild type, 1: mutant}\nmetrics: []\n"
    )
    columns = "OS\tOS_event\tOS_days" if task == "OS" else task
    lines = [f"case_id\tslide_id\t{columns}\tfold_0\tfold_1\tfold_2"]
    for p in range(PATIENTS):
        label = (
            f"{p % 2}\t{int(p % 5 > 0)}\t{20 - 10 * (p % 2) + p}" if task == "OS" else f"{p % 2}"
        )
        folds = "\t".join("test" if p // 2 % 3 == k else "train" for k in range(3))
        lines += [f"p{p:02d}\ts{p:02d}{part}\t{label}\t{folds}" for part in "ab"]
    (place / "k=all.tsv").write_text("\n".join([*lines, ""]))
    return place


def named_otherwise(folder: Path) -> Path:
    """The labels under names of a user's own; sites and classes that differ by case only."""
    table = pl.read_csv(labels(folder)).rename({"patient_id": "subject"})
    table = table.with_columns(
        pl.col("hospital").replace({"south": "North"}), pl.col("kind").replace({"C": "a"})
    )
    table.write_csv(folder / "subjects.csv")
    return folder / "subjects.csv"


def slide_table(folder: Path) -> Path:
    """Write a table of each patient's first slide, under column names of a user's own."""
    rows = [f"p{name[1:3]},{name}" for name in slide_names() if name.endswith("a")]
    (folder / "slides.csv").write_text("\n".join(["subject,picture", *rows, ""]))
    return folder / "slides.csv"


def tile_table(folder: Path) -> Path:
    """A class, s or S, for each tile of `bags_lake`; columns under names of a user's own."""
    rows = [
        f"p{name[1:3]},{name},{at * 256},{at * 256},{'s' if int(name[1:3]) % 2 else 'S'}"
        for name in slide_names()
        for at in range(5)
    ]
    (folder / "tiles.csv").write_text("\n".join(["subject,picture,x,y,side", *rows, ""]))
    return folder / "tiles.csv"


def two_fragments(folder: Path) -> Path:
    """A lake of slides a, b and c at 0.5 and 2.0 mpp, in two fragments each, with a teacher t."""
    lake: Lake = create_lake(folder / "fragments", LakeConfig(mpps=(0.5, 2.0)))
    add_slides(lake, {name: SIZES[name] for name in ("a", "b")})
    lake = add_slides(lake.refreshed(), {"c": SIZES["c"]})
    add_teacher(lake, "t", 32)
    return folder / "fragments"


def left_half(folder: Path, slide_id: str, width_px: int, height_px: int) -> Path:
    """Write a folder with a mask that takes the left half of a slide as tissue."""
    masks = folder / "masks"
    masks.mkdir()
    mask = np.zeros((height_px // 16, width_px // 16), np.uint8)
    mask[:, : mask.shape[1] // 2] = 255
    cv2.imwrite(str(masks / f"{slide_id}.png"), mask)
    return masks


def slide_with_pen(path: Path) -> Path:
    """Write a slide of 2.0 mpp with a disc of tissue and a pen's stroke, without JPEG tiles."""
    picture, _ = slide_with_stroke((45, 115, 100), width_px=60)
    tifffile.imwrite(
        path,
        picture.repeat(8, axis=0).repeat(8, axis=1),
        tile=(256, 256),
        photometric="rgb",
        compression="zlib",
        resolution=(5_000, 5_000),
        resolutionunit="CENTIMETER",
    )
    return path


def plain_tiff(path: Path, *, mpp: float | None) -> Path:
    """Write tissue of the real slide into a TIFF without JPEG tiles; None: without its mpp, too."""
    with OpenSlideReader(str(REAL_SLIDE)) as slide:
        overview, _ = slide.overview(0.5)
    pixels = np.ascontiguousarray(overview[:1024, :1024])
    scale = {"resolution": (10_000 / mpp,) * 2, "resolutionunit": "CENTIMETER"} if mpp else {}
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", compression="zlib", **scale)
    return path


def large_slide(path: Path) -> Path:
    """Write a slide of 0.3 MB whose 1,024 tiles take a second or more to cut."""
    picture = np.full((8192, 8192, 3), 243, np.uint8)
    picture[1024:7168, 1024:7168] = (200, 120, 160)
    tifffile.imwrite(
        path,
        picture,
        tile=(256, 256),
        photometric="rgb",
        compression="zlib",
        resolution=(20_000, 20_000),
        resolutionunit="CENTIMETER",
    )
    return path


def stretched_slide(path: Path) -> Path:
    """Write tissue whose microns per pixel are 0.5 across and 0.52 down."""
    with OpenSlideReader(str(REAL_SLIDE)) as slide:
        overview, _ = slide.overview(0.5)
    tifffile.imwrite(
        path,
        np.ascontiguousarray(overview[:1024, :1024]),
        tile=(256, 256),
        photometric="rgb",
        resolution=(10_000 / 0.5, 10_000 / 0.52),
        resolutionunit="CENTIMETER",
    )
    return path


def class_table(folder: Path) -> Path:
    """A class, s or S, for each tile of `bags_lake`, as `evaluate` reads it."""
    rows = [
        f"{name},{at * 256},{at * 256},{'s' if int(name[1:3]) % 2 else 'S'},{at}"
        for name in slide_names()
        for at in range(5)
    ]
    (folder / "classes.csv").write_text("\n".join(["slide_id,x,y,side,number", *rows, ""]))
    return folder / "classes.csv"


def first_slides(folder: Path) -> Path:
    """A table of the first slide of each patient but the last two."""
    names = [name for name in slide_names() if name.endswith("a")][:-2]
    (folder / "first.csv").write_text("\n".join(["slide_id", *names, ""]))
    return folder / "first.csv"
