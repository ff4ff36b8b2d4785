"""Slides from servers: whole, each byte once; or in parts; and one clear line for each trouble."""

import contextlib
import errno
import itertools
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import fsspec
import openslide
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore import LakeConfig, create_lake
from featurestore.storage import shown
from ingest.cut import cut_slide
from ingest.errors import InputError, SlideError
from ingest.readers.openslide_reader import OpenSlideReader
from ingest.readers.tiff.jpeg_tiff import JpegLevel, JpegTiff
from ingest.remote import remote_errors, remote_files
from ingest.remote.local_copy import local_slide
from ingest.remote.partial_file import PartialFile, merged, parts, without
from ingest.remote.remote_files import RemoteFile
from ingest.remote.scratch import PREFIX, VARIABLE, room_is_told, scratch_folder, sweep
from ingest.remote.sparse_tiff import fetch_directories, level_ranges, plan_fetch
from ingest.select.named_slides import find_named_slides
from ingest.select.slides_to_cut import sort_out
from ingest.select.sources import fingerprint, resolve
from tests.conftest import REAL_SLIDE, ROOT
from tests.worlds.s3 import SECRET, Bucket
from tests.worlds.slide_server import SlideServer, slide_server
from tests.worlds.wide_slide import write_wide_slide

COARSE = (2.0, 8.0, 16.0)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide of 6.5 MB with levels 1, 4 and 16."""
    return write_wide_slide(tmp_path_factory.mktemp("wide") / "wide.svs")


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for copies; nothing may be left in it."""
    folder = tmp_path / "scratch"
    monkeypatch.setenv(VARIABLE, str(folder))
    yield folder
    assert not folder.exists() or not list(folder.iterdir())


@pytest.fixture
def server(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlideServer]:
    """A server with good manners; repeated tries follow quickly."""
    monkeypatch.setattr(remote_files, "PAUSE_S", 0.01)
    with slide_server() as served:
        yield served


def reason(uri: str, **options: object) -> str:
    """Why a slide can't be had, as one line without secrets."""
    with pytest.raises(SlideError) as caught, local_slide(uri, **options):  # type: ignore[arg-type]
        pass
    text = str(caught.value)
    assert "\n" not in text
    assert not any(word in text for word in ("hush", SECRET, PREFIX))
    return text


# ---------------------------------------------------------------------- whole


def test_local_slide_is_itself(tmp_path: Path) -> None:
    for uri in (str(REAL_SLIDE), f"file://{REAL_SLIDE}"):
        with local_slide(uri) as slide, local_slide(uri, mpps=COARSE) as same:
            assert slide.path == same.path == str(REAL_SLIDE)
            assert (slide.bytes_file, slide.bytes_read) == (REAL_SLIDE.stat().st_size, 0)
            slide.need([(0, 10)])
            slide.need_all()
    assert REAL_SLIDE.exists()


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("head", [200, 403])
def test_every_byte_travels_once(
    server: SlideServer, wide: Path, scratch: Path, *, ranges: bool, head: int
) -> None:
    server.ranges, server.head = ranges, head
    server.files["/a folder/ä b.svs"] = wide.read_bytes()
    with local_slide(f"{server.url}/a%20folder/%C3%A4%20b.svs?token=hush") as slide:
        path = Path(slide.path)
        assert (path.name, path.parent.parent) == ("ä b.svs", scratch)
        assert path.read_bytes() == wide.read_bytes()
        assert slide.bytes_read == slide.bytes_file == wide.stat().st_size
        assert slide.is_whole
    assert not path.exists()
    if ranges or head == 200:
        assert server.sent <= 1.02 * wide.stat().st_size
    assert server.gets("/a folder/ä b.svs") <= (10 if ranges else 3)


def test_other_file_systems_are_read_too(scratch: Path) -> None:
    with fsspec.open("memory://deep/a.svs", "wb") as file:
        file.write(REAL_SLIDE.read_bytes())
    with local_slide("memory://deep/a.svs", mpps=COARSE) as slide:
        assert Path(slide.path).read_bytes() == REAL_SLIDE.read_bytes()
        assert slide.is_whole
        assert slide.levels == []
    assert fingerprint("memory://deep/a.svs") == fingerprint(str(REAL_SLIDE))
    assert reason("memory://deep/b.svs") == "memory://deep/b.svs does not exist"
    assert reason("memory://deep") == "memory://deep is a folder, not a slide"
    assert "can't be read: ValueError: Protocol not known" in reason("nosuch://x/a.svs")


def test_files_that_belong_to_a_slide_come_along(server: SlideServer, scratch: Path) -> None:
    memory = fsspec.filesystem("memory")
    index = (
        "[Virtual Microscope Specimen]\nImageFile=a.jpg\nImageFile(1,0)=a(1,0).jpg\nNoLayers=1\n"
    )
    files = {
        "m/s.mrxs": b"1", "m/s/Slidedat.ini": b"22", "m/s/deep/Data0000.dat": b"333",
        "m/other.mrxs": b"4", "v/s.vms": index.encode(), "v/a.jpg": b"5", "v/a(1,0).jpg": b"6",
        "v/b.jpg": b"7", "d/1.dcm": b"8", "d/2.dcm": b"9", "d/notes.txt": b"10",
    }  # fmt: skip
    memory.pipe({f"/together/{name}": data for name, data in files.items()})
    for name, names in {
        "m/s.mrxs": {"s.mrxs", "s/Slidedat.ini", "s/deep/Data0000.dat"},
        "v/s.vms": {"s.vms", "a.jpg", "a(1,0).jpg"},
        "d/2.dcm": {"1.dcm", "2.dcm"},
    }.items():
        with local_slide(f"memory://together/{name}") as slide:
            folder = Path(slide.path).parent
            copies = {
                path.relative_to(folder).as_posix(): path.read_bytes()
                for path in folder.rglob("*")
                if path.is_file()
            }
            assert copies == {one: files[f"{name[0]}/{one}"] for one in names}
            assert slide.bytes_read == sum(map(len, copies.values())) == slide.bytes_file


# ---------------------------------------------------------------------- in parts


def same_levels(path: str, other: Path, levels: range) -> None:
    """The same to openslide: every property, and the pixels of these levels."""
    with openslide.OpenSlide(path) as one, openslide.OpenSlide(other) as two:
        assert dict(one.properties) == dict(two.properties)
        assert one.associated_images["label"].tobytes() == two.associated_images["label"].tobytes()
        for level in levels:
            size = one.level_dimensions[level]
            pixels = [slide.read_region((0, 0), level, size).tobytes() for slide in (one, two)]
            assert pixels[0] == pixels[1]


def test_coarse_levels_alone_are_a_small_part(server: SlideServer, wide: Path) -> None:
    server.files["/a.svs"] = wide.read_bytes()
    server.latency_s = 0.03
    with local_slide(f"{server.url}/a.svs", mpps=COARSE) as slide:
        assert slide.plan is not None
        assert (slide.plan.sparse, slide.plan.levels) == (True, (1, 2))
        assert not slide.is_whole
        same_levels(slide.path, wide, range(1, 3))
        assert slide.bytes_read == server.sent <= 0.15 * wide.stat().st_size
        assert len(server.requests) < 20
        with openslide.OpenSlide(slide.path) as hole, pytest.raises(openslide.OpenSlideError):
            hole.read_region((3000, 3000), 0, (256, 256))
        tiff = JpegTiff(slide.path)
        with pytest.raises(SlideError, match="tile 300 of level 0 is damaged or cut off"):
            tiff.jpeg(0, 300)
        tiff.close()
        slide.need_all()
        assert Path(slide.path).read_bytes() == wide.read_bytes()
        assert server.sent == slide.bytes_file


def test_single_tiles_are_fetched_by_need(server: SlideServer, wide: Path, tmp_path: Path) -> None:
    server.files["/a.svs"] = wide.read_bytes()
    whole = JpegTiff(str(wide))
    remote = RemoteFile(f"{server.url}/a.svs")
    file = PartialFile(remote, remote.state(), tmp_path / "a.svs")
    levels = fetch_directories(file)
    before, requests_before = file.bytes_read, len(server.requests)
    assert before < 0.05 * wide.stat().st_size
    tiles = [300, 301, 500]
    file.need(level_ranges(levels, 0, tiles))
    file.need(level_ranges(levels, 0, tiles[:1]))  # is there
    # Two near tiles in one request, the third, and a look.
    assert len(server.requests) == requests_before + 3
    tiff = JpegTiff(str(file.local))
    assert [tiff.jpeg(0, n) for n in tiles] == [whole.jpeg(0, n) for n in tiles]
    tiff.close()
    stored = sum(whole.levels[0].sizes[number] for number in tiles)
    assert stored <= file.bytes_read - before < stored + 70_000
    file.close()
    whole.close()


@pytest.mark.parametrize("mpps", [(0.5, 2.0), (1.0, 8.0)])
def test_fine_levels_are_copied_whole_and_once(
    server: SlideServer, wide: Path, mpps: tuple[float, ...]
) -> None:
    server.files["/a.svs"] = wide.read_bytes()
    with local_slide(f"{server.url}/a.svs", mpps=mpps) as slide:
        assert slide.is_whole
    assert server.sent == wide.stat().st_size


@pytest.mark.parametrize("name", ["real.svs", "text.svs", "none.tiff"])
def test_what_has_no_levels_to_leave_out_is_copied_whole_and_once(
    server: SlideServer, name: str
) -> None:
    real = REAL_SLIDE.read_bytes()
    content = {
        "real.svs": real,
        "text.svs": b"no slide",
        "none.tiff": b"",
        "short.svs": real[:9999],
    }
    server.files[f"/{name}"] = content[name]
    for mpps in (COARSE, None):
        server.sent = 0
        with local_slide(f"{server.url}/{name}", mpps=mpps) as slide:
            assert Path(slide.path).read_bytes() == content[name]
        assert server.sent == len(content[name])


def test_what_is_damaged_is_said_of_the_url(server: SlideServer) -> None:
    server.files["/short.svs"] = REAL_SLIDE.read_bytes()[:9999]
    server.files["/ring.svs"] = b"II*\0\x08\0\0\0" + b"\0\0" + b"\x08\0\0\0"
    for mpps in (COARSE, None):
        for name, text in (("short", "is cut off: "), ("ring", "is damaged: its directories")):
            url = f"{server.url}/{name}.svs"
            assert reason(f"{url}?token=hush", mpps=mpps).startswith(f"{url} {text}")


def test_plan_says_what_and_why() -> None:
    levels = [
        JpegLevel(
            width_px=side, height_px=side, tile_width_px=256, tile_height_px=256,
            offsets=[at], sizes=[size], head=b"",
        )
        for side, at, size in ((40_030, 0, 800), (10_000, 800, 100), (2_500, 900, 60))
    ]  # fmt: skip
    table = {
        (0.5,): (False, (0, 1, 2), 1.0, "0.5 mpp is read from the finest level"),
        (1.9, 8.0): (False, (0, 1, 2), 1.0, "1.9 mpp is read from the finest level"),
        (2.0, 8.0): (True, (1, 2), 0.16, "2 mpp is read from level 1"),
        (8.0, 16.0): (True, (2,), 0.06, "8 mpp is read from level 2"),
    }
    for mpps, expected in table.items():
        plan = plan_fetch(levels, 1000, slide_mpp=0.5, mpps=mpps)
        assert (plan.sparse, plan.levels, plan.share, plan.reason) == expected
    small = plan_fetch(levels, 300, slide_mpp=0.5, mpps=(2.0,))
    assert (small.sparse, small.reason) == (False, "levels 1 and up are 53% of the file")
    assert level_ranges(levels, 1) == [(800, 900)]


ranges = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=8)


@given(ranges, ranges, st.integers(0, 5), st.integers(1, 9))
def test_ranges_are_sets_of_bytes(
    some_ranges: list[tuple[int, int]], had: list[tuple[int, int]], gap: int, size: int
) -> None:
    def each(byte_ranges: list[tuple[int, int]]) -> set[int]:
        return {byte for start, end in byte_ranges for byte in range(start, end)}

    assert each(merged(some_ranges)) == each(some_ranges)
    near = merged(some_ranges, gap)
    assert each(near) >= each(some_ranges)
    assert all(two[0] - one[1] > gap for one, two in itertools.pairwise(near))
    left = without(near, merged(had))
    assert each(left) == each(near) - each(had)
    cut = list(parts(left, size))
    assert all(0 < end - start <= size for start, end in cut)
    assert sum(end - start for start, end in cut) == len(each(left)) == len(each(cut))


# ---------------------------------------------------------------------- trouble


@pytest.mark.slow
@pytest.mark.parametrize("mpps", [None, COARSE])
def test_trouble_that_passes_changes_nothing(
    server: SlideServer, wide: Path, monkeypatch: pytest.MonkeyPatch, mpps: tuple[float, ...] | None
) -> None:
    monkeypatch.setattr(remote_errors, "SILENT_S", 0.5)
    server.files["/a.svs"] = wide.read_bytes()
    server.troubles = ["503", "cut", "refused", "", "silent", "429", "", "500", "cut", "502"]
    with local_slide(f"{server.url}/a.svs", mpps=mpps) as slide:
        same_levels(slide.path, wide, range(0 if mpps is None else 1, 3))
    assert server.troubles == []


def test_signature_of_a_url_is_used_and_not_kept(
    server: SlideServer, tmp_path: Path, wide: Path
) -> None:
    server.files["/a.svs"] = wide.read_bytes()
    lake = create_lake(tmp_path / "lake", LakeConfig(mpps=(2.0,)))
    slides_named = find_named_slides([f"{server.url}/a.svs?X-Amz-Signature=hush"], {})
    (row,) = sort_out(lake.committer.register(slides_named.rows), {}).cut
    cut = cut_slide(lake.store, lake.config, row)
    lake.committer.commit_slides([cut])
    kept = lake.refreshed().slides().collect().row(0, named=True)
    assert (kept["uri"], kept["state"]) == (f"{server.url}/a.svs", "ready")
    assert 0 < kept["bytes_read"] < 0.2 * kept["bytes"]
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or b"hush" not in file.read_bytes()


def test_each_trouble_has_its_own_line(
    server: SlideServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_errors, "TRIES", 2)
    monkeypatch.setattr(remote_errors, "SILENT_S", 0.2)
    server.files["/a.svs"] = REAL_SLIDE.read_bytes()
    signed = f"{server.url}/a.svs?X-Amz-Credential=me&X-Amz-Signature=hush"
    messages = {403: "access is denied (403)", 503: "too busy (503) at 2 tries",
            418: "answered 418", 404: "a.svs does not exist", 500: "failed (500)"}  # fmt: skip
    for status, text in messages.items():
        server.status["/a.svs"] = status
        assert text in reason(signed)
        with pytest.raises(SlideError, match=text.replace("(", r"\(").replace(")", r"\)")):
            fingerprint(signed)
    del server.status["/a.svs"]
    server.troubles = ["silent"] * 30
    assert "no answer for 0.2 s, at 2 tries" in reason(signed)
    server.troubles = ["cut"] * 30
    assert "it breaks off (ClientPayloadError), at 2 tries" in reason(signed)
    server.ranges = False
    assert "it breaks off" in reason(signed)
    server.troubles = []
    with slide_server() as gone:
        url = gone.url
    assert "no connection, or it breaks off (ClientConnectorError)" in reason(f"{url}/a.svs")
    assert shown("http://me:hush@h/a.svs?b#c") == "http://h/a.svs"


def test_file_that_changes_or_ends_early_is_no_slide(server: SlideServer, wide: Path) -> None:
    data = wide.read_bytes()
    for content, text in (
        (data[:-1] + b"x", "changed while it was read"),
        (data[:1_000_000], "can't be read"),
        (None, "does not exist"),
    ):
        for number in (2, 5):
            server.requests.clear()
            server.files["/a.svs"] = data
            server.after = {("/a.svs", number): content}
            assert text in reason(f"{server.url}/a.svs")
    server.ranges = False
    server.requests.clear()
    server.files["/a.svs"], server.after = data, {("/a.svs", 1): data[:1_000_000]}
    assert "broke off: 1000000 of 6" in reason(f"{server.url}/a.svs")


def test_message_of_a_reader_names_the_slide_and_not_its_copy(server: SlideServer) -> None:
    server.files["/a.svs"] = b"text"
    url = f"{server.url}/a.svs"
    with (
        pytest.raises(SlideError, match=f"^{url} is not a slide format"),
        local_slide(url) as slide,
    ):
        OpenSlideReader(slide.path)


def test_disk_without_room_is_said_before_a_byte_travels(
    server: SlideServer, wide: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/a.svs"] = wide.read_bytes()
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10**9, 10**9, 30_000_000))
    text = reason(f"{server.url}/a.svs")
    assert f"does not fit into {scratch}: 0.01 GB are needed, 0.03 GB are free" in text
    assert VARIABLE in text
    assert server.sent == 0
    with (
        pytest.raises(SlideError, match=f"does not fit into {scratch}: it got full while copying"),
        room_is_told(scratch / "copy", "a.svs"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    (scratch / "file").write_text("")
    assert "no folder for copies" in reason(f"{server.url}/a.svs", scratch=str(scratch / "file"))
    (scratch / "file").unlink()


def test_copies_of_killed_processes_are_removed_and_no_others(
    server: SlideServer, scratch: Path
) -> None:
    server.files["/a.svs"] = REAL_SLIDE.read_bytes()
    url = f"{server.url}/a.svs"
    code = (
        "import sys\nfrom ingest.remote.scratch import scratch_folder\n"
        "with scratch_folder() as folder:\n    (folder / 'a.svs').write_text('half')\n"
        "    print(folder / 'a.svs', flush=True)\n    sys.stdin.read()\n"
    )
    worker = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, text=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    with worker, scratch_folder() as living:
        assert worker.stdout is not None
        copy = Path(worker.stdout.readline().strip())
        assert copy.read_text() == "half"
        assert sweep(scratch) == []
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        with local_slide(url):
            assert (living.exists(), copy.parent.exists()) == (True, False)


# ---------------------------------------------------------------------- buckets


def put(bucket: Bucket, key: str, data: bytes) -> str:
    with contextlib.closing(bucket.client) as client:
        client.put_object(Bucket=bucket.name, Key=key, Body=data)
    return f"s3://{bucket.name}/{key}"


def test_bucket_gives_each_byte_once_or_a_small_part(
    faulty: Bucket, wide: Path, scratch: Path
) -> None:
    uri = put(faulty, "a folder/wide.svs", wide.read_bytes())
    size = wide.stat().st_size
    faulty.faults.set(rates={"delayed": 1.0}, delay_s=0.03)
    fingerprint(uri)
    with local_slide(uri) as slide:
        assert Path(slide.path).read_bytes() == wide.read_bytes()
    assert sum(one.sent for one in faulty.faults.seen) <= 1.02 * size + 2 * 65536
    faulty.faults.forget()
    with local_slide(uri, mpps=COARSE) as slide:
        same_levels(slide.path, wide, range(1, 3))
    assert sum(one.sent for one in faulty.faults.seen) <= 0.15 * size
    assert {one.method for one in faulty.faults.seen} == {"GET", "HEAD"}


def test_trouble_of_a_bucket(
    faulty: Bucket, wide: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = put(faulty, "wide.svs", wide.read_bytes())
    with faulty.faults.at(slow_down=0.1, internal=0.1, refused=0.1, cut=0.2):
        for _ in range(2):
            with local_slide(uri) as slide:
                assert Path(slide.path).read_bytes() == wide.read_bytes()
    assert faulty.faults.done.total() > 3
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    faulty.faults.set(denied=".")
    assert "access is denied; the keys must allow to list and to get it" in reason(uri)
    assert resolve([uri, f"s3://{faulty.name}/folder"])[1].slide_id == "folder"
    faulty.faults.set(denied="")
    with faulty.faults.at(slow_down=1.0):
        assert "too busy" in reason(uri)
        with pytest.raises(SlideError, match="too busy"):
            fingerprint(uri)
    assert reason(f"{uri}x.svs") == f"{uri}x.svs does not exist"
    assert "there is no bucket 'never-made'" in reason("s3://never-made/a.svs")
    assert reason(f"s3://{faulty.name}") == f"s3://{faulty.name} is a folder, not a slide"


# ---------------------------------------------------------------------- sources


def test_urls_are_resolved_without_fetching_slides(server: SlideServer, wide: Path) -> None:
    server.files["/c/wide.svs"] = wide.read_bytes()
    page = b'<a href="wide.svs">wide</a> <a href="notes.txt">notes</a>'
    server.files["/c/"] = page
    signed, shelf = f"{server.url}/c/wide.svs?a=b*c&token=hush", f"{server.url}/c/"
    (source,) = resolve([signed])
    assert (source.slide_id, source.uri) == ("wide", signed)
    assert server.requests == []
    assert [source.uri for source in resolve([shelf])] == [f"{server.url}/c/wide.svs"]
    assert server.gets("/c/wide.svs") == 0
    server.sent = 0
    assert fingerprint(signed) == fingerprint(str(wide))
    assert server.sent == 2 * 65536
    server.ranges = False
    assert fingerprint(signed) == fingerprint(str(wide))


def test_odd_local_names_are_names(tmp_path: Path) -> None:
    for name in ("a[1].svs", "what?.svs", "a::b.svs", "ä 1.svs"):
        path = tmp_path / name
        path.write_bytes(b"12")
        assert [source.uri for source in resolve([str(path)])] == [str(path)]
        assert fingerprint(str(path))[0] == 2
    (tmp_path / "empty.svs").mkdir()
    assert [source.uri for source in resolve([str(tmp_path / "empty.svs")])]
    (tmp_path / "m.csv").write_text("uri,mpp\nempty.svs,half\n")
    with pytest.raises(InputError, match=r"row 2, column .mpp.: .half. is no number"):
        resolve([str(tmp_path / "m.csv")])
    (tmp_path / "m.csv").write_text("uri,mpp\n,0.5\n")
    with pytest.raises(InputError, match="row 2 has no uri"):
        resolve([str(tmp_path / "m.csv")])
