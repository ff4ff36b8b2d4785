"""What a user reads when a cloud refuses: one line that says why, without a secret."""

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from featurestore import BucketError, LakeError, LakeMissingError, Store, create_lake
from tests.conftest import ROOT
from tests.worlds.cloud_work import CONFIG
from tests.worlds.clouds import ACCOUNT, Container, GoogleBucket, connection_string, forget_clients
from tests.worlds.command_lines import Slidelake
from tests.worlds.real_s3 import RealS3
from tests.worlds.s3 import Bucket

pytestmark = [pytest.mark.slow, pytest.mark.servers]

WRONG = "d3Jvbmctc2VjcmV0LW5vYm9keS1tYXktc2Vl"
GOOGLE_ERROR = '{"error": {"code": %d, "message": "%s", "errors": []}}'
SET = Callable[[str, str], None]


def refused(uri: str, says: str, kind: type[LakeError] = BucketError) -> None:
    """Check that a read and the making of a lake end with one line that says so."""
    forget_clients()
    for act in (lambda: Store(uri).exists("lake.json"), lambda: create_lake(uri, CONFIG)):
        with pytest.raises(kind, match=says) as caught:
            act()
        one_clear_line(str(caught.value))


def one_clear_line(text: str) -> None:
    """Check that a message is a line for a user."""
    assert "\n" not in text.strip()
    assert not re.search(r"\.rs\b|Traceback|\bFile \"|LanceError", text)
    assert WRONG not in text
    for name, value in os.environ.items():
        if "SECRET" in name or "KEY" in name or "CONNECTION" in name:
            assert value not in text


# ---------------------------------------------------------------------- S3, of Ceph


def test_s3_refuses(real_bucket: Bucket, real_s3: RealS3, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(f"s3://never-made-{real_bucket.name}/lake", "there is no bucket", LakeMissingError)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", WRONG)
    refused(real_bucket.uri, r"access is denied .*the keys are wrong|credentials are not valid")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "NOBODY")
    refused(real_bucket.uri, r"access is denied .*the keys are wrong|credentials are not valid")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", real_s3.stranger_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", real_s3.stranger_secret)
    refused(real_bucket.uri, r"access is denied .*not allowed to list")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    refused(real_bucket.uri, "no usable credentials were found")


def test_a_wrong_clock_is_named(real_bucket: Bucket) -> None:
    for option, side in (("+2h", "ahead of"), ("-2h", "behind")):
        done = slidelake_at(option, "info", real_bucket.uri)
        assert done.returncode == 2, done.stderr
        assert f"clock is 120 minutes {side} the server's" in done.stderr
        one_clear_line(done.stderr)


def slidelake_at(clock: str, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run `slidelake` where the clock is off."""
    command = ["faketime", "-f", clock, sys.executable, "-m", "slidelake", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


# ---------------------------------------------------------------------- Azure


def test_azure_refuses(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    """Azure answers to wrong keys with AuthenticationFailed; azurite has a code of its own."""
    name = "AZURE_STORAGE_CONNECTION_STRING"
    missing = f"az://never-made-{container.name}/lake"
    refused(missing, "there is no container 'never-made", LakeMissingError)
    wrong = base64.b64encode(WRONG.encode()).decode()
    monkeypatch.setenv(name, connection_string(container.faults.url, wrong))
    refused(container.uri, "access is denied .AuthorizationFailure")
    monkeypatch.setenv(name, connection_string(container.faults.url, "no base64!"))
    refused(container.uri, "access is denied .AuthorizationFailure")
    monkeypatch.setenv(name, f"nonsense-{WRONG}")
    refused(container.uri, "settings of az:// are not valid", LakeError)
    monkeypatch.delenv(name)
    refused(container.uri, "set AZURE_STORAGE_ACCOUNT_NAME", LakeError)


def test_azure_refuses_what_a_signature_does_not_allow(
    container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    from azure.storage.blob import ContainerSasPermissions, generate_container_sas

    def use(permission: str, hours: int) -> None:
        token = generate_container_sas(
            ACCOUNT,
            container.name,
            account_key=container.key,
            permission=ContainerSasPermissions.from_string(permission),
            expiry=datetime.now(UTC) + timedelta(hours=hours),
        )
        place = f"BlobEndpoint={container.faults.url}/{ACCOUNT};SharedAccessSignature={token}"
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", f"{place};AccountName={ACCOUNT}")
        forget_clients()

    use("rl", 1)
    assert not Store(container.uri).exists("lake.json")
    with pytest.raises(BucketError, match=r"denied .AuthorizationPermissionMismatch") as e:
        create_lake(container.uri, CONFIG)
    one_clear_line(str(e.value))
    use("rwdl", -1)
    refused(container.uri, "access is denied .AuthorizationFailure")
    use("rwdl", 1)
    create_lake(container.uri, CONFIG)


# ---------------------------------------------------------------------- Google


def test_google_refuses(
    google_bucket: GoogleBucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The emulator lets everyone in: but for the bucket, the proxy answers in Google's words."""
    missing = f"gs://never-made-{google_bucket.name}/lake"
    refused(missing, "there is no bucket 'never-made", LakeMissingError)
    for status, text, says in (
        (401, "Anonymous caller does not have storage.objects.get access", "no usable cred"),
        (403, "a@b.c does not have storage.objects.get access", "access is denied"),
    ):
        denial = [status, GOOGLE_ERROR % (status, text)]
        google_bucket.faults.set(denied=".", denial=denial)
        refused(google_bucket.uri, says)
    google_bucket.faults.set(denied="")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "nowhere.json"))
    refused(google_bucket.uri, "nowhere.json, which does not exist", LakeError)


@pytest.mark.parametrize(
    ("reason", "says"),
    [
        ("Invalid JWT Signature.", "credentials are not valid"),
        (
            "Invalid JWT: Token must be short-lived (60 minutes) and in a reasonable timeframe.",
            "clock differs",
        ),
    ],
)
def test_google_refuses_a_token(
    google_bucket: GoogleBucket,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    reason: str,
    says: str,
) -> None:
    key = tmp_path / "key.json"
    key.write_text(json.dumps(service_account(google_bucket.faults.url)))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key))
    denial = {"error": "invalid_grant", "error_description": reason}
    google_bucket.faults.set(denied="/token", denial=[400, json.dumps(denial)])
    refused(google_bucket.uri, says)


def service_account(url: str) -> dict[str, str]:
    """Return a service account with a new key, whose tokens are given out at a URL."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    text = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return {
        "type": "service_account",
        "project_id": "loopback",
        "private_key_id": "1",
        "private_key": text.decode(),
        "client_email": "a@loopback",
        "client_id": "1",
        "token_uri": f"{url}/token",
    }


# ---------------------------------------------------------------------- as a command


def test_commands_print_one_line(
    container: Container, monkeypatch: pytest.MonkeyPatch, slidelake: Slidelake
) -> None:
    wrong = base64.b64encode(WRONG.encode()).decode()
    monkeypatch.setenv(
        "AZURE_STORAGE_CONNECTION_STRING", connection_string(container.faults.url, wrong)
    )
    forget_clients()
    words = ("ingest", container.uri, ROOT / "examples", "--mpp", "0.5")
    for command in (("info", container.uri), ("verify", container.uri), words):
        answer = slidelake(*command, code=2)
        one_clear_line(answer.stderr)
    done = subprocess.run(
        [sys.executable, "-m", "slidelake", "info", container.uri],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    one_clear_line(done.stderr)
