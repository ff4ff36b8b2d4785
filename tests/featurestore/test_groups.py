"""What belongs together is committed together or not at all, wherever its committer is killed."""

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import lance
import pytest

from featurestore import Lake, LakeConfig, create_lake, open_lake, verify
from featurestore.commits.cuts import SlideCut
from featurestore.commits.lance_features import append_tiles
from featurestore.commits.lance_groups import Group
from tests.conftest import ROOT
from tests.worlds.small_lake import add_slides, add_teacher, contents, cut, write_columns


class KilledError(BaseException):
    """Stands for SIGKILL: nothing of ours catches it, and the files stay as they are."""


@contextmanager
def killed_at(point: int) -> Iterator[list[int]]:
    """Die at a commit to Lance: before it (even points) or right after it (odd ones)."""
    commit = lance.LanceDataset.commit
    count = [0]

    def dying(*args: object, **kwargs: object) -> object:
        count[0] += 1
        if 2 * count[0] - 2 == point:
            raise KilledError
        done = commit(*args, **kwargs)
        if 2 * count[0] - 1 == point:
            raise KilledError
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lance.LanceDataset, "commit", dying)
        yield count


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a lake of five slides in two fragments a grid, with a teacher."""
    path = tmp_path_factory.mktemp("groups") / "lake"
    lake = create_lake(path, LakeConfig(mpps=(0.5, 2.0)))
    lake = add_slides(add_slides(lake, {"alone": 4}), {"a": 5, "b": 3, "c": 2})
    lake.committer.register([{"slide_id": "empty", "uri": "empty.svs"}])
    add_teacher(lake, "t")
    return path


def scanned_again(lake: Lake) -> None:
    """One slide shares its fragment with others, and one has its own."""
    lake.committer.commit_slides([cut(lake, 1, "a", 7, "again"), cut(lake, 0, "alone", 6, "again")])


def new_slides(lake: Lake) -> None:
    sizes = {"x": 3, "y": 4, "z": 2}
    rows = lake.committer.register([{"slide_id": name, "uri": f"{name}.svs"} for name in sizes])
    cuts = [cut(lake, row["slide"], row["slide_id"], sizes[row["slide_id"]]) for row in rows]
    lake.committer.commit_slides(cuts)


def slide_without_tiles(lake: Lake) -> None:
    cuts = [cut(lake, 4, "empty", 0), cut(lake, 2, "b", 0, "again")]
    lake.committer.commit_slides(cuts)


def one_grid_without_tiles(lake: Lake) -> None:
    whole, nothing = cut(lake, 4, "empty", 3), cut(lake, 4, "empty", 0, "nothing")
    grids = {0.5: whole.grids[0.5], 2.0: nothing.grids[2.0]}
    lake.committer.commit_slides([SlideCut(row=whole.row, grids=grids)])


def columns(lake: Lake) -> None:
    files = {
        mpp: [f for name in ("u", "v") for f in write_columns(lake, mpp, name)]
        for mpp in lake.config.mpps
    }
    lake.committer.commit_columns_of(files)


def dropped_slides(lake: Lake) -> None:
    rows = lake.table("slides.lance").to_table(filter="slide IN (0, 1)").to_pylist()
    lake.committer.drop_slides(rows)


WORK = [
    scanned_again,
    one_grid_without_tiles,
    columns,
    *(
        pytest.param(w, marks=pytest.mark.slow)
        for w in (new_slides, slide_without_tiles, dropped_slides)
    ),
]


def parts_of(lake: Lake) -> dict[str, object]:
    """Return the parts of a slide in each table, of which no reader may find two versions."""
    tables = contents(lake)
    tables["slides"] = [row for row in tables["slides"] if row[1] != "pending"]  # type: ignore[attr-defined]
    for mpp in lake.config.mpps:  # a column without any value says nothing
        tiles = tables[f"tiles {mpp}"]
        assert isinstance(tiles, dict)
        tables[f"tiles {mpp}"] = {k: v for k, v in tiles.items() if any(x is not None for x in v)}
    return tables


@pytest.mark.slow
@pytest.mark.parametrize("work", WORK, ids=lambda work: work.__name__)
def test_killed_at_any_commit_it_is_all_there_or_not_at_all(
    base: Path, tmp_path: Path, work: Callable[[Lake], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "featurestore.commits.cuts.ROWS_PER_FRAGMENT", 6
    )  # several fragments in a grid
    shutil.copytree(base, tmp_path / "whole")
    old = parts_of(open_lake(tmp_path / "whole"))
    work(open_lake(tmp_path / "whole"))
    new = parts_of(open_lake(tmp_path / "whole"))
    assert old != new
    ends = []
    for point in itertools.count():
        path = tmp_path / f"lake{point}"
        shutil.copytree(base, path)
        with killed_at(point) as count:
            try:
                work(open_lake(path))
            except KilledError:
                pass
            else:
                assert count[0] >= 2
                break
        ends.append(check_that_it_is_whole(path, old, new, point))
        if point == 2:
            work(open_lake(path))
            assert parts_of(open_lake(path)) == new
        shutil.rmtree(path)
    assert set(ends) == {"old", "new"}
    assert ends == sorted(ends, reverse=True)


def check_that_it_is_whole(
    path: Path, old: dict[str, object], new: dict[str, object], point: int
) -> str:
    """Return the lake's state after a second killed committer and a committer that finishes."""
    assert parts_of(open_lake(path)) in (old, new)  # readers never see it
    with killed_at(point % 4), suppress(KilledError):
        open_lake(path).committer.recover()
    open_lake(path).committer.recover()
    lake = open_lake(path)
    assert verify(lake).ok
    parts = parts_of(lake)
    assert parts in (old, new)
    return "old" if parts == old else "new"


def test_another_committer_takes_back_what_was_cut_short(base: Path, tmp_path: Path) -> None:
    """A process dies between the grids of a slide, and another ingest follows."""
    path = tmp_path / "lake"
    shutil.copytree(base, path)
    code = (
        "import os, lance, sys\n"
        "from featurestore import open_lake\n"
        "from tests.worlds.small_lake import cut\n"
        "lake = open_lake(sys.argv[1])\n"
        "again = [cut(lake, 1, 'a', 7, 'again'), cut(lake, 0, 'alone', 6, 'again')]\n"
        "commit = lance.LanceDataset.commit\n"
        "def last(*args, **kwargs):\n"
        "    commit(*args, **kwargs)\n"
        "    os._exit(9)\n"
        "lance.LanceDataset.commit = last\n"
        "lake.committer.commit_slides(again)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, env=env, check=False)
    assert done.returncode == 9
    before = contents(open_lake(path))
    after = contents(add_slides(open_lake(path), {"other": 3}))
    assert verify(open_lake(path)).ok
    for mpp in (0.5, 2.0):
        rows = [row for row in after[f"catalog {mpp}"] if row[0] != "other"]  # type: ignore[attr-defined]
        assert rows == before[f"catalog {mpp}"]
    scanned_again(open_lake(path))
    lake = add_teacher(open_lake(path), "t")
    assert lake.info()["tiles"] == {"0.5": 21, "2.0": 21}
    assert verify(lake).ok


def test_last_commit_of_a_committer_whose_first_was_undone_is_undone(
    base: Path, tmp_path: Path
) -> None:
    """It was paused between its commits for longer than its lease, and another one came."""
    shutil.copytree(base, tmp_path / "lake")
    lake = open_lake(tmp_path / "lake")
    before = contents(lake)
    late, group = lake.committer, Group()
    again = [cut(lake, 1, "a", 7, "again")]
    append_tiles(late.ledger, 0.5, again, [1], group)
    lake.committer.recover()
    append_tiles(late.ledger, 2.0, again, [1], group)
    late._upsert_slides([{**again[0].row, "state": "ready"}], group)
    lake.committer.recover()
    assert contents(lake.refreshed()) == before
    assert verify(lake.refreshed()).ok
