"""One set of settings for the two clients of a bucket: fsspec for files, Lance for tables.

What the user has (environment, the cloud's own files, fsspec's configuration) is read here and
passed to both, so that they reach the same place with the same rights. Keys that Lance finds by
itself are left to it: its own chain renews expired keys. Nothing that is read here is kept.
"""

import importlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import fsspec
import fsspec.config

from featurestore.errors import LakeError

# Beyond the clients' defaults (5 and 3): a job of hours outlives a bucket that is busy for half a
# minute. AWS_MAX_ATTEMPTS sets another number for both.
ATTEMPTS = 8
# Lance gives up 180 s after a request began by default; this is longer than 8 attempts wait.
RETRY_TIMEOUT_S = 60
EXTRAS = {"s3": "", "gs": "[gcs]", "az": "[azure]"}
PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs"}
CONFIGURED_AS = {"s3": ("s3", "s3a"), "gs": ("gs", "gcs"), "az": ("abfs", "az", "abfss")}
INSTEAD = {"s3a": "s3", "s3n": "s3", "gcs": "gs", "abfs": "az", "abfss": "az", "adl": "az"}
AZURE = ("account_name", "account_key", "sas_token", "tenant_id", "client_id", "client_secret")
# These packages log each failed request with its traceback; their errors say the same.
LOUD = {"gs": ("gcsfs",), "az": ("azure", "adlfs")}

Settings = dict[str, Any]


def checked_uri(uri: str) -> str:
    """Return a bucket's URI without a slash at its end.

    Raises:
        LakeError: Lance has no client for it, or it can't name a folder of a bucket.
    """
    protocol, _, rest = uri.partition("://")
    place = rest.partition("/")[0]
    if "@" in place or ":" in place:
        msg = (
            f"a {protocol}:// URI with a host or a key in it was given; name bucket and folder as "
            f"in {protocol}://bucket/folder, and leave keys and endpoint to the environment"
        )
        raise LakeError(msg)
    if protocol not in EXTRAS:
        use = INSTEAD.get(protocol)
        hint = f"write {use}://{rest}" if use else "use one of these or a local folder"
        msg = f"{uri}: lakes are read from s3://, gs://, az:// and local folders; {hint}"
        raise LakeError(msg)
    if protocol == "az" and set("[]") & set(rest.partition("/")[2].partition("/")[0]):
        msg = f"{uri}: Azure's client can't write below a first folder with [ or ] in its name"
        raise LakeError(msg)
    if not place or "//" in rest.rstrip("/") or not rest.isprintable():
        msg = f"{uri!r} names no folder of a bucket; write {protocol}://bucket/folder"
        raise LakeError(msg)
    return uri.rstrip("/")


def file_system(protocol: str) -> fsspec.AbstractFileSystem:
    """Return the fsspec file system of a bucket's protocol; it keeps no listings.

    Raises:
        LakeError: the package of the protocol is not installed, or its settings are not valid.
    """
    make_options = {"s3": _s3_files, "gs": _gs_files, "az": _az_files}[protocol]
    for name in LOUD.get(protocol, ()):
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.CRITICAL)
    try:
        importlib.import_module(PACKAGES[protocol])
    except ImportError as error:
        msg = f"{protocol}:// needs a package more: pip install 'slidelake{EXTRAS[protocol]}'"
        raise LakeError(msg) from error
    make = _gs_class() if protocol == "gs" else fsspec.get_filesystem_class(protocol)
    options = make_options()
    try:
        fs = make(use_listings_cache=False, **options)
    except ValueError as error:
        # Not its text, which may quote a connection string.
        msg = f"the settings of {protocol}:// are not valid, or not all there; see docs/buckets.md"
        raise LakeError(msg) from error
    if protocol == "gs":
        fs.credentials.maybe_refresh()  # a request would try refused keys for half a minute
    if protocol == "az":
        _set_attempts_of_azure(fs)
    return fs


def is_missing(fs: fsspec.AbstractFileSystem, protocol: str, bucket: str) -> bool:
    """Whether a bucket of Google or a container of Azure is missing; False if that is unknown.

    Their clients answer a request for a file alike whether the file or the whole bucket is missing.
    """
    try:
        if protocol == "gs":
            fs.call("GET", "b/{}/o", bucket, maxResults=1, json_out=True)
        if protocol == "az":
            fs.info(bucket)
    except FileNotFoundError:
        return True
    except Exception:  # noqa: BLE001 - whatever else it is, the error in hand is told instead
        return False
    return False


def lance_options(protocol: str) -> dict[str, str]:
    """Return Lance's storage options for what `file_system` of this protocol works with."""
    make = {"s3": _s3_tables, "gs": _gs_tables, "az": _az_tables}[protocol]
    options = {name: str(option) for name, option in make().items() if option is not None}
    if options.get("endpoint", "").startswith("http://"):
        options["allow_http"] = "true"
    options.setdefault("client_max_retries", str(ATTEMPTS))
    return {**options, "client_retry_timeout": str(RETRY_TIMEOUT_S)}


def endpoint(protocol: str) -> str:
    """Return the bucket's endpoint for messages: the configured one, or the cloud's default."""
    clouds = {"s3": "Amazon S3", "gs": "Google Cloud Storage", "az": "Azure Blob Storage"}
    options = lance_options(protocol)
    return options.get("endpoint") or options.get("google_base_url") or clouds[protocol]


def _fsspec_settings(protocol: str) -> Settings:
    """Return fsspec's configuration for this protocol, merged as fsspec merges it."""
    settings: Settings = {}
    for name in CONFIGURED_AS[protocol]:
        settings |= fsspec.config.conf.get(name, {})
    return settings


# ---------------------------------------------------------------------- Amazon S3 and its likes


def _s3() -> Settings:
    """Return endpoint, region, attempts and fsspec's configuration, under fsspec's names."""
    import botocore.session
    from botocore.configprovider import ConfiguredEndpointProvider

    configured = _fsspec_settings("s3")
    client = dict(configured.get("client_kwargs") or {})
    session = botocore.session.Session(profile=configured.get("profile"))
    profile = session.get_scoped_config()
    endpoints = ConfiguredEndpointProvider(
        full_config=session.full_config, scoped_config=profile, client_name="s3"
    )
    ignored = session.get_config_variable("ignore_configured_endpoint_urls")
    attempts = session.get_config_variable("max_attempts")
    return {
        "endpoint_url": configured.get("endpoint_url")
        or client.pop("endpoint_url", None)
        or (None if ignored else endpoints.provide()),
        "region": client.pop("region_name", None)
        or os.environ.get("AWS_REGION")
        or session.get_config_variable("region"),
        "attempts": int(attempts) if attempts else ATTEMPTS,
        "mode": os.environ.get("AWS_RETRY_MODE") or profile.get("retry_mode") or "standard",
        "client_kwargs": client,
        "configured": configured,
    }


def _s3_files() -> Settings:
    settings = _s3()
    retries = {"mode": settings["mode"], "total_max_attempts": settings["attempts"]}
    options = {
        "config_kwargs": {
            "retries": retries,
            **(settings["configured"].get("config_kwargs") or {}),
        },
        "client_kwargs": settings["client_kwargs"],
    }
    if settings["endpoint_url"]:
        options["endpoint_url"] = settings["endpoint_url"]
    if settings["region"]:
        options["client_kwargs"] = {**settings["client_kwargs"], "region_name": settings["region"]}
    return options


def _s3_tables() -> Settings:
    settings = _s3()
    configured, client = settings["configured"], settings["client_kwargs"]
    extra = configured.get("s3_additional_kwargs") or {}
    keys = {
        "access_key_id": configured.get("key") or client.get("aws_access_key_id"),
        "secret_access_key": configured.get("secret") or client.get("aws_secret_access_key"),
        "session_token": configured.get("token") or client.get("aws_session_token"),
    }
    if configured.get("profile") and not keys["access_key_id"]:
        keys = _keys_of_profile(configured["profile"])
    return {
        **(keys if not configured.get("anon") else {"skip_signature": "true"}),
        "endpoint": settings["endpoint_url"],
        # Lance's default is us-west-2 and botocore's us-east-1; stores behind an endpoint of
        # their own mostly check that it is signed, not which it is.
        "region": settings["region"] or ("us-east-1" if settings["endpoint_url"] else None),
        "client_max_retries": max(settings["attempts"] - 1, 1),
        "request_payer": "true" if configured.get("requester_pays") else None,
        "aws_server_side_encryption": extra.get("ServerSideEncryption"),
        "aws_sse_kms_key_id": extra.get("SSEKMSKeyId"),
    }


def _keys_of_profile(profile: str) -> Settings:
    """Return the keys of a profile that only fsspec's configuration names."""
    import botocore.session

    credentials = botocore.session.Session(profile=profile).get_credentials()
    if credentials is None:
        return {}
    frozen = credentials.get_frozen_credentials()
    names = ("access_key_id", "secret_access_key", "session_token")
    return dict(zip(names, (frozen.access_key, frozen.secret_key, frozen.token), strict=True))


# ---------------------------------------------------------------------- Google and Azure


def _gs_class() -> type[fsspec.AbstractFileSystem]:
    """Return the class of gcsfs that asks for nothing but the files.

    The one of fsspec's registry asks Google by gRPC for the kind of each bucket, and before every
    request again where the answer is refused or, as from an emulator, never comes.
    """
    from gcsfs.core import GCSFileSystem

    fs_class: type[fsspec.AbstractFileSystem] = GCSFileSystem
    return fs_class


def _gs_settings() -> Settings:
    """Return endpoint and token: gcsfs's words, and what Google's libraries read.

    An emulator that is named by STORAGE_EMULATOR_HOST asks for no token, and there is none to find.
    """
    configured = _fsspec_settings("gs")
    emulator = os.environ.get("STORAGE_EMULATOR_HOST", "")
    if emulator == "default":  # gcsfs's word for none
        emulator = ""
    if emulator and "://" not in emulator:
        emulator = f"http://{emulator}"
    token = configured.get("token")
    if token is None and emulator and "GOOGLE_APPLICATION_CREDENTIALS" not in os.environ:
        token = "anon"
    return {"endpoint_url": configured.get("endpoint_url") or emulator or None, "token": token}


def _gs_files() -> Settings:
    path = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
    if path and not Path(path).is_file():  # gcsfs would go on without any
        msg = f"GOOGLE_APPLICATION_CREDENTIALS names the file {path}, which does not exist"
        raise LakeError(msg)
    return {name: setting for name, setting in _gs_settings().items() if setting is not None}


def _gs_tables() -> Settings:
    settings = _gs_settings()
    token = settings["token"]
    options: Settings = {"google_base_url": settings["endpoint_url"]}
    if (settings["endpoint_url"] or "").startswith("http://"):
        options["allow_http"] = "true"
    if token == "anon" and settings["endpoint_url"]:
        # Lance looks for a token for each write, signed or not: an emulator takes any.
        options["google_storage_token"] = "anonymous"
    elif token == "anon":
        options["google_skip_signature"] = "true"
    elif isinstance(token, dict):
        options["google_service_account_key"] = json.dumps(token)
    elif token and Path(token).is_file():
        options["google_application_credentials"] = token
    else:
        options["google_application_credentials"] = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
    return options


def _az_files() -> Settings:
    """Return what adlfs would find by itself: fsspec keeps one client for each set of options."""
    configured = _fsspec_settings("az")
    settings = {
        name: configured.get(name) or os.environ.get(_az_variable(name))
        for name in ("connection_string", *AZURE)
    }
    if not (settings["connection_string"] or settings["account_name"]):
        msg = (
            f"az:// needs the name of a storage account; set {_az_variable('account_name')} and a "
            f"key or token for it, or {_az_variable('connection_string')}; see docs/buckets.md"
        )
        raise LakeError(msg)
    return {name: setting for name, setting in settings.items() if setting}


def _set_attempts_of_azure(fs: fsspec.AbstractFileSystem) -> None:
    """Let Azure's client try as often as the others, with pauses that begin at half a second.

    By itself it tries four times and pauses 15 s at first, a quarter of a lease's life; adlfs has
    no setting for that.
    """
    policy = fs.service_client._config.retry_policy
    for kind in ("total", "connect", "read", "status"):
        setattr(policy, f"{kind}_retries", ATTEMPTS - 1)
    policy.initial_backoff, policy.increment_base, policy.random_jitter_range = 0.5, 1.7, 0.5


def _az_variable(name: str) -> str:
    return f"AZURE_STORAGE_{name.upper()}"


def _az_tables() -> Settings:
    configured = _fsspec_settings("az")
    text = (
        configured.get("connection_string")
        or os.environ.get(_az_variable("connection_string"))
        or ""
    )
    parts = dict(part.strip().split("=", 1) for part in text.split(";") if "=" in part)
    inside = {
        "account_name": parts.get("AccountName"),
        "account_key": parts.get("AccountKey"),
        "sas_token": parts.get("SharedAccessSignature"),
    }
    # Lance wants the account's name among its options; it does not look for it in the environment.
    options: Settings = {
        f"azure_storage_{name}": configured.get(name)
        or os.environ.get(_az_variable(name))
        or inside.get(name)
        for name in AZURE
    }
    anon = configured.get("anon", os.environ.get("AZURE_STORAGE_ANON", ""))
    if str(anon).lower() in {"true", "1", "t"}:
        options["azure_skip_signature"] = "true"
    options["endpoint"] = _az_endpoint(parts, configured)
    return options


def _az_endpoint(parts: Settings, configured: Settings) -> str | None:
    """Return where blobs are, if it is not the public cloud's place for the account."""
    if host := configured.get("account_host"):
        return f"https://{host}"
    if endpoint_url := parts.get("BlobEndpoint"):
        return str(endpoint_url).rstrip("/")
    if (suffix := parts.get("EndpointSuffix")) and "AccountName" in parts:
        scheme = parts.get("DefaultEndpointsProtocol", "https")
        return f"{scheme}://{parts['AccountName']}.blob.{suffix}"
    return None
