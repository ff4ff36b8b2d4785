"""A TIFF that is cut off anywhere is noticed, in every form that TIFFs have."""

from pathlib import Path

import numpy as np
import pytest
import tifffile

from ingest.errors import SlideError
from ingest.readers.tiff.tiff_check import check_tiff
from tests.conftest import REAL_SLIDE


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_cut_of_every_form_is_noticed(tmp_path: Path, order: str, *, big: bool) -> None:
    path = tmp_path / "a.tiff"
    pixels = np.random.default_rng(0).integers(0, 255, (300, 300, 3)).astype(np.uint8)
    with tifffile.TiffWriter(path, byteorder=order, bigtiff=big) as tiff:
        for shrink in (1, 2):
            tiff.write(pixels[::shrink, ::shrink], tile=(64, 64), photometric="rgb")
    check_tiff(str(path))
    data = path.read_bytes()
    for size in [*range(16, 600, 7), *range(600, len(data), 9973), len(data) - 1]:
        path.write_bytes(data[:size])
        with pytest.raises(SlideError, match=r"is cut off: what it lists reaches to byte \d+, and"):
            check_tiff(str(path))


def test_what_is_whole_or_no_tiff_passes(tmp_path: Path) -> None:
    check_tiff(str(REAL_SLIDE))
    for number, data in enumerate((b"", b"II", b"II*", b"text", b"II*\0\0\0\0\0", b"\xff\xd8\xff")):
        path = tmp_path / f"{number}.svs"
        path.write_bytes(data)
        check_tiff(str(path))
    check_tiff(str(tmp_path / "missing.svs"))


def test_directories_in_a_ring_and_of_any_length_end(tmp_path: Path) -> None:
    ring = b"II*\0\x08\0\0\0" + b"\0\0" + b"\x08\0\0\0"
    (tmp_path / "ring.tiff").write_bytes(ring)
    with pytest.raises(SlideError, match="its directories of images lead in a circle"):
        check_tiff(str(tmp_path / "ring.tiff"))
    (tmp_path / "long.tiff").write_bytes(b"II+\0\x08\0\0\0" + b"\x10" + b"\0" * 7 + b"\xff" * 5000)
    with pytest.raises(SlideError, match="is cut off"):
        check_tiff(str(tmp_path / "long.tiff"))


def test_tiles_too_large_to_decode_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tiff"
    tifffile.imwrite(path, np.zeros((64, 64, 3), np.uint8), tile=(16_384, 16), photometric="rgb")
    with pytest.raises(SlideError, match="tiles of 16384 px; tiles of up to 8192 px are read"):
        check_tiff(str(path))
