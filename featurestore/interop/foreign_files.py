"""Reading the files of other tools: HDF5, .pt and .npz. Nothing in them is ever unpickled.

Any fault of a file becomes one InteropError that names it, so that a damaged file leaves the
others alone.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from featurestore.interop.foreign_slide import MPP_TOLERANCE, FloatArray, Int64Array, InteropError
from featurestore.messages import counted

HIDDEN = "."


def find_files(folder: Path, *suffixes: str) -> Iterator[Path]:
    """Yield the files under a folder with one of these endings, sorted, without hidden files."""
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(HIDDEN))
        for name in sorted(names):
            if name.endswith(suffixes) and not name.startswith(HIDDEN):
                yield Path(root) / name


@contextlib.contextmanager
def opened_h5(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading.

    Raises:
        InteropError: the file is missing, not HDF5, truncated, or unreadable.
    """
    try:
        with h5py.File(path, "r", locking="best-effort") as file:
            yield file
    except InteropError:
        raise
    except FileNotFoundError as error:
        msg = f"{path} does not exist"
        raise InteropError(msg) from error
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        msg = f"{path} can't be read as HDF5, perhaps it is cut short: {_first_line(error)}"
        raise InteropError(msg) from error


def dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """Return a dataset of an open file.

    Raises:
        InteropError: the file has no dataset of this name; the message lists its datasets.
    """
    entry = file.get(name)
    if not isinstance(entry, h5py.Dataset):
        msg = f"{file.filename} has no dataset '{name}'; it has: {', '.join(file) or 'nothing'}"
        raise InteropError(msg)
    return entry


def plain_attrs(node: h5py.Dataset | h5py.File) -> dict[str, Any]:
    """Return attributes as plain Python values; TRIDENT's 'None' is None."""
    return {str(name): _plain_attribute(attribute) for name, attribute in node.attrs.items()}


def _plain_attribute(attribute: Any) -> Any:  # noqa: ANN401 - whatever the file holds
    if isinstance(attribute, h5py.Empty):
        return None
    if isinstance(attribute, bytes):
        attribute = attribute.decode(errors="replace")
    if isinstance(attribute, np.ndarray | np.generic):
        attribute = attribute.tolist()
    return None if isinstance(attribute, str) and attribute == "None" else attribute


def number(attrs: dict[str, Any], name: str, path: Path) -> float:
    """Return an attribute that must be a positive number.

    Raises:
        InteropError: the attribute is missing or not a positive number.
    """
    attribute = attrs.get(name)
    if (
        isinstance(attribute, bool)
        or not isinstance(attribute, int | float)
        or not 0 < attribute < np.inf
    ):
        msg = f"{path}: attribute '{name}' is {attribute!r}; a positive number must stand there"
        raise InteropError(msg)
    return float(attribute)


def whole(length: float, name: str, path: Path) -> int:
    """Return a length in pixels that must be a whole number.

    Raises:
        InteropError: the length is not a whole number.
    """
    if abs(length - round(length)) > 1e-6 * max(1.0, abs(length)):
        msg = f"{path}: {name} is {length}; it must be a whole number of pixels"
        raise InteropError(msg)
    return round(length)


def agree(option: str, option_value: float | None, file_value: float, path: Path) -> None:
    """Refuse an option of the command line if a file contradicts it.

    Raises:
        InteropError: they differ by more than 2 %.
    """
    if option_value is not None and abs(option_value / file_value - 1) > MPP_TOLERANCE:
        msg = f"{path} says {file_value:g}, but {option} {option_value:g} was given; leave it out"
        raise InteropError(msg)


def coordinates(coords: npt.NDArray[Any], path: Path) -> Int64Array:
    """Return level-0 coordinates [N, 2] as integers; [1, N, 2] is a batch of one.

    Raises:
        InteropError: another shape, or coordinates that are not whole numbers.
    """
    coords = _without_batch_axis(coords)
    if coords.ndim != 2 or coords.shape[1] != 2:
        msg = f"{path}: coords have the shape {coords.shape}; (N, 2) is needed"
        raise InteropError(msg)
    if coords.dtype.kind == "f":
        if not np.isfinite(coords).all() or (coords != np.round(coords)).any():
            msg = f"{path}: coords are not whole level-0 pixels; they have units or holes in them"
            raise InteropError(msg)
    elif coords.dtype.kind not in "iu":
        msg = f"{path}: coords are of type {coords.dtype}; numbers are needed"
        raise InteropError(msg)
    return coords.astype(np.int64)


def feature_matrix(features: npt.NDArray[Any], tiles: int, path: Path) -> FloatArray:
    """Return features [N, D] as a file has them, checked against the number of tiles.

    A batch of one, [1, N, D], counts as its only bag; opaque values of two bytes (`V2`), which is
    how NumPy and HDF5 read bfloat16, are returned as float32.

    Raises:
        InteropError: another shape or type, another number of rows, or a value that is NaN or
            infinite; the first such row is named.
    """
    features = _from_bfloat16(_without_batch_axis(features))
    if tiles == 0 and features.size == 0:
        return np.zeros((0, features.shape[1] if features.ndim == 2 else 0), np.float32)
    if features.ndim != 2 or features.dtype.kind != "f":
        msg = f"{path}: features are {features.dtype} {features.shape}; floats (N, D) are needed"
        raise InteropError(msg)
    if len(features) != tiles:
        msg = (
            f"{path}: {counted(len(features), 'feature')} for {tiles} coordinates; they must be "
            "as many"
        )
        raise InteropError(msg)
    bad_rows = ~np.isfinite(features).all(axis=1)
    if bad_rows.any():
        row = int(bad_rows.argmax())
        tiles_text = counted(int(bad_rows.sum()), "tile")
        msg = f"{path}: the features of {tiles_text} are NaN or infinite, first row {row}"
        raise InteropError(msg)
    return features


def _without_batch_axis(batch: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return an array [1, N, D] as [N, D], any other array unchanged."""
    return batch[0] if batch.ndim == 3 and len(batch) == 1 else batch


def _from_bfloat16(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return opaque bfloat16 as float32 (it is the upper half); any other array unchanged."""
    if array.dtype.kind != "V" or array.dtype.itemsize != 2 or array.dtype.names:
        return array
    bits = np.ascontiguousarray(array).view("<u2").astype(np.uint32) << 16
    return bits.view(np.float32)


def load_pt(path: Path, *, mapped: bool = False) -> npt.NDArray[Any]:
    """Return the one tensor or array of a .pt file, bfloat16 as float32.

    Args:
        path: the file.
        mapped: leave the values on disk until they are used.

    Raises:
        InteropError: the file is missing, truncated, no bare tensor, or would have to be unpickled
            into anything but a tensor.
    """
    import torch

    try:
        with torch.serialization.safe_globals(_numpy_globals()):
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except FileNotFoundError as error:
        msg = f"{path} does not exist"
        raise InteropError(msg) from error
    except Exception as error:
        # torch raises whatever its readers raise: UnpicklingError, RuntimeError, EOFError, ...
        msg = f"{path} can't be read as a bare tensor (.pt): {_first_line(error)}"
        raise InteropError(msg) from error
    if isinstance(loaded, torch.Tensor):
        loaded = (loaded.float() if loaded.dtype == torch.bfloat16 else loaded).numpy()
    if not isinstance(loaded, np.ndarray):
        msg = f"{path} holds a {type(loaded).__name__}; one bare tensor (N, D) is needed"
        raise InteropError(msg)
    return loaded


def _numpy_globals() -> list[Any]:
    # What torch.save needs to put a bare numpy array together again; these build arrays only.
    kinds = [type(np.dtype(name)) for name in ("f2", "f4", "f8")]
    rebuild = np.zeros(0).__reduce__()[0]
    return [rebuild, np.ndarray, np.dtype, *kinds]


def load_npz(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of a .npz file.

    Raises:
        InteropError: the file is missing, truncated, or holds Python objects.
    """
    import zipfile
    import zlib

    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError as error:
        msg = f"{path} does not exist"
        raise InteropError(msg) from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        msg = f"{path} can't be read as .npz, perhaps it is cut short: {_first_line(error)}"
        raise InteropError(msg) from error


def load_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        InteropError: the file is missing or is not valid JSON.
    """
    try:
        contents = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        msg = f"{path} can't be read as JSON: {_first_line(error)}"
        raise InteropError(msg) from error
    if not isinstance(contents, dict):
        msg = f"{path} holds a {type(contents).__name__}; a JSON object is needed"
        raise InteropError(msg)
    return contents


def _first_line(error: BaseException) -> str:
    text = str(error).strip().partition("\n")[0]
    return text or type(error).__name__
