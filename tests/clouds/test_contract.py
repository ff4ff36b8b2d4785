"""What stores promise holds on Ceph's S3, on Azure's emulator and on Google's.

The tests are those of `test_storage` and `test_lock`, on other servers; here are only the fixtures
that lead there, and what those tests take for granted: conditional writes, checked without any of
our code.
"""

import contextlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import lance
import pyarrow as pa
import pytest
from botocore.exceptions import ClientError

from featurestore import LakeError, Store
from featurestore.storage import lock
from tests.featurestore.storage.test_lock import (
    quick,
    test_killed_holder_is_followed,
    test_of_many_at_once_each_has_the_lock_alone,
    test_of_many_takers_of_an_expired_lease_one_wins,
    test_suspended_holder_is_overtaken_and_knows,
    test_writers_wait_for_a_vacuum_and_vacuums_for_none,
)
from tests.featurestore.storage.test_storage import (
    ODD,
    store,
    test_files_come_back_as_they_were_written,
    test_folders_are_there_when_a_file_is_in_them,
    test_of_many_creators_one_succeeds,
    test_published_file_appears_whole_and_leaves_nothing_behind,
    test_remove_takes_many_at_once_and_passes_over_the_missing,
    test_walk_gives_every_file_with_its_size_and_time,
    test_what_another_process_writes_is_seen_at_once,
)
from tests.worlds.clouds import AnyBucket, Container, GoogleBucket
from tests.worlds.s3 import Bucket

# The clients of Azure and Google give aiohttp a body of a megabyte as bytes, of which it warns.
LARGE_BODY = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
pytestmark = [pytest.mark.slow, pytest.mark.servers, LARGE_BODY]

__all__ = [
    "quick",
    "store",
    "test_files_come_back_as_they_were_written",
    "test_folders_are_there_when_a_file_is_in_them",
    "test_killed_holder_is_followed",
    "test_of_many_at_once_each_has_the_lock_alone",
    "test_of_many_creators_one_succeeds",
    "test_of_many_takers_of_an_expired_lease_one_wins",
    "test_published_file_appears_whole_and_leaves_nothing_behind",
    "test_remove_takes_many_at_once_and_passes_over_the_missing",
    "test_suspended_holder_is_overtaken_and_knows",
    "test_walk_gives_every_file_with_its_size_and_time",
    "test_what_another_process_writes_is_seen_at_once",
    "test_writers_wait_for_a_vacuum_and_vacuums_for_none",
]

TABLE = pa.table({"a": [1, 2, 3]})


@pytest.fixture(autouse=True)
def unhurried(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set leases that servers on a busy machine renew in time."""
    monkeypatch.setattr(lock, "LEASE_S", 6.0)


@pytest.fixture
def any_store(any_bucket: AnyBucket) -> Store:
    """Return an empty place for a lake in each cloud."""
    return Store(any_bucket.uri)


@pytest.fixture
def bucket(any_bucket: AnyBucket) -> AnyBucket:
    """Return an empty bucket in each cloud."""
    return any_bucket


# ---------------------------------------------------------------------- conditional writes

Write = Callable[[bytes], bool]


def _s3_writers(client: Any, name: str) -> tuple[Write, Callable[[], Write]]:  # noqa: ANN401
    def put(body: bytes, **condition: str) -> bool:
        try:
            client.put_object(Bucket=name, Key="lock", Body=body, **condition)
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] != 412:
                raise
            return False
        return True

    def replacer() -> Write:
        # Ceph 16 compares it without the quotes that belong to it; S3 takes both.
        etag = client.head_object(Bucket=name, Key="lock")["ETag"].strip('"')
        return lambda body: put(body, IfMatch=etag)

    return lambda body: put(body, IfNoneMatch="*"), replacer


def _azure_writers(client: Any) -> tuple[Write, Callable[[], Write]]:  # noqa: ANN401
    from azure.core import MatchConditions
    from azure.core.exceptions import ResourceExistsError, ResourceModifiedError

    blob = client.get_blob_client("lock")

    def put(body: bytes, **condition: object) -> bool:
        try:
            blob.upload_blob(body, **condition)
        except (ResourceExistsError, ResourceModifiedError):
            return False
        return True

    def replacer() -> Write:
        seen = {"etag": blob.get_blob_properties().etag}
        unmodified = {"match_condition": MatchConditions.IfNotModified, "overwrite": True}
        return lambda body: put(body, **seen, **unmodified)

    return lambda body: put(body, overwrite=False), replacer


def _google_writers(bucket: GoogleBucket) -> tuple[Write, Callable[[], Write]]:
    # By the XML API, as Lance writes; gcsfs writes by the other one, JSON, in the tests above.
    def put(body: bytes, generation: str) -> bool:
        status, _ = bucket.ask(
            "PUT", f"/{bucket.name}/lock", body, x_goog_if_generation_match=generation
        )
        assert status in {200, 412}
        return status == 200

    def replacer() -> Write:
        place = f"/storage/v1/b/{bucket.name}/o/{quote('lock')}"
        generation = str(json.loads(bucket.ask("GET", place)[1])["generation"])
        return lambda body: put(body, generation)

    return lambda body: put(body, "0"), replacer


def _writers(bucket: AnyBucket) -> tuple[Write, Callable[[], Write]]:
    if isinstance(bucket, Bucket):
        return _s3_writers(bucket.client, bucket.name)
    return (
        _azure_writers(bucket.client) if isinstance(bucket, Container) else _google_writers(bucket)
    )


def test_of_many_conditional_writes_the_server_takes_one(any_bucket: AnyBucket) -> None:
    create, replacer = _writers(any_bucket)
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(create, [f"maker {n}".encode() for n in range(8)]))
        assert sum(made) == 1
        assert any_bucket.objects()["lock"] == f"maker {made.index(True)}".encode()
        replace = replacer()
        replaced = list(pool.map(replace, [f"next {n}".encode() for n in range(8)]))
    assert sum(replaced) == 1
    assert any_bucket.objects()["lock"] == f"next {replaced.index(True)}".encode()
    assert not create(b"late")
    assert replacer()(b"last")
    assert not replace(b"with what was seen long ago")
    assert any_bucket.objects()["lock"] == b"last"


def test_of_many_commits_of_lance_to_one_version_each_is_there_once(any_store: Store) -> None:
    place = {"uri": any_store.url("t.lance"), "storage_options": any_store.lance_options}
    lance.write_dataset(TABLE, **place)

    def append(n: int) -> None:
        lance.write_dataset(pa.table({"a": [10 + n]}), mode="append", **place)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(append, range(8)))
    table = lance.dataset(**place).to_table()
    assert sorted(table["a"].to_pylist()) == [1, 2, 3, *range(10, 18)]


# ---------------------------------------------------------------------- names


@pytest.mark.parametrize("name", [*ODD, "ends in a slash/"])
def test_both_clients_find_a_folder_of_any_name(any_bucket: AnyBucket, name: str) -> None:
    uri = f"{any_bucket.uri.partition('://')[0]}://{any_bucket.name}/{name}"
    if isinstance(any_bucket, Container) and "[" in name:
        with pytest.raises(LakeError, match="can't write below a first folder with"):
            Store(uri)
        uri = f"az://{any_bucket.name}/a/{name}"
        name = f"a/{name}"
    placed = Store(uri)
    placed.write_bytes("beside", b"1")
    lance.write_dataset(TABLE, placed.url("t.lance"), storage_options=placed.lance_options)
    assert placed.names("") == ["beside", "t.lance"]
    table = lance.dataset(placed.url("t.lance"), storage_options=placed.lance_options)
    assert table.to_table() == TABLE
    folder = name.rstrip("/")
    assert {key.partition("/t.lance/")[0] for key in any_bucket.objects()} == {
        folder,
        f"{folder}/beside",
    }


# ---------------------------------------------------------------------- requests that fail


@pytest.mark.parametrize("kind", ["slow_down", "reset", "cut", "lost"])
def test_every_method_outlives_failing_requests(any_bucket: AnyBucket, kind: str) -> None:
    placed = Store(any_bucket.uri)
    local = placed.scratch("big")
    any_bucket.faults.set(seed=4)  # two of the first thirty fail; of seed 0, none
    with any_bucket.faults.at(**{kind: 0.1}):
        for n in range(10):
            placed.write_bytes(f"a/{n}", b"x" * 100_000)
            assert placed.create(f"c/{n}", b"mine")
        local.write_bytes(b"y" * (20 << 20))
        placed.publish(local, "big")
        assert placed.read_bytes("a/3") == b"x" * 100_000
        assert placed.read_range("a/3", 99_990, 100) == b"x" * 10
        assert placed.names("") == ["a", "big", "c"]
        assert not placed.exists("d")
        placed.remove([f"c/{n}" for n in range(10)])
        sizes = {file.path: file.bytes for file in placed.walk()}
    assert sizes == {"big": 20 << 20, **{f"a/{n}": 100_000 for n in range(10)}}
    with contextlib.suppress(FileNotFoundError):
        local.unlink()
    assert any_bucket.faults.done[kind] > 1
