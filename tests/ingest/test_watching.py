"""A watch: files are taken once they have stopped growing, and nothing is held while it waits."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from featurestore import BucketError, LakeConfig, open_lake
from featurestore.storage.lock import live_writers
from ingest import watching
from ingest.errors import InputError
from ingest.ray_ingest import IngestResult
from ingest.select.listed_files import ListedFile
from ingest.select.settled_files import SettledFiles
from ingest.watching import Watch
from tests.conftest import REAL_SLIDE
from tests.worlds.command_lines import Slidelake, command_line
from tests.worlds.examples_folder import without_ray

CONFIG = LakeConfig(mpps=(2.0,))
NOW_S = 1e9
WATCH = command_line("ingest {tmp}/lake {tmp}/slides --mpp 2.0 --watch --every 7 --json")
SINCE = command_line(
    "ingest {tmp}/lake {tmp}/slides --mpp 2.0 --since 1w --check-content --quiet --json"
)


def file(mark: str, changed_s: float) -> ListedFile:
    return ListedFile(mark=mark, changed_s=changed_s)


def test_a_file_is_settled_after_two_looks_that_saw_the_same() -> None:
    now_s = NOW_S
    settled = SettledFiles(60, clock=lambda: now_s)
    old, new = file("1", NOW_S - 7200), file("1", NOW_S - 5)
    assert settled.growing({"/old.svs": old, "/new.svs": new, "s3://b/c.svs": new}) == {"/new.svs"}
    now_s += 59
    assert settled.growing({"/new.svs": new}) == {"/new.svs"}  # too soon to tell
    now_s += 1
    grown = file("2", now_s)
    assert settled.growing({"/new.svs": grown}) == {"/new.svs"}
    now_s += 60
    assert settled.growing({"/new.svs": grown}) == set()


@pytest.mark.parametrize("ahead_s", [-1800, 1800])
def test_the_clock_of_a_file_server_decides_nothing(ahead_s: float) -> None:
    """It grows; its server's clock is half an hour off."""
    now_s = NOW_S
    settled = SettledFiles(60, clock=lambda: now_s)
    for size in range(5):
        assert settled.growing({"/a.svs": file(str(size), now_s + ahead_s)}) == {"/a.svs"}
        now_s += 60


def test_a_slide_of_several_files_waits_for_all_of_them(tmp_path: Path) -> None:
    now_s = NOW_S
    settled = SettledFiles(60, clock=lambda: now_s)
    (tmp_path / "a").mkdir()
    one = {f"{tmp_path}/a.mrxs": file("1", NOW_S), f"{tmp_path}/b.dcm": file("1", NOW_S)}
    assert settled.growing(one) == set(one)
    now_s += 60
    (tmp_path / "a" / "Data0000.dat").write_bytes(b"more")
    assert settled.growing(one) == {f"{tmp_path}/a.mrxs"}
    now_s += 60
    (tmp_path / "c.dcm").write_bytes(b"more")
    assert settled.growing(one) == {f"{tmp_path}/b.dcm"}


class Hours:
    """A clock that is moved by `sleep`, after what happens meanwhile was done."""

    def __init__(self, *meanwhile: Callable[[], object]) -> None:
        self.now_s, self._meanwhile = NOW_S, list(meanwhile)

    def sleep(self, seconds: float) -> None:
        if not self._meanwhile:
            raise KeyboardInterrupt
        self.now_s += seconds
        self._meanwhile.pop(0)()


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    folder = tmp_path / "slides"
    folder.mkdir()
    return folder


def watched(lake: Path, slides: Path, hours: Hours, notes: list[str]) -> list[IngestResult]:
    """The outcomes until the hours are over."""
    watch = Watch(
        lake_uri=str(lake),
        inputs=[str(slides)],
        config=CONFIG,
        options={},
        every_s=60,
        note=notes.append,
        sleep=hours.sleep,
        clock=lambda: hours.now_s,
    )
    outcomes: list[IngestResult] = []
    with without_ray(), pytest.raises(KeyboardInterrupt):
        outcomes.extend(watch.outcomes())
    return outcomes


def test_slides_are_cut_as_they_arrive(tmp_path: Path, slides: Path) -> None:
    lake, content = tmp_path / "lake", REAL_SLIDE.read_bytes()
    held: list[list[str]] = []

    def nothing() -> None:
        if lake.exists():
            held.append(live_writers(open_lake(lake).store))

    hours = Hours(
        lambda: (slides / "a.svs").write_bytes(content[:9000]),  # it is being copied
        lambda: (slides / "a.svs").write_bytes(content),
        nothing,  # the same at this look: taken
        nothing,
        lambda: (slides / "bad.svs").write_bytes(content[:9000]),
        nothing,
        nothing,  # it failed, and is not tried again
        nothing,
        lambda: (slides / "bad.svs").write_bytes(content),
        nothing,
        nothing,
    )
    outcomes = watched(lake, slides, hours, [])
    assert [(one.new, one.ready, len(one.failed)) for one in outcomes] == [
        (1, 1, 0),
        (1, 0, 1),
        (1, 1, 0),
    ]
    assert held
    assert not any(held)  # no lease while it waits


def test_what_is_refused_or_unreadable_is_not_tried_at_each_look(
    tmp_path: Path, slides: Path
) -> None:
    for name in ("a.svs", "x/a.svs"):  # two files of one name
        (slides / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(REAL_SLIDE, slides / name)
    (slides / "gone.svs").symlink_to(tmp_path / "nowhere.svs")
    hours = Hours(*[lambda: None] * 4)
    hours.now_s = (slides / "a.svs").stat().st_ctime + 7200  # all settled long ago
    (outcome,) = watched(tmp_path / "lake", slides, hours, [])
    assert (outcome.ready, sorted(one["slide"] for one in outcome.failed)) == (1, ["a", "gone"])


def test_a_manifest_that_was_written_anew_is_applied(tmp_path: Path, slides: Path) -> None:
    manifest, lake = tmp_path / "m.csv", tmp_path / "lake"
    manifest.write_text(f"uri,patient_id\n{REAL_SLIDE},P1\n")
    hours = Hours(lambda: None, lambda: manifest.write_text(f"uri,patient_id\n{REAL_SLIDE},P22\n"))
    hours.now_s = REAL_SLIDE.stat().st_ctime + 7200
    outcomes = watched(lake, manifest, hours, [])
    assert [(one.new, one.facts) for one in outcomes] == [(1, 0), (0, 1)]
    assert open_lake(lake).slides().collect()["patient_id"].to_list() == ["P22"]


def test_a_bucket_that_is_away_is_looked_at_again_and_wrong_usage_is_raised(
    tmp_path: Path, slides: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []

    def away(*_: object, **__: object) -> None:
        msg = "the bucket does not answer"
        raise BucketError(msg)

    monkeypatch.setattr(watching, "known_files_at", away)
    assert watched(tmp_path / "lake", slides, Hours(lambda: None), notes) == []
    assert notes == ["the bucket does not answer; the next look is in 60 s"] * 2
    monkeypatch.undo()
    with pytest.raises(InputError, match="does not exist"):
        next(Watch(lake_uri="", inputs=["/nowhere"], config=CONFIG, options={}).outcomes())


def test_the_command_ends_cleanly(
    slidelake: Slidelake, tmp_path: Path, slides: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copyfile(REAL_SLIDE, slides / "a.svs")
    sleeps: list[float] = []

    def stop_at_the_third(seconds: float) -> None:
        sleeps.append(seconds)
        if len(sleeps) == 3:
            raise KeyboardInterrupt

    long_after = partial(Watch, sleep=stop_at_the_third, clock=lambda: 4e9)
    monkeypatch.setattr(watching, "Watch", long_after)
    places = {"tmp": str(tmp_path)}
    with without_ray():
        answer = slidelake(*WATCH.words(places))
        assert answer.value["ready"] == 1
        assert "watching every 7 s; Ctrl-C ends it" in answer.stderr
        assert "stopped watching; what is committed stays" in answer.stderr
        assert sleeps == [7, 7, 7]
        assert slidelake(*SINCE.words(places)).value["ready"] == 1
