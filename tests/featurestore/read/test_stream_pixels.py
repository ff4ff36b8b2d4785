"""Smaller tiles of a stream, libjpeg's scaled decode, and the cache of decoded tiles."""

import errno
import io
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from featurestore import Lake, LakeError
from featurestore.pixels import pixel_cache
from featurestore.pixels.tile_pixels import PixelDecoder, resized
from featurestore.read import stream as stream_module
from featurestore.read.stream import Stream
from tests.conftest import ROOT
from tests.worlds.training_lake import SIZES, TILE_PX, make

SMALL: dict[str, Any] = {"mpp": 0.5, "batch_tiles": 16, "block_tiles": 4, "buffer_tiles": 64}
TILES = sum(SIZES.values())
Pixels = dict[int, npt.NDArray[np.uint8]]


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return make(tmp_path_factory.mktemp("stream-pixels") / "lake")


def pixels_of(lake: Lake, **settings: Any) -> Pixels:  # noqa: ANN401
    """Return the pixels of an epoch by key."""
    stream = lake.stream("packed", **SMALL, pixels="uint8", **settings)
    return epoch(stream)


def epoch(stream: Stream) -> Pixels:
    found: Pixels = {}
    for batch in stream:
        assert batch.pixels is not None
        found |= dict(zip(batch.tile_id.tolist(), batch.pixels, strict=True))
    return found


def same(a: Pixels, b: Pixels) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


# ---------------------------------------------------------------------- size


def test_a_smaller_input_is_the_resize_of_extract(lake: Lake) -> None:
    from distill.train.views import sized

    full, small = pixels_of(lake), pixels_of(lake, input_px=20)
    for key, pixels in small.items():
        by_task = sized(torch.from_numpy(full[key][None].copy()), 20)[0].permute(1, 2, 0)
        np.testing.assert_array_equal(pixels, by_task.numpy())


def test_scaled_decode_is_near_a_resize_and_is_libjpegs_own(lake: Lake) -> None:
    """Pillow's draft mode is libjpeg's scaled decode as well."""
    stream = lake.stream("packed", **SMALL, pixels="jpeg")
    jpegs = {k: j for b in stream for k, j in zip(b.tile_id.tolist(), b.jpeg or (), strict=True)}
    scaled, full = pixels_of(lake, input_px=16, decode="scaled"), pixels_of(lake, input_px=16)
    for key, pixels in scaled.items():
        with Image.open(io.BytesIO(jpegs[key])) as image:
            image.draft("RGB", (16, 16))
            np.testing.assert_array_equal(pixels, np.asarray(image))
    difference = np.abs(np.stack(list(scaled.values())).astype(int) - np.stack([*full.values()]))
    assert difference.mean() < 8


def test_scaled_decode_with_no_fast_scale_is_a_full_decode(lake: Lake) -> None:
    assert same(pixels_of(lake, input_px=20, decode="scaled"), pixels_of(lake, input_px=20))
    scales = [PixelDecoder(tile_px=256, input_px=px, decode="scaled").scale for px in (129, 64, 32)]
    assert scales == [1, 4, 8]


def test_a_scaled_tile_that_is_larger_than_the_input_is_resized(lake: Lake) -> None:
    whole = pixels_of(lake, input_px=16, decode="scaled")
    for key, pixels in pixels_of(lake, input_px=12, decode="scaled").items():
        np.testing.assert_array_equal(pixels, resized(whole[key][None].copy(), 12)[0])


def test_resize_agrees_with_torch() -> None:
    tiles = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    x = torch.from_numpy(tiles).permute(0, 3, 1, 2).float()
    exact = F.interpolate(x, (24, 24), mode="bicubic", antialias=True).round().clamp(0, 255)
    assert np.abs(resized(tiles, 24).astype(int) - exact.permute(0, 2, 3, 1).numpy()).max() <= 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"pixels": "uint8", "input_px": TILE_PX + 1}, f"1 to {TILE_PX}"),
        ({"pixels": "uint8", "decode": "quick"}, "full, scaled"),
        ({"pixels": "jpeg", "input_px": 16}, "of pixels='uint8'"),
        ({"pixels": "none", "cache_pixels_gb": 1.0}, "of pixels='uint8'"),
        ({"pixels": "uint8", "cache_pixels_gb": -1.0}, "0 GB or more"),
    ],
)
def test_settings_that_are_not_allowed(lake: Lake, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(LakeError, match=said):
        lake.stream("packed", **SMALL, **settings)


def test_threads_follow_torch(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []

    def noted(threads: int, thread_name_prefix: str) -> ThreadPoolExecutor:
        counts.append(threads)
        return ThreadPoolExecutor(threads, thread_name_prefix)

    monkeypatch.setattr(stream_module, "ThreadPoolExecutor", noted)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    next(iter(lake.stream("packed", **SMALL, pixels="uint8")))
    next(iter(lake.stream("packed", **SMALL, pixels="uint8", threads=2)))
    assert counts == [3, 2]


# ---------------------------------------------------------------------- cache


def cached(lake: Lake, folder: Path, gb: float = 1.0, **settings: Any) -> Stream:  # noqa: ANN401
    return lake.stream(
        "packed",
        **SMALL,
        pixels="uint8",
        input_px=16,
        cache_pixels_gb=gb,
        cache_folder=str(folder),
        **settings,
    )


def counted_jpegs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets an entry for each tile that is decoded."""
    decoded: list[int] = []
    whole = PixelDecoder.decoded

    def noted(self: PixelDecoder, jpeg: bytes, into: npt.NDArray[np.uint8]) -> None:
        decoded.append(1)
        whole(self, jpeg, into)

    monkeypatch.setattr(PixelDecoder, "decoded", noted)
    return decoded


def test_the_second_epoch_and_the_next_run_decode_nothing(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = pixels_of(lake, input_px=16)
    decoded = counted_jpegs(monkeypatch)
    stream = cached(lake, tmp_path)
    assert same(epoch(stream), plain)
    assert len(decoded) == TILES
    assert same(epoch(stream), plain)
    assert same(epoch(cached(lake, tmp_path)), plain)
    assert len(decoded) == TILES
    # Another decode is another file.
    scaled = epoch(cached(lake, tmp_path, decode="scaled"))
    assert len(decoded) == 2 * TILES
    assert not same(scaled, plain)


def test_the_file_is_bounded_and_a_part_is_kept(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, slot = pixels_of(lake, input_px=16), 16 * 16 * 3
    stream = cached(lake, tmp_path, gb=(4096 + 100 * slot) / 1e9)
    assert same(epoch(stream), plain)
    decoded = counted_jpegs(monkeypatch)
    assert same(epoch(stream), plain)
    assert len(decoded) == TILES - 100
    [path] = tmp_path.glob("*.pixels")
    assert path.stat().st_size <= 4096 + 100 * slot


def test_damaged_slots_are_decoded_again(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = epoch(cached(lake, tmp_path))
    [path] = tmp_path.glob("*.pixels")
    content = bytearray(path.read_bytes())
    content[4096 + 5] ^= 1  # a pixel of the first tile
    content[8] ^= 1  # the checksum of the second
    path.write_bytes(content)
    os.truncate(path, len(content) - 16 * 16 * 3)  # the last tile is gone
    decoded = counted_jpegs(monkeypatch)
    assert same(epoch(cached(lake, tmp_path)), plain)
    assert len(decoded) == 3
    assert same(epoch(cached(lake, tmp_path)), plain)
    assert len(decoded) == 3


def test_a_full_disk_is_told_and_gives_the_same_tiles(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = pixels_of(lake, input_px=16)
    written, pwrite = [], os.pwrite

    def full_disk(file: int, content: memoryview, place: int) -> int:
        written.append(place)
        if len(written) > 40:
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(file, content, place)

    monkeypatch.setattr(os, "pwrite", full_disk)
    stream = cached(lake, tmp_path, threads=1)
    with pytest.warns(RuntimeWarning, match="is full: tiles are decoded again"):
        assert same(epoch(stream), plain)
    assert same(epoch(stream), plain)
    assert len(written) == 41


FILL = """
import sys
from featurestore import open_lake
lake = open_lake(sys.argv[1])
stream = lake.stream("packed", mpp=0.5, batch_tiles=16, block_tiles=4, buffer_tiles=64,
    pixels="uint8", input_px=16, cache_pixels_gb=1, cache_folder=sys.argv[2])
for number, batch in enumerate(stream):
    if number == 4:
        print("here", flush=True)
        sys.stdin.read()
"""


def test_a_killed_process_leaves_no_wrong_tile(lake: Lake, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", FILL, lake.uri, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"here\n"
        process.send_signal(signal.SIGKILL)
    [path] = tmp_path.glob("*.pixels")
    assert path.stat().st_size > 4096
    assert same(epoch(cached(lake, tmp_path)), pixels_of(lake, input_px=16))


def test_files_that_nobody_uses_make_room(lake: Lake, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.pixels").write_bytes(bytes(100_000))
    os.utime(tmp_path / "a.pixels", (1, 1))
    used = pixel_cache._opened(tmp_path / "c.pixels")
    stream = cached(lake, tmp_path, gb=330_000 / 1e9)
    epoch(stream)
    names = {path.stem for path in tmp_path.glob("*.pixels")}
    assert "a" not in names  # the longest unused
    assert {"b", "c"} < names
    # This one wants nearly all room, but no file is removed while it is in use.
    cached(lake, tmp_path, gb=200_000 / 1e9, decode="scaled")._open_cache()
    names = {path.stem for path in tmp_path.glob("*.pixels")}
    assert "b" not in names
    assert "c" in names
    assert len(names) == 3
    os.close(used)


def test_a_folder_that_cannot_be_written_is_told(lake: Lake, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(LakeError, match="set SLIDELAKE_PIXEL_CACHE to a folder"):
        epoch(cached(lake, tmp_path / "file" / "folder"))
