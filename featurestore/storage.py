"""Files of a lake, local or in a bucket, through fsspec; and the options Lance needs for the same.

Lance reads object stores with its own client, so what fsspec learns from the environment is
handed on in one place (`lance_options`). Credentials stay in the environment.
"""

import os
import secrets
from pathlib import Path

import fsspec


class Store:
    """A folder at a URI. Paths given to its methods are relative, with forward slashes.

    Picklable: a worker opens its own file system from the URI.

    Args:
        uri: a local path or an fsspec URL (`s3://bucket/lake`).
    """

    def __init__(self, uri: str | os.PathLike[str]) -> None:
        text = os.fspath(uri)
        self.is_local = "://" not in text or text.startswith("file://")
        if self.is_local:
            text = str(Path(text.removeprefix("file://")).expanduser().absolute())
        self.uri = text.rstrip("/")
        self.fs, self.root = fsspec.core.url_to_fs(self.uri)

    def __reduce__(self) -> tuple[type["Store"], tuple[str]]:
        return Store, (self.uri,)

    def path(self, rel: str) -> str:
        """The path that the fsspec file system knows the file by."""
        return f"{self.root}/{rel}"

    def url(self, rel: str) -> str:
        """The full URI of the file, as Lance and people write it."""
        return f"{self.uri}/{rel}"

    def exists(self, rel: str) -> bool:
        """Whether the file or folder is there."""
        return bool(self.fs.exists(self.path(rel)))

    def size(self, rel: str) -> int:
        """Bytes of the file. Raises FileNotFoundError if it is not there."""
        return int(self.fs.size(self.path(rel)))

    def read_bytes(self, rel: str) -> bytes:
        """The whole file."""
        return bytes(self.fs.cat_file(self.path(rel)))

    def write_bytes(self, rel: str, data: bytes) -> None:
        """Write the file so that a reader sees the old one or the new one, never a part."""
        if not self.is_local:
            self.fs.pipe_file(self.path(rel), data)
            return
        temporary = self.scratch(rel)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path(rel))

    def scratch(self, rel: str) -> Path:
        """A new unique local name beside the final one; `publish` moves it there. Local only."""
        final = Path(self.path(rel))
        final.parent.mkdir(parents=True, exist_ok=True)
        return final.with_name(f".{final.name}.{secrets.token_hex(4)}.tmp")

    def publish(self, local: Path, rel: str) -> None:
        """Move a finished local file to its final name, where it appears whole."""
        if self.is_local:
            Path(self.path(rel)).parent.mkdir(parents=True, exist_ok=True)
            local.replace(self.path(rel))
        else:
            self.fs.put_file(str(local), self.path(rel))
            local.unlink()

    def names(self, rel: str) -> list[str]:
        """Sorted names of what is in a folder; empty if there is no such folder."""
        if not self.exists(rel):
            return []
        self.fs.invalidate_cache(self.path(rel))
        found = self.fs.ls(self.path(rel), detail=False)
        return sorted(str(name).rstrip("/").rsplit("/", 1)[-1] for name in found)

    @property
    def lance_options(self) -> dict[str, str]:
        """Storage options for Lance that stand for the fsspec environment of this store."""
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        if not self.uri.startswith("s3://") or not endpoint:
            return {}
        return {"endpoint": endpoint, "allow_http": str(endpoint.startswith("http://")).lower()}
