"""The same contract for files in a folder and in a bucket, and what each client is told."""

import os
import pickle
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import fsspec.config
import lance
import pyarrow as pa
import pytest
import s3fs
from botocore.exceptions import ClientError

from featurestore import LakeError, LakeMissingError, Store
from featurestore.storage.bucket_clients import ATTEMPTS, lance_options
from featurestore.storage.bucket_errors import explain
from tests.worlds.s3 import KEY, SECRET, Bucket, Request

ODD = ["plain", "a b", "a#b", "a?b", "a%20b", "ü日本", "a+b&c=d", "[x]*", "~a'b"]
TABLE = pa.table({"a": [1, 2, 3]})


@pytest.fixture
def store(any_store: Store) -> Store:
    """Return an empty folder, or an empty prefix of a bucket."""
    return any_store


@pytest.fixture
def fresh_clients() -> Iterator[None]:
    """Drop the clients of earlier tests, with their keys, before and after a test."""
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


# ---------------------------------------------------------------------- the contract


def test_files_come_back_as_they_were_written(store: Store) -> None:
    store.write_bytes("a/b/c.bin", b"0123456789")
    store.write_bytes("a/b/c.bin", b"9876543210")
    assert store.read_bytes("a/b/c.bin") == b"9876543210"
    assert store.read_range("a/b/c.bin", 3, 4) == b"6543"
    assert store.size("a/b/c.bin") == 10
    assert store.read_start("a/b/c.bin", 4) == b"9876"
    assert store.read_start("a/b/c.bin", 40) == b"9876543210"
    ranges = [(start, 2) for start in range(8, -1, -1)]
    assert store.read_ranges("a/b/c.bin", ranges) == [
        b"9876543210"[start : start + 2] for start, _ in ranges
    ]
    assert store.read_ranges("a/b/c.bin", []) == []
    store.write_bytes("a/b/empty.bin", b"")
    assert store.read_start("a/b/empty.bin", 4) == store.read_bytes("a/b/empty.bin") == b""
    assert store.read_range("a/b/c.bin", 8, 4) == b"10"
    assert store.read_range("a/b/c.bin", 10, 4) == store.read_range("a/b/c.bin", 90, 4) == b""
    assert store.read_ranges("a/b/c.bin", [(10, 1), (9, 4), (90, 1)]) == [b"", b"0", b""]
    for read in (
        lambda: store.read_start("a/b/d.bin", 1),
        lambda: store.read_ranges("a/b/d.bin", [(0, 1), (1, 1)]),
    ):
        with pytest.raises(FileNotFoundError):
            read()
    with pytest.raises(FileNotFoundError):
        store.read_bytes("a/b/d.bin")
    with pytest.raises(FileNotFoundError):
        store.size("a/b/d.bin")


def test_folders_are_there_when_a_file_is_in_them(store: Store) -> None:
    assert not store.exists("a")
    assert store.names("a") == []
    assert list(store.walk()) == []
    store.write_bytes("a/b/c.bin", b"1")
    store.write_bytes("a/d.bin", b"12")
    assert [store.exists(rel) for rel in ("a", "a/b", "a/b/c.bin", "a/b/c", "b")] == [
        True,
        True,
        True,
        False,
        False,
    ]
    assert store.names("a") == ["b", "d.bin"]
    assert store.names("") == ["a"]
    assert store.names("a/d.bin") == []


def test_walk_gives_every_file_with_its_size_and_time(store: Store) -> None:
    begun = time.time()
    for n, rel in enumerate(("a/b/c.bin", "a/d.bin", "e f.bin")):
        store.write_bytes(rel, b"x" * n)
    files = {file.path: file for file in store.walk()}
    assert {path: file.bytes for path, file in files.items()} == {
        "a/b/c.bin": 0,
        "a/d.bin": 1,
        "e f.bin": 2,
    }
    # The server runs on this machine; stores give whole seconds.
    assert all(begun - 2 < file.modified < time.time() + 2 for file in files.values())
    assert {file.path for file in store.walk("a")} == {"a/b/c.bin", "a/d.bin"}


def test_what_another_process_writes_is_seen_at_once(store: Store) -> None:
    own_store, write_elsewhere = store, _another_process(store)
    assert not own_store.exists("x/1")
    assert own_store.names("x") == []
    write_elsewhere("x/1", b"1")
    assert own_store.exists("x/1")
    assert own_store.names("x") == ["1"]
    write_elsewhere("x/1", b"123")
    write_elsewhere("x/2", b"1")
    assert own_store.size("x/1") == 3
    assert own_store.names("x") == ["1", "2"]
    assert own_store.read_bytes("x/1") == b"123"
    own_store.remove(["x/1", "x/2"])
    assert own_store.names("x") == []
    assert not own_store.exists("x/1")


def _another_process(store: Store) -> Callable[[str, bytes], None]:
    """Return a writer that shares nothing with `store`, not even fsspec's cache of file systems."""
    options = {"auto_mkdir": True} if store.is_local else store.fs.storage_options
    fs = type(store.fs)(skip_instance_cache=True, **options)
    return lambda rel, content: fs.pipe_file(store.path(rel), content)


def test_remove_takes_many_at_once_and_passes_over_the_missing(store: Store) -> None:
    for n in range(5):
        store.write_bytes(f"a/{n} ü", b"1")
    store.remove([*(f"a/{n} ü" for n in range(4)), *(f"no/{n}" for n in range(1200))])
    assert store.names("a") == ["4 ü"]
    store.remove([])


def test_of_many_creators_one_succeeds(store: Store) -> None:
    for round_ in range(3):
        with ThreadPoolExecutor(12) as pool:
            content = [f"writer {n}".encode() for n in range(12)]
            won = list(pool.map(lambda d, r=round_: store.create(f"lock/{r}", d), content))
        assert sum(won) == 1
        assert store.read_bytes(f"lock/{round_}") == content[won.index(True)]
    assert store.names("lock") == ["0", "1", "2"]


def test_published_file_appears_whole_and_leaves_nothing_behind(store: Store) -> None:
    local = store.scratch("tiles/big.tar")
    content = os.urandom(40 << 20)
    local.write_bytes(content)
    sizes: set[int] = set()
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.01):
            if store.exists("tiles/big.tar"):
                sizes.add(store.size("tiles/big.tar"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    store.publish(local, "tiles/big.tar")
    stop.set()
    watcher.join()
    assert sizes <= {len(content)}
    assert store.read_bytes("tiles/big.tar") == content
    assert not local.exists()
    assert store.names("tiles") == ["big.tar"]


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("where", ["path", "file-url", "s3"])
def test_lance_and_fsspec_mean_the_same_place(
    where: str, name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    uri = {
        "path": lambda: str(tmp_path / name / "lake"),
        "file-url": lambda: f"file://{quote(str(tmp_path / name))}/lake",
        "s3": lambda: f"s3://{request.getfixturevalue('bucket').name}/{name}/lake",
    }[where]()
    store = Store(uri)
    store.write_bytes("beside", b"1")
    lance.write_dataset(TABLE, store.url("t.lance"), storage_options=store.lance_options)
    assert store.names("") == ["beside", "t.lance"]
    assert "_versions" in store.names("t.lance")
    table = lance.dataset(store.url("t.lance"), storage_options=store.lance_options)
    assert table.to_table() == TABLE
    if where != "s3":
        assert sorted(p.name for p in (tmp_path / name / "lake").iterdir()) == store.names("")


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("s3a://b/lake", "write s3://b/lake"),
        ("gcs://b/lake", "write gs://b/lake"),
        ("abfss://b/lake", "write az://b/lake"),
        ("az://b/[x]/lake", "first folder with [ or ]"),
        ("hdfs://b/lake", "use one of these or a local folder"),
        ("memory://lake", "use one of these or a local folder"),
        ("s3://", "write s3://bucket/folder"),
        ("s3://b//lake", "write s3://bucket/folder"),
        ("s3://b/la\nke", "write s3://bucket/folder"),
        ("file://host/lake", "write file:///folder/lake"),
    ],
)
def test_uris_that_name_no_lake_are_refused_with_what_to_write(uri: str, says: str) -> None:
    with pytest.raises(LakeError, match=re.escape(says)):
        Store(uri)


@pytest.mark.parametrize("place", [f"{KEY}:{SECRET}@b", "127.0.0.1:9000", f"{SECRET}@b"])
def test_keys_in_a_uri_are_refused_and_not_repeated(place: str) -> None:
    with pytest.raises(LakeError, match="leave keys and endpoint to the environment") as caught:
        Store(f"s3://{place}/lake")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(("uri", "extra"), [("gs://b/lake", "gcs"), ("az://b/lake", "azure")])
def test_missing_package_is_named(uri: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gcsfs", "adlfs"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(LakeError, match=re.escape(f"pip install 'slidelake[{extra}]'")):
        Store(uri)


def test_missing_bucket_is_told_apart_from_missing_files(bucket: Bucket) -> None:
    assert not Store(f"s3://{bucket.name}/nowhere").exists("lake.json")
    gone = Store("s3://no-such-bucket-here/lake")
    for act in (
        lambda: gone.exists("lake.json"),
        lambda: gone.names("runs"),
        lambda: gone.read_bytes("lake.json"),
        lambda: gone.write_bytes("lake.json", b"1"),
        lambda: gone.remove(["lake.json"]),
    ):
        with pytest.raises(LakeMissingError, match="there is no bucket 'no-such-bucket-here'"):
            act()


def test_denied_access_says_what_must_be_allowed(faulty: Bucket) -> None:
    faulty.faults.set(denied=".")
    store = Store(faulty.uri)
    for act in (
        lambda: store.exists("lake.json"),
        lambda: store.names(""),
        lambda: store.write_bytes("lake.json", b"1"),
        lambda: store.create("lake.json", b"1"),
        lambda: store.remove(["lake.json"]),
    ):
        with pytest.raises(LakeError, match=r"access is denied .*allowed to list") as caught:
            act()
        assert str(caught.value).startswith(store.uri)
        assert "\n" not in str(caught.value)


def test_no_credentials_says_where_they_go(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, fresh_clients: None
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(LakeError, match=r"no usable credentials .*docs/buckets\.md"):
        Store(bucket.uri).exists("lake.json")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(LakeError, match=r"no usable credentials were found .ProfileNotFound"):
        Store(bucket.uri)


def test_server_that_is_not_there_is_named(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(LakeError, match=r"http://127\.0\.0\.1:9 can't be reached"):
        Store(bucket.uri).exists("lake.json")


def test_busy_bucket_says_how_to_go_on(faulty: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    for kind, says in (("slow_down", "too busy .SlowDown"), ("internal", "failed .InternalError")):
        with faulty.faults.at(**{kind: 1.0}), pytest.raises(LakeError, match=says):
            Store(faulty.uri).write_bytes("lake.json", b"1")


@pytest.mark.slow
def test_trouble_of_the_bucket_is_not_taken_for_damage_of_a_table(
    faulty: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    store = Store(faulty.uri)

    def asked() -> LakeError | None:
        with pytest.raises((ValueError, OSError)) as caught:
            lance.dataset(store.url("t.lance"), storage_options=store.lance_options).to_table()
        return store.explained(caught.value)

    assert asked() is None  # there is no such table
    lance.write_dataset(TABLE, store.url("t.lance"), storage_options=store.lance_options)
    for kind, says in [
        ("slow_down", "is too busy"),
        ("internal", "failed ("),
        ("refused", "can't be reached"),
        ("cut", "can't be reached"),
    ]:
        with faulty.faults.at(**{kind: 1.0}):
            assert says in str(asked())
    faulty.faults.set(denied="GET")
    assert "access is denied" in str(asked())
    faulty.faults.set(denied="")
    for file in store.walk("t.lance/data"):
        store.write_bytes(file.path, b"not a table")
    assert asked() is None


class AzureCode(str, Enum):  # noqa: UP042 - a StrEnum is another text
    """An error code as Azure's client has it."""

    NO_CONTAINER = "ContainerNotFound"
    NOT_ALLOWED = "AuthorizationPermissionMismatch"


def test_errors_of_other_clouds_are_known_by_their_names() -> None:
    """Named as gcsfs and adlfs raise them; neither cloud nor package is needed."""

    def error(name: str, text: str = "with a secret in it", **fields: object) -> Exception:
        kind: type[Exception] = type(name, (Exception,), {"__module__": "gcsfs.retry", **fields})
        return kind(text)

    for uri, raised, says in [
        ("gs://b/l", error("HttpError", code=401), "credentials are not valid (401)"),
        ("gs://b/l", error("DefaultCredentialsError"), "no usable credentials"),
        ("gs://b/l", error("HttpError", "Anonymous caller, secret", code=401), "no usable cred"),
        ("gs://b/l", OSError("Forbidden: /b/o\na secret"), "access is denied (Forbidden)"),
        ("gs://b/l", error("RefreshError", "in a reasonable timeframe"), "set the clock"),
        ("az://b/l", error("HttpResponseError", error_code=AzureCode.NO_CONTAINER), "no container"),
        (
            "az://b/l",
            error("HttpResponseError", error_code=AzureCode.NOT_ALLOWED, status_code=403),
            "denied (AuthorizationPermissionMismatch)",
        ),
        ("az://b/l", error("HttpResponseError", error_code="AuthorizationFailure"), "denied"),
        (
            "az://b/l",
            error("ResourceNotFoundError", error_code="ContainerNotFound"),
            "no container",
        ),
        ("az://b/l", error("ServiceRequestError"), "Azure Blob Storage can't be reached"),
    ]:
        explanation = explain(raised, uri)
        assert explanation is not None
        assert says in str(explanation)
        assert "secret" not in str(explanation)
    assert explain(ZeroDivisionError(), "s3://b/l") is None


@pytest.mark.parametrize(("hours", "side"), [(-2, "ahead of"), (3, "behind")])
def test_a_clock_that_is_off_is_named(hours: int, side: str) -> None:
    """As refusals of botocore and of Azure's client tell the time at the server."""
    date = format_datetime(datetime.now(UTC) + timedelta(hours=hours), usegmt=True)
    botocore_error = ClientError(
        {
            "Error": {"Code": "403", "Message": "Forbidden"},
            "ResponseMetadata": {"HTTPHeaders": {"date": date}, "HTTPStatusCode": 403},
        },
        "HeadObject",
    )
    azure_error = type("HttpResponseError", (Exception,), {"status_code": 403})()
    azure_error.response = type("Response", (), {"headers": {"date": date}})()
    for error in (botocore_error, azure_error):
        explanation = str(explain(error, "s3://b/l"))
        assert f"clock is {abs(hours) * 60} minutes {side} the server's" in explanation
        assert "set the clock" in explanation


# ---------------------------------------------------------------------- requests that fail


def test_own_file_is_known_again_when_the_answer_was_lost(faulty: Bucket) -> None:
    store = Store(faulty.uri)
    faulty.faults.set(only="^PUT")
    with faulty.faults.at(lost=0.6):
        created = [store.create(f"lock/{n}", f"me {n}".encode()) for n in range(6)]
    assert all(created)
    assert faulty.faults.done["lost"] > 0
    assert not store.create("lock/0", b"another")
    faulty.faults.set(terse=True)
    assert not store.create("lock/0", b"another")
    assert store.create("lock/0", b"me 0")
    puts = [r for r in faulty.faults.seen if r.method == "PUT"]
    assert {r.headers.get("if-none-match") for r in puts} == {"*"}


def test_large_creators_race_for_the_end_of_their_upload(bucket: Bucket) -> None:
    fs = Store(bucket.uri).fs
    content = [bytes([n]) * (11 << 20) for n in range(3)]

    def create(body: bytes) -> bool:
        try:
            fs.pipe_file(f"{bucket.name}/large", body, mode="create", chunksize=5 << 20)
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(3) as pool:
        won = list(pool.map(create, content))
    assert sum(won) == 1
    assert bucket.objects()["large"] == content[won.index(True)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["slow_down", "internal", "refused", "lost", "cut"])
def test_every_method_outlives_failing_requests(faulty: Bucket, kind: str) -> None:
    store = Store(faulty.uri)
    local = store.scratch("big")
    with faulty.faults.at(**{kind: 0.3}):
        store.write_bytes("a/b", b"x" * 100_000)
        assert store.create("c", b"mine")
        local.write_bytes(b"y" * (33 << 20))
        store.publish(local, "big")
        assert store.read_bytes("a/b") == b"x" * 100_000
        assert store.read_range("a/b", 99_990, 100) == b"x" * 10
        assert store.names("") == ["a", "big", "c"]
        assert store.exists("a")
        assert not store.exists("d")
        store.remove(["c"])
        assert {file.path: file.bytes for file in store.walk()} == {"a/b": 100_000, "big": 33 << 20}
    assert faulty.faults.done[kind] > 0


# ---------------------------------------------------------------------- what the clients are told


def _key_ids(faulty: Bucket, store: Store) -> dict[str, str]:
    """Return the access keys that both clients sign with, by client."""
    key_ids = {}
    for name, act in (
        ("files", lambda: store.exists("x")),
        (
            "tables",
            lambda: lance.write_dataset(
                TABLE, store.url("k.lance"), mode="overwrite", storage_options=store.lance_options
            ),
        ),
    ):
        faulty.faults.forget()
        act()
        (key_ids[name],) = {request.key_id for request in faulty.faults.seen}
    return key_ids


def test_keys_of_the_environment_reach_both_clients(faulty: Bucket, fresh_clients: None) -> None:
    store = Store(faulty.uri)
    assert _key_ids(faulty, store) == {"files": KEY, "tables": KEY}
    assert SECRET not in str(store.lance_options)  # Lance reads the environment itself


def test_profiles_reach_both_clients(
    faulty: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fresh_clients: None
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    (tmp_path / "credentials").write_text(
        "[lab]\naws_access_key_id = AKIALAB\naws_secret_access_key = s2\n"
        "[other]\naws_access_key_id = AKIAOTHER\naws_secret_access_key = s3\n"
    )
    (tmp_path / "config").write_text("[profile lab]\nregion = eu-central-1\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    store = Store(faulty.uri)
    assert _key_ids(faulty, store) == {"files": "AKIALAB", "tables": "AKIALAB"}
    assert store.lance_options["region"] == "eu-central-1"
    assert all("/eu-central-1/" in r.headers["authorization"] for r in faulty.faults.seen)
    monkeypatch.setitem(fsspec.config.conf, "s3", {"profile": "other"})
    assert _key_ids(faulty, Store(faulty.uri)) == {"files": "AKIAOTHER", "tables": "AKIAOTHER"}


def test_configuration_of_fsspec_reaches_both_clients(
    faulty: Bucket, monkeypatch: pytest.MonkeyPatch, fresh_clients: None
) -> None:
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name)
    settings = {
        "key": "AKIACONFIGURED",
        "secret": SECRET,
        "token": "session-token",
        "client_kwargs": {"endpoint_url": endpoint, "region_name": "eu-west-3"},
        "requester_pays": True,
        "s3_additional_kwargs": {"ServerSideEncryption": "AES256"},
    }
    monkeypatch.setitem(fsspec.config.conf, "s3", settings)
    store = Store(faulty.uri)
    assert _key_ids(faulty, store) == {"files": "AKIACONFIGURED", "tables": "AKIACONFIGURED"}
    store.write_bytes("a", b"1")
    sent = [r.headers for r in faulty.faults.seen]
    assert {h["x-amz-security-token"] for h in sent} == {"session-token"}
    assert {h["x-amz-request-payer"] for h in sent} == {"requester"}
    assert all("/eu-west-3/" in h["authorization"] for h in sent)
    puts = [r.headers for r in faulty.faults.seen if r.method == "PUT"]
    assert {h.get("x-amz-server-side-encryption") for h in puts} == {"AES256"}
    assert SECRET not in repr(store) + str(vars(store)) + repr(pickle.dumps(store))


def test_anonymous_requests_are_not_signed_by_either_client(
    faulty: Bucket, monkeypatch: pytest.MonkeyPatch, fresh_clients: None
) -> None:
    keys = Store(faulty.uri)
    keys.write_bytes("a", b"1")
    lance.write_dataset(TABLE, keys.url("t.lance"), storage_options=keys.lance_options)
    monkeypatch.setitem(fsspec.config.conf, "s3", {"anon": True})
    store = Store(faulty.uri)
    faulty.faults.forget()
    # moto's buckets are private, as S3's are.
    with pytest.raises(LakeError, match="access is denied"):
        store.read_bytes("a")
    with pytest.raises(ValueError, match="privileges"):
        lance.dataset(store.url("t.lance"), storage_options=store.lance_options)
    assert {r.key_id for r in faulty.faults.seen} == {""}


def test_attempts_of_the_environment_are_those_of_both_clients(
    faulty: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    store = Store(faulty.uri)
    assert store.lance_options["client_max_retries"] == "1"
    with faulty.faults.at(internal=1.0), pytest.raises(LakeError):
        store.read_bytes("x")
    assert len(faulty.faults.seen) == 2


@pytest.mark.slow
def test_settings_of_other_clouds_reach_lance(
    faulty: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No such cloud is here: what is looked at is the request that Lance makes."""
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    text = f"AccountName=acc;AccountKey=c2VjcmV0;BlobEndpoint={endpoint}/acc"
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", text)
    request = _asked_by_lance(faulty, "az://container/lake")
    assert request.target.startswith("/acc/container?")
    assert request.headers["authorization"].startswith("SharedKey acc:")
    monkeypatch.setitem(fsspec.config.conf, "az", {"sas_token": "sv=1&sig=abc"})
    monkeypatch.setenv(
        "AZURE_STORAGE_CONNECTION_STRING", f"AccountName=acc;BlobEndpoint={endpoint}"
    )
    assert _asked_by_lance(faulty, "az://container/lake").target.endswith("sv=1&sig=abc")
    monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon", "endpoint_url": endpoint})
    assert _asked_by_lance(faulty, "gs://bucket/lake").target.startswith("/bucket?")


@pytest.mark.parametrize(
    ("setting", "endpoint"),
    [
        ("AccountName=acc;EndpointSuffix=core.chinacloudapi.cn", "acc.blob.core.chinacloudapi.cn"),
        ("AccountName=acc;AccountKey=c2VjcmV0; BlobEndpoint=https://a.b/acc/", "a.b/acc"),
        ("AccountName=acc", None),
    ],
)
def test_other_clouds_of_azure_are_the_same_for_both_clients(
    setting: str, endpoint: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", setting)
    assert lance_options("az").get("endpoint") == (endpoint and f"https://{endpoint}")
    monkeypatch.setitem(fsspec.config.conf, "az", {"account_host": "acc.blob.lab"})
    assert lance_options("az")["endpoint"] == "https://acc.blob.lab"


def test_azure_is_tried_as_often_as_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "AZURE_STORAGE_CONNECTION_STRING",
        "AccountName=acc;AccountKey=c2VjcmV0;BlobEndpoint=http://a/acc",
    )
    policy = Store("az://container/lake").fs.service_client._config.retry_policy
    context, plain = SimpleNamespace(options={}), SimpleNamespace(body=None)
    request = SimpleNamespace(context=context, http_request=plain)
    tries = policy.configure_retries(request)
    assert {tries[kind] for kind in ("total", "connect", "read", "status")} == {ATTEMPTS - 1}
    assert policy.get_backoff_time({"count": 0}) <= 1.0


def test_an_emulator_of_google_needs_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "127.0.0.1:4443")
    options = lance_options("gs")
    assert options["google_base_url"] == "http://127.0.0.1:4443"
    assert (options["allow_http"], options["google_storage_token"]) == ("true", "anonymous")
    store = Store("gs://bucket/lake")
    assert store.fs.storage_options["token"] == "anon"
    assert store.fs.storage_options["endpoint_url"] == "http://127.0.0.1:4443"


def test_settings_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_CONNECTION_STRING", raising=False)
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(LakeError, match="set AZURE_STORAGE_ACCOUNT_NAME and a key"):
        Store("az://container/lake")
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", f"nonsense {SECRET}")
    with pytest.raises(LakeError, match="settings of az:// are not valid") as caught:
        Store("az://container/lake")
    assert SECRET not in str(caught.value)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere/key.json")
    with pytest.raises(LakeError, match=r"/nowhere/key\.json, which does not exist"):
        Store("gs://bucket/lake")


def _asked_by_lance(faulty: Bucket, uri: str) -> Request:
    faulty.faults.forget()
    options = lance_options(uri.partition(":")[0])
    with pytest.raises(ValueError, match="LanceError"):
        lance.dataset(f"{uri}/t.lance", storage_options={**options, "client_max_retries": "0"})
    return faulty.faults.seen[0]


def test_store_travels_without_keys(bucket: Bucket, store: Store) -> None:
    store.write_bytes("a", b"1")
    content = pickle.dumps(store)
    assert SECRET.encode() not in content
    copy = pickle.loads(content)
    assert copy.uri == store.uri
    assert copy.read_bytes("a") == b"1"
