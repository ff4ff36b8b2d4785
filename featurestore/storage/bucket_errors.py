"""Errors of buckets, explained in one line that names the place and the remedy.

Only codes and names of errors are passed on, never a server's text: it may quote a signed URL. The
clients' errors are known by their names, so that none of their packages has to be there.
"""

import functools
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from featurestore.errors import BucketDownError, BucketError, LakeError, LakeMissingError
from featurestore.storage.bucket_clients import ATTEMPTS, endpoint
from featurestore.storage.full_disk import disk_full_error

DENIED = {"AccessDenied", "AllAccessDisabled", "403", "AuthorizationFailure", "Forbidden"}
DENIED |= {"AuthorizationPermissionMismatch", "PermissionError"}
WRONG_KEYS = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "401"}
WRONG_KEYS |= {"AuthorizationHeaderMalformed", "AuthenticationFailed", "AzureSigningError"}
WRONG_KEYS |= {"InvalidAuthenticationInfo", "RefreshError", "TokenRefreshRequired"}
WRONG_CLOCK = {"RequestTimeTooSkewed", "RequestInTheFuture"}
ANONYMOUS = {"NoCredentialsError", "DefaultCredentialsError"}
NO_KEYS = {*ANONYMOUS, "PartialCredentialsError", "CredentialRetrievalError"}
NO_KEYS |= {"ProfileNotFound", "ClientAuthenticationError"}
NO_KEYS |= {"SSOTokenLoadError", "UnauthorizedSSOTokenError", "TokenRetrievalError"}
NO_BUCKET = {"NoSuchBucket", "ContainerNotFound", "InvalidBucketName", "InvalidResourceName"}
NO_WAY = {"EndpointConnectionError", "ConnectTimeoutError", "ConnectionClosedError", "SSLError"}
NO_WAY |= {"ReadTimeoutError", "ProxyConnectionError", "ClientConnectorError", "ConnectionError"}
NO_WAY |= {"ServiceRequestError", "FSTimeoutError", "ClientConnectorDNSError", "ConnectTimeout"}
NO_WAY |= {"TransportError", "ServerDisconnectedError", "ServiceResponseError"}
BUSY = {"SlowDown", "ServiceUnavailable", "503", "RequestLimitExceeded", "ServerBusy", "429"}
FAILING = {"InternalError", "500", "502", "504", "OperationAborted", "RequestTimeout"}

# Lance has no codes, but texts: the same errors in the words above.
LANCE_SAYS = {
    "lacked the necessary privileges": "AccessDenied",
    "CredentialsNotLoaded": "NoCredentialsError",
    "Failed to get AWS credentials": "CredentialRetrievalError",
    "error sending request": "ConnectionError",
    "response body error": "ConnectionClosedError",
    "credential error": "DefaultCredentialsError",
}
LANCE_CODE = re.compile(r"<Code>(\w+)</Code>|status code: (\d{3})")

# Google's client puts some things into texts alone.
GOOGLE_SAYS = {
    "Anonymous caller": "NoCredentialsError",
    "in a reasonable timeframe": "RequestTimeTooSkewed",
    "Forbidden: ": "Forbidden",
    "Bad Request: ": "BadRequest",
}
# Clouds refuse what was signed 15 minutes ago; a clock that is less off is not why.
CLOCK_S = 600

P = ParamSpec("P")
T = TypeVar("T")


class Place(Protocol):
    """A folder or file at a URI, in a bucket or not."""

    uri: str
    is_local: bool

    def missing_bucket(self) -> LakeError | None:
        """Return the error for a bucket that does not exist; None if it does, or may."""


S = TypeVar("S", bound=Place)


def with_clear_errors(
    method: Callable[Concatenate[S, P], T],
) -> Callable[Concatenate[S, P], T]:
    """Wrap a method of a `Place`: errors of a bucket or of a full disk become LakeErrors."""

    @functools.wraps(method)
    def explaining(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            explanation: LakeError | None = disk_full_error(error, self.uri)
            if explanation is None and not self.is_local:
                explanation = explain(error, self.uri)
                if explanation is None and isinstance(error, FileNotFoundError):
                    explanation = self.missing_bucket()
            if explanation is None or explanation is error:
                raise
            raise explanation from error

    return explaining


def codes(error: BaseException) -> set[str]:
    """Return the names and codes of an error and its causes, of fsspec's clients and of Lance."""
    error_codes: set[str] = set()
    for one in causes(error):
        error_codes |= {kind.__name__ for kind in type(one).__mro__}
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            error_codes.add(str(response.get("Error", {}).get("Code", "")))
        for name in ("code", "error_code", "status_code"):
            code = getattr(one, name, "")
            error_codes.add(str(getattr(code, "value", code)))  # Azure's are enumerations
        text = str(one)
        if "LanceError(IO)" in text:
            error_codes |= {code for match in LANCE_CODE.findall(text) for code in match if code}
            error_codes |= {name for text_part, name in LANCE_SAYS.items() if text_part in text}
        if type(one) in {OSError, ValueError} or _is_of_google(one):
            error_codes |= {name for text_part, name in GOOGLE_SAYS.items() if text_part in text}
    return error_codes


def _is_of_google(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] in {"gcsfs", "google"}


def clock_minutes(error: BaseException) -> int:
    """Return how many minutes this machine's clock is ahead of the server that refused a request.

    By the date of its answer; 0 where there is none, or where the clock is not why it was refused.
    """
    for one in causes(error):
        response = getattr(one, "response", None)
        if isinstance(response, dict):  # of botocore
            headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        else:
            headers = getattr(response, "headers", None)
        date = headers.get("date") if isinstance(headers, Mapping) else None
        try:
            ahead_s = (datetime.now(UTC) - parsedate_to_datetime(str(date))).total_seconds()
        except (ValueError, TypeError):
            continue
        if abs(ahead_s) > CLOCK_S:
            return round(ahead_s / 60)
    return 0


def no_bucket(error: BaseException) -> bool:
    """Whether the bucket itself, and not just a file in it, is missing."""
    return bool(codes(error) & NO_BUCKET)


def missing_keys_error(error: BaseException) -> BucketError | None:
    """Return an error that names this machine if it has no valid credentials, else None.

    On a cluster it may be one node of many, on which whatever comes to it would fail.
    """
    if not codes(error) & (NO_KEYS | WRONG_KEYS - {"401"}):  # 401: of any web server
        return None
    return BucketError(f"on node {socket.gethostname()}: {' '.join(str(error).split())}")


def explain(error: BaseException, uri: str) -> LakeError | None:
    """Return the error that explains an error of a bucket; None if it is not of the bucket."""
    if isinstance(error, LakeError):
        return None
    error_codes = codes(error)
    protocol = uri.partition("://")[0]
    if no_bucket(error):
        return missing_bucket_error(uri)
    if error_codes & {"FileNotFoundError", "FileExistsError"}:
        return None
    if error_codes & (DENIED | WRONG_KEYS) and (ahead := clock_minutes(error)):
        side = "ahead of" if ahead > 0 else "behind"
        text = f"this machine's clock is {abs(ahead)} minutes {side} the server's"
        return BucketError(f"{uri}: {text}, which refuses what is signed with that; set the clock")
    if text := _denied(error_codes):
        return BucketError(f"{uri}: {text}")
    if text := _down(error_codes, protocol):
        return BucketDownError(f"{uri}: {text}")
    return None


def missing_bucket_error(uri: str) -> LakeMissingError:
    """Return the error for a URI whose bucket does not exist."""
    protocol, _, rest = uri.partition("://")
    kind = "container" if protocol == "az" else "bucket"
    text = f"there is no {kind} '{rest.partition('/')[0]}'; make it first, or correct the name"
    return LakeMissingError(f"{uri}: {text} (at {_endpoint(protocol)})")


def _denied(error_codes: set[str]) -> str:
    """Return what to do about clock or credentials; empty if they are not at fault."""
    if first := _first_code(error_codes, WRONG_CLOCK):
        return f"this machine's clock differs too much from the server's ({first}); set the clock"
    if first := _first_code(error_codes, ANONYMOUS):
        return f"no usable credentials were found ({first}); docs/buckets.md says where they go"
    if first := _first_code(error_codes, WRONG_KEYS):
        return f"the credentials are not valid ({first}); renew them, see docs/buckets.md"
    if first := _first_code(error_codes, NO_KEYS):
        return f"no usable credentials were found ({first}); docs/buckets.md says where they go"
    if first := _first_code(error_codes, DENIED):
        return (
            f"access is denied ({first}); the keys are wrong, or are not allowed to list the "
            "bucket and to get, put and delete what is under this prefix"
        )
    return ""


def _down(error_codes: set[str], protocol: str) -> str:
    """Return why a bucket does not answer; empty if it does."""
    if first := _first_code(error_codes, BUSY):
        return (
            f"the bucket is too busy ({first}, after {ATTEMPTS} attempts by default); "
            "run again with fewer workers, or allow more with AWS_MAX_ATTEMPTS"
        )
    if first := _first_code(error_codes, NO_WAY):
        return f"{_endpoint(protocol)} can't be reached ({first}); check network and endpoint"
    if first := _first_code(error_codes, FAILING):
        return f"{_endpoint(protocol)} failed ({first}) at every attempt; run again later"
    return ""


def _first_code(error_codes: set[str], group: set[str]) -> str:
    # A name says more than the status with which it came.
    return min(error_codes & group, key=lambda code: (code.isdigit(), code), default="")


def _endpoint(protocol: str) -> str:
    try:
        return endpoint(protocol)
    except Exception as error:  # noqa: BLE001 - it is only named in the message of another error
        return f"an unknown endpoint ({type(error).__name__})"


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, its cause, the cause of that, and so on, each once."""
    yielded: set[int] = set()
    while error is not None and id(error) not in yielded:
        yielded.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
