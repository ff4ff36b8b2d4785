"""What went wrong with a bucket, in one line that says what was given and what to do.

Only codes and names of errors are passed on, never a server's text: it may quote a signed URL. The
clients' errors are known by their names, so that none of their packages has to be there.
"""

import functools
import re
from collections.abc import Callable, Iterator
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from featurestore.errors import BucketError, LakeError, LakeMissingError
from featurestore.storage.bucket_clients import ATTEMPTS, endpoint
from featurestore.storage.full_disk import disk_full_error

DENIED = {"AccessDenied", "AllAccessDisabled", "403", "AuthorizationFailure", "Forbidden"}
DENIED |= {"AuthorizationPermissionMismatch", "PermissionError"}
WRONG_KEYS = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "401"}
WRONG_KEYS |= {"AuthorizationHeaderMalformed", "RequestTimeTooSkewed", "AuthenticationFailed"}
WRONG_KEYS |= {"InvalidAuthenticationInfo", "RefreshError", "TokenRefreshRequired"}
NO_KEYS = {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"}
NO_KEYS |= {"ProfileNotFound", "DefaultCredentialsError", "ClientAuthenticationError"}
NO_KEYS |= {"SSOTokenLoadError", "UnauthorizedSSOTokenError", "TokenRetrievalError"}
NO_BUCKET = {"NoSuchBucket", "ContainerNotFound", "InvalidBucketName"}
NO_WAY = {"EndpointConnectionError", "ConnectTimeoutError", "ConnectionClosedError", "SSLError"}
NO_WAY |= {"ReadTimeoutError", "ProxyConnectionError", "ClientConnectorError", "ConnectionError"}
NO_WAY |= {"ServiceRequestError", "FSTimeoutError", "ClientConnectorDNSError", "ConnectTimeout"}
BUSY = {"SlowDown", "ServiceUnavailable", "503", "RequestLimitExceeded", "ServerBusy", "429"}
FAILING = {"InternalError", "500", "502", "504", "OperationAborted", "RequestTimeout"}

# Lance has no codes, but texts: what they say, in the words above.
LANCE_SAYS = {
    "lacked the necessary privileges": "AccessDenied",
    "CredentialsNotLoaded": "NoCredentialsError",
    "Failed to get AWS credentials": "CredentialRetrievalError",
    "error sending request": "ConnectionError",
    "response body error": "ConnectionClosedError",
    "credential error": "DefaultCredentialsError",
}
LANCE_CODE = re.compile(r"<Code>(\w+)</Code>|status code: (\d{3})")

P = ParamSpec("P")
T = TypeVar("T")


class Place(Protocol):
    """What is at a URI, in a bucket or not."""

    uri: str
    is_local: bool


S = TypeVar("S", bound=Place)


def told_clearly(
    method: Callable[Concatenate[S, P], T],
) -> Callable[Concatenate[S, P], T]:
    """Wrap a method of a `Place`: errors of a bucket or of a full disk become LakeErrors."""

    @functools.wraps(method)
    def telling(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            explanation: LakeError | None = disk_full_error(error, self.uri)
            if explanation is None and not self.is_local:
                explanation = explain(error, self.uri)
            if explanation is None or explanation is error:
                raise
            raise explanation from error

    return telling


def codes(error: BaseException) -> set[str]:
    """Names and codes of an error and of what caused it, of fsspec's clients and of Lance."""
    found: set[str] = set()
    for one in causes(error):
        found |= {kind.__name__ for kind in type(one).__mro__}
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            found.add(str(response.get("Error", {}).get("Code", "")))
        found |= {str(getattr(one, name, "")) for name in ("code", "error_code", "status_code")}
        if "LanceError(IO)" in (text := str(one)):
            found |= {code for match in LANCE_CODE.findall(text) for code in match if code}
            found |= {name for said, name in LANCE_SAYS.items() if said in text}
    return found


def no_bucket(error: BaseException) -> bool:
    """Whether the bucket itself, and not just a file in it, is missing."""
    return bool(codes(error) & NO_BUCKET)


def explain(error: BaseException, uri: str) -> LakeError | None:
    """The error that says what an error of a bucket means; None if it is not the bucket's."""
    if isinstance(error, LakeError):
        return None
    found = codes(error)
    protocol, _, rest = uri.partition("://")
    bucket = rest.partition("/")[0]
    if no_bucket(error):
        text = f"there is no bucket '{bucket}'; make it first, or correct the name"
        return LakeMissingError(f"{uri}: {text} (asked: {_endpoint(protocol)})")
    if found & {"FileNotFoundError", "FileExistsError"}:
        return None
    if text := _advice(found, protocol):
        return BucketError(f"{uri}: {text}")
    return None


def _advice(found: set[str], protocol: str) -> str:
    if first := _first(found, WRONG_KEYS):
        return f"the credentials are not valid ({first}); renew them, see docs/buckets.md"
    if first := _first(found, NO_KEYS):
        return f"no usable credentials were found ({first}); docs/buckets.md says where they go"
    if first := _first(found, DENIED):
        return (
            f"access is denied ({first}); the keys are wrong, or are not allowed to list the "
            "bucket and to get, put and delete what is under this prefix"
        )
    if first := _first(found, BUSY):
        return (
            f"the bucket is too busy ({first}, after {ATTEMPTS} attempts unless told otherwise); "
            "run again with fewer workers, or allow more with AWS_MAX_ATTEMPTS"
        )
    if first := _first(found, NO_WAY):
        return f"{_endpoint(protocol)} can't be reached ({first}); check network and endpoint"
    if first := _first(found, FAILING):
        return f"{_endpoint(protocol)} failed ({first}) at every attempt; run again later"
    return ""


def _first(found: set[str], known: set[str]) -> str:
    return min(found & known, default="")


def _endpoint(protocol: str) -> str:
    try:
        return endpoint(protocol)
    except Exception as error:  # noqa: BLE001 - it is only named in the message of another error
        return f"an endpoint not known ({type(error).__name__})"


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what caused it, what caused that, each once."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
