"""Weights in a bucket: fetched once on a node, whole or not at all, within bounds."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from featurestore import Store
from ingest import CARDS, TeacherError
from ingest.teachers.find_teacher import find_teachers, list_teachers
from ingest.teachers.own_file import run_file
from ingest.teachers.weights import node_cache
from ingest.teachers.weights.node_cache import CACHE, CACHE_GB, bucket_names, cached_file
from ingest.teachers.weights.weights_files import find_weights, has_weights
from tests.conftest import ROOT
from tests.worlds.s3 import Bucket

CARD = replace(CARDS["uni2_h"], hub=None)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the node's cache, empty."""
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    monkeypatch.delenv(CACHE_GB, raising=False)
    monkeypatch.delenv("SLIDELAKE_WEIGHTS", raising=False)
    node_cache._bucket_names.cache_clear()
    return tmp_path / "cache"


def put(bucket: Bucket, key: str, content: bytes) -> str:
    """Write an object past our code; return its URL."""
    with contextlib.closing(bucket.client) as client:
        client.put_object(Bucket=bucket.name, Key=key, Body=content)
    return f"s3://{bucket.name}/{key}"


def entries(cache: Path) -> list[str]:
    """Names of the files in the entries of a cache."""
    return sorted(path.name for path in cache.glob("*/*") if path.name != "record.json")


def test_weights_are_found_in_a_bucket_by_the_names_of_a_folder(
    bucket: Bucket, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(bucket, "weights/uni2_h.pth", b"pth")
    put(bucket, "weights/conch/model.safetensors", b"conch")
    put(bucket, "weights/too/deep/virchow2.safetensors", b"x")
    url = f"s3://{bucket.name}/weights/"
    assert bucket_names(url) == ["conch/model.safetensors", "uni2_h.pth"]
    assert has_weights(CARD, url)
    assert not has_weights(replace(CARDS["virchow2"], hub=None), url)
    assert not cache.exists()  # looking fetches nothing
    found = find_weights(CARD, url)
    assert found is not None
    assert (found.name, found.read_bytes()) == ("uni2_h.pth", b"pth")
    assert found.is_relative_to(cache)
    monkeypatch.setenv("SLIDELAKE_WEIGHTS", url)
    rows = {row["teacher"]: row["available"] for row in list_teachers()}
    assert (rows["uni2_h"], rows["conch"], rows["virchow2"]) == (True, True, False)
    assert entries(cache) == ["uni2_h.pth"]


def test_a_teacher_with_weights_in_a_bucket_is_the_same_teacher(
    bucket: Bucket, cache: Path, tmp_path: Path
) -> None:
    package = find_weights(CARDS["efficientnet_lite0"])
    assert package is not None
    put(bucket, "w/efficientnet_lite0.pth", package.read_bytes())
    url = f"s3://{bucket.name}/w"
    (teacher,) = find_teachers(Store(tmp_path), ["efficientnet_lite0"], folder=url)
    (own,) = find_teachers(Store(tmp_path), ["efficientnet_lite0"])
    assert (teacher.sha256, teacher.folder) == (own.sha256, url)
    assert entries(cache) == ["efficientnet_lite0.pth"]


def test_a_file_is_fetched_once_and_again_only_when_it_was_replaced(
    bucket: Bucket, cache: Path
) -> None:
    url = put(bucket, "w/a.safetensors", b"one" * 1000)
    first = cached_file(url)
    stamp = first.stat().st_mtime_ns
    assert cached_file(url) == first
    assert first.stat().st_mtime_ns == stamp
    put(bucket, "w/a.safetensors", b"two" * 1000)
    second = cached_file(url)
    assert second != first
    assert second.read_bytes() == b"two" * 1000
    assert entries(cache) == ["a.safetensors"] * 2


def test_many_processes_of_a_node_fetch_a_file_once(
    faulty: Bucket, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = put(faulty, "w/a.safetensors", os.urandom(300_000))
    monkeypatch.setattr(node_cache, "_PART_BYTES", 100_000)
    reads: list[int] = []
    fetch = node_cache._fetch

    def counted(*arguments: object) -> None:
        reads.append(1)
        time.sleep(0.2)
        fetch(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(node_cache, "_fetch", counted)
    with ThreadPoolExecutor(6) as pool:  # flock tells open files apart, not processes
        paths = set(pool.map(cached_file, [url] * 6))
    assert len(paths) == 1
    assert len(reads) == 1
    assert entries(cache) == ["a.safetensors"]


@pytest.mark.parametrize("how", ["flipped", "cut", "no record", "no file"])
def test_a_damaged_entry_is_fetched_again(bucket: Bucket, cache: Path, how: str) -> None:
    content = os.urandom(5000)
    url = put(bucket, "w/a.safetensors", content)
    path = cached_file(url)
    if how == "flipped":
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    elif how == "cut":
        path.write_bytes(content[:-1])
    elif how == "no record":
        (path.parent / "record.json").write_text("{")
    else:
        path.unlink()
    assert cached_file(url).read_bytes() == content
    assert entries(cache) == ["a.safetensors"]


KILLED = """
import os, signal, sys
from ingest.teachers.weights import node_cache
node_cache.sha256_of = lambda path: os.kill(os.getpid(), signal.SIGKILL)  # fetched, not yet named
node_cache.cached_file(sys.argv[1])
"""


def test_a_fetch_that_is_killed_leaves_nothing_that_looks_whole(
    bucket: Bucket, cache: Path
) -> None:
    url = put(bucket, "w/a.safetensors", b"x" * 5000)
    killed = subprocess.run([sys.executable, "-c", KILLED, url], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [path.suffix for path in cache.iterdir() if path.is_dir()] == [".new"]
    assert cached_file(url).read_bytes() == b"x" * 5000
    assert [path.suffix for path in cache.iterdir() if path.is_dir()] == [""]


def test_a_file_that_changes_while_it_is_fetched_is_refused(
    bucket: Bucket, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = put(bucket, "w/a.safetensors", b"one" * 1000)
    make_room = node_cache._make_room

    def replaced(root: Path, size: int, entry: Path) -> None:
        make_room(root, size, entry)
        put(bucket, "w/a.safetensors", b"two" * 1000)

    monkeypatch.setattr(node_cache, "_make_room", replaced)
    with pytest.raises(TeacherError, match="changed while it was fetched"):
        cached_file(url)
    assert entries(cache / "..") == [] or not list(cache.glob("*/record.json"))


def test_the_cache_is_bounded_and_what_was_not_used_for_longest_goes(
    bucket: Bucket, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_GB, str(25_000 / 1e9))
    urls = {name: put(bucket, f"w/{name}.pth", name.encode() * 10_000) for name in "abc"}
    old = time.time() - 5000
    for number, name in enumerate("ab"):
        os.utime(cached_file(urls[name]).parent, (old + number, old + number))
    cached_file(urls["c"])
    assert entries(cache) == ["b.pth", "c.pth"]
    with pytest.raises(TeacherError, match=f"it may hold 2.5e-05 GB.*{CACHE_GB}"):
        cached_file(put(bucket, "w/d.pth", b"d" * 10_000 * 2))  # c was used a moment ago
    monkeypatch.setenv(CACHE_GB, "many")
    with pytest.raises(TeacherError, match="'many' is no number of GB above 0"):
        cached_file(put(bucket, "w/e.pth", b"e"))


def test_a_bucket_that_is_not_there_is_one_line(bucket: Bucket, cache: Path) -> None:
    with pytest.raises(TeacherError, match=r"weights: s3://bucket-none"):
        cached_file("s3://bucket-none/w/a.pth")
    with pytest.raises(TeacherError, match=r"weights at https://h/w: give a folder, or a URL"):
        find_weights(CARD, "https://h/w")
    assert not has_weights(CARD, f"s3://{bucket.name}/empty")
    assert not list(cache.glob("*/record.json"))


def test_an_own_file_finds_its_weights_of_a_bucket_on_the_node(bucket: Bucket, cache: Path) -> None:
    url = put(bucket, "w/mine.safetensors", b"mine")
    source = (
        f"from pathlib import Path\nWEIGHTS = {url!r}\n"
        "def build():\n    return Path(WEIGHTS).read_bytes()\n"
    )
    module = run_file(source, "own.py", TeacherError)
    assert module.build() == b"mine"
    assert json.loads(next(cache.glob("*/record.json")).read_text())["url"] == url
    with pytest.raises(TeacherError, match=r"own\.py: weights: "):
        run_file(f"WEIGHTS = {url + 'x'!r}", "own.py", TeacherError)
