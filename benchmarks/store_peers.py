"""Peers of `store.py`: the same features and JPEGs in other file formats, or in memory."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt
import simplejpeg

CHUNK_ROWS = 256

Float16Array = npt.NDArray[np.float16]
Int64Array = npt.NDArray[np.int64]


def write_trident(folder: Path, features: Sequence[Float16Array]) -> list[Path]:
    """Write a file per slide in TRIDENT's layout: float32, a chunk a row, extensible."""
    folder.mkdir()
    paths = []
    for slide, slide_features in enumerate(features):
        paths.append(folder / f"{slide}.h5")
        with h5py.File(paths[-1], "w") as file:
            file.create_dataset(
                "features",
                data=slide_features.astype(np.float32),
                chunks=(1, slide_features.shape[1]),
                maxshape=(None, slide_features.shape[1]),
            )
    return paths


def read_h5(path: Path) -> npt.NDArray[np.float32]:
    """Return a whole bag, read as by TRIDENT's own loader."""
    with h5py.File(path) as file:
        slide_features: npt.NDArray[np.float32] = file["features"][:]
    return slide_features


def write_chunked(folder: Path, features: dict[str, list[Float16Array]]) -> list[Path]:
    """Write a file per slide with all teachers: float16 in chunks of 256 rows."""
    folder.mkdir()
    paths = [folder / f"{slide}.h5" for slide in range(len(next(iter(features.values()))))]
    for slide, path in enumerate(paths):
        with h5py.File(path, "w") as file:
            for teacher, slide_features in features.items():
                rows, dim = slide_features[slide].shape
                file.create_dataset(
                    teacher, data=slide_features[slide], chunks=(min(CHUNK_ROWS, rows), dim)
                )
    return paths


def take_h5(paths: Sequence[Path], teachers: Sequence[str], rows: Int64Array) -> Float16Array:
    """Return rows of many slides; each slide's file is opened once, as in a shuffling data set.

    Args:
        paths: file of each slide.
        teachers: names of the data sets in each file.
        rows: slide and row in the slide, for each tile [B, 2].
    """
    parts = []
    for slide in np.unique(rows[:, 0]).tolist():
        slide_rows = np.unique(rows[rows[:, 0] == slide, 1])
        with h5py.File(paths[slide]) as file:
            parts.append(
                np.concatenate([file[teacher][slide_rows] for teacher in teachers], axis=1)
            )
    return np.concatenate(parts)


def write_raw(folder: Path, features: Sequence[Float16Array]) -> list[Path]:
    """Write a file per slide with the raw features alone."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{slide}.raw" for slide in range(len(features))]
    for path, slide_features in zip(paths, features, strict=True):
        slide_features.tofile(path)
    return paths


def decode_all(jpegs: Sequence[bytes], *, batch: int, threads: int, side_px: int) -> None:
    """Decode JPEGs in memory with simplejpeg, each thread a batch at a time into a new array."""

    def decode(start: int) -> None:
        part = jpegs[start : start + batch]
        pixels = np.empty((len(part), side_px, side_px, 3), np.uint8)
        for jpeg, into in zip(part, pixels, strict=True):
            simplejpeg.decode_jpeg(jpeg, colorspace="RGB", buffer=into)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(decode, range(0, len(jpegs), batch)))
