"""A POST of JSON that follows no redirect: it goes to the server that was named, to no other."""

import contextlib
import urllib.request
from typing import IO, Any


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Leaves a redirect as the error that it then is."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: Any,  # noqa: ANN401 - as urllib has it
        newurl: str,
    ) -> None:
        """Follow nothing."""


def post(url: str, body: bytes, timeout_s: float) -> None:
    """Send a body to a URL of http or https.

    Raises:
        OSError: no server answers in time, or its answer is no success.
    """
    request = urllib.request.Request(
        url, data=body, headers={"Content-Type": "application/json"}, method="POST"
    )
    opener = urllib.request.build_opener(_NoRedirect())
    with contextlib.closing(opener.open(request, timeout=timeout_s)) as answer:
        answer.read(1024)
