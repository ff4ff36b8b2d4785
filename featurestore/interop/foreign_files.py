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

HIDDEN = "."


def find_files(folder: Path, *suffixes: str) -> Iterator[Path]:
    """Yield the files under a folder with one of these endings, sorted, without hidden ones."""
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(HIDDEN))
        for name in sorted(names):
            if name.endswith(suffixes) and not name.startswith(HIDDEN):
                yield Path(root) / name


@contextlib.contextmanager
def opened_h5(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading.

    Raises:
        InteropError: it is not there, not HDF5, truncated, or breaks while it is read.
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
        InteropError: the file has none of this name; those that it has are named.
    """
    entry = file.get(name)
    if not isinstance(entry, h5py.Dataset):
        msg = f"{file.filename} has no dataset '{name}'; it has: {', '.join(file) or 'nothing'}"
        raise InteropError(msg)
    return entry


def plain_attrs(node: h5py.Dataset | h5py.File) -> dict[str, Any]:
    """Return attributes as plain Python values; TRIDENT's 'None' is None."""
    return {str(name): _plain(attribute) for name, attribute in node.attrs.items()}


def _plain(attribute: Any) -> Any:  # noqa: ANN401 - whatever the file holds
    if isinstance(attribute, h5py.Empty):
        return None
    if isinstance(attribute, bytes):
        attribute = attribute.decode(errors="replace")
    if isinstance(attribute, np.ndarray | np.generic):
        attribute = attribute.tolist()
    return None if isinstance(attribute, str) and attribute == "None" else attribute


def number(attrs: dict[str, Any], name: str, path: Path) -> float:
    """Return an attribute that must be there and be a positive number.

    Raises:
        InteropError: it is not.
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
    """Return a number that must be whole, as a side in pixels is.

    Raises:
        InteropError: it is not.
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


def coordinates(values: npt.NDArray[Any], path: Path) -> Int64Array:
    """Return level-0 coordinates [N, 2] as integers; [1, N, 2] is a batch of one.

    Raises:
        InteropError: another shape, or values that are not whole numbers.
    """
    values = _unbatched(values)
    if values.ndim != 2 or values.shape[1] != 2:
        msg = f"{path}: coords have the shape {values.shape}; (N, 2) is needed"
        raise InteropError(msg)
    if values.dtype.kind == "f":
        if not np.isfinite(values).all() or (values != np.round(values)).any():
            msg = f"{path}: coords are not whole level-0 pixels; they have units or holes in them"
            raise InteropError(msg)
    elif values.dtype.kind not in "iu":
        msg = f"{path}: coords are of type {values.dtype}; numbers are needed"
        raise InteropError(msg)
    return values.astype(np.int64)


def feature_matrix(values: npt.NDArray[Any], tiles: int, path: Path) -> FloatArray:
    """Return features [N, D] as a file has them, checked against the number of tiles.

    A batch of one, [1, N, D], is taken as its only bag; opaque values of two bytes (`V2`), which is
    what NumPy and HDF5 make of bfloat16, come as float32.

    Raises:
        InteropError: another shape or type, another number of rows, or a value that is NaN or
            infinite; the first such row is named.
    """
    values = _from_bfloat16(_unbatched(values))
    if tiles == 0 and values.size == 0:
        return np.zeros((0, values.shape[1] if values.ndim == 2 else 0), np.float32)
    if values.ndim != 2 or values.dtype.kind != "f":
        msg = f"{path}: features are {values.dtype} {values.shape}; floats (N, D) are needed"
        raise InteropError(msg)
    if len(values) != tiles:
        msg = f"{path}: {len(values)} features for {tiles} coordinates; they must be as many"
        raise InteropError(msg)
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        row = int(bad.argmax())
        msg = f"{path}: the features of {int(bad.sum())} tiles are NaN or infinite, first row {row}"
        raise InteropError(msg)
    return values


def _unbatched(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return an array [1, N, D] as [N, D], any other as it is."""
    return values[0] if values.ndim == 3 and len(values) == 1 else values


def _from_bfloat16(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return opaque bfloat16 as float32, whose upper half it is; any other array as it is."""
    if values.dtype.kind != "V" or values.dtype.itemsize != 2 or values.dtype.names:
        return values
    bits = np.ascontiguousarray(values).view("<u2").astype(np.uint32) << 16
    return bits.view(np.float32)


def load_pt(path: Path, *, mapped: bool = False) -> npt.NDArray[Any]:
    """Return the one tensor or array of a .pt file, bfloat16 as float32.

    Args:
        path: the file.
        mapped: leave the values on disk until they are used.

    Raises:
        InteropError: it is not there, cut short, no bare tensor, or would have to be unpickled
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
        InteropError: it is not there, cut short, or holds Python objects.
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
        InteropError: it is not there, or something else.
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
