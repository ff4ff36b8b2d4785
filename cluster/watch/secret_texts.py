"""Texts that leave this machine, without the secrets that an error or a URL may carry."""

import os
import re
from collections.abc import Mapping

HIDDEN = "***"
#: Variables whose values are secrets, by their names.
_SECRET_NAME = re.compile(
    r"KEY|SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|CONNECTION_STRING|SAS", re.I
)
#: Shorter values are found in innocent words.
_LEAST = 8
_USER_OF_URL = re.compile(r"(?<=://)[^/\s@]+@")
_QUERY_OF_URL = re.compile(r"(\w+://[^\s?'\"]+)\?[^\s'\")]+")
_NAMED = re.compile(
    r"(?i)((?:secret|token|password|passwd|signature|api[_-]?key|access[_-]?key|authorization"
    r"|account[_-]?key)[\w-]*['\"]?\s*[=:]\s*['\"]?(?:bearer\s+|basic\s+)?)[^\s'\",;&]+"
)
_AWS_KEY = re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b")


def without_secrets(text: str, environ: Mapping[str, str] | None = None) -> str:
    """Return a text without users and queries of URLs, named secrets, and secrets by variables.

    Args:
        text: the text, such as an error.
        environ: variables; those with a name such as AWS_SECRET_ACCESS_KEY hold secrets. None for
            this process's.

    >>> without_secrets("no access to https://me:pw@host/a.svs?X-Amz-Signature=abc (403)", {})
    'no access to https://***@host/a.svs?*** (403)'
    >>> without_secrets("hf_abcdefgh is refused", {"HF_TOKEN": "hf_abcdefgh"})
    '*** is refused'
    """
    variables = os.environ if environ is None else environ
    secrets = {
        secret
        for name, secret in variables.items()
        if len(secret) >= _LEAST and _SECRET_NAME.search(name) and not os.access(secret, os.F_OK)
    }
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    text = _USER_OF_URL.sub(f"{HIDDEN}@", text)
    text = _QUERY_OF_URL.sub(rf"\1?{HIDDEN}", text)
    text = _NAMED.sub(rf"\1{HIDDEN}", text)
    return _AWS_KEY.sub(HIDDEN, text)
