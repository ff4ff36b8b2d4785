"""The token of a Ray cluster, and the addresses that it may be sent to.

Ray 2.60 sends a token by itself only where RAY_AUTH_MODE=token is set; a laptop that submits to a
cluster seldom has it set, so the token is read where Ray reads it, and sent.
"""

import ipaddress
import os
from pathlib import Path
from urllib.parse import urlsplit

from cluster.errors import ClusterError


def auth_headers() -> dict[str, str]:
    """Return HTTP headers with the token; empty without one, or if RAY_AUTH_MODE is "disabled".

    Looked up as Ray does: RAY_AUTH_TOKEN, the file that RAY_AUTH_TOKEN_PATH names, then
    `~/.ray/auth_token`.

    Raises:
        ClusterError: RAY_AUTH_TOKEN_PATH names a file that is not there.
    """
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return {}
    token = os.environ.get("RAY_AUTH_TOKEN", "").strip() or _token_of_file()
    return {"Authorization": f"Bearer {token}"} if token else {}


def _token_of_file() -> str:
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    if path.is_file():
        return path.read_text().strip()
    if named:
        msg = (
            f"RAY_AUTH_TOKEN_PATH names {named}, which is no file; correct it, or put the token in "
            "RAY_AUTH_TOKEN"
        )
        raise ClusterError(msg)
    return ""


def check_address(address: str, *, has_token: bool) -> None:
    """Raise ClusterError for an address without a Ray dashboard, or an open one on the network.

    A cluster that accepts jobs over plain HTTP without a token runs anybody's code.

    Raises:
        ClusterError: the address is not `http(s)://host[:port]`, or it is plain HTTP to another
            machine while there is no token.
    """
    parts = urlsplit(address)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        msg = (
            f"address {address!r} is not one of a Ray dashboard; give http://HOST:8265 or "
            "https://HOST (a ray:// or HOST:6379 address is for `ray_session`, not for jobs)"
        )
        raise ClusterError(msg)
    if parts.scheme == "http" and not has_token and not _is_loopback(parts.hostname):
        msg = (
            f"will not send a job to {address}: plain HTTP to another machine, and no token; set "
            "RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, use https://, or forward the port "
            "(`kubectl port-forward`, `ssh -L 8265:127.0.0.1:8265`) and leave --address out"
        )
        raise ClusterError(msg)


def _is_loopback(host: str) -> bool:
    """Return whether a host is this machine: `localhost`, `127.0.0.1`, `::1`; no other names."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
