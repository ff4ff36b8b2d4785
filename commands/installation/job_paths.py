"""Paths of this machine, as a job on a cluster needs them.

Small files travel with the job, outputs come back from it, and what can't travel (a lake's folder,
slides, weights) is refused here, where the user can still do something about it.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cluster import ClusterError
from cluster.jobs.job_package import FOLDER, packed_name
from commands.options.path_kind import PathKind
from ingest.teachers.own_file import split_own

#: Variable with folders that all nodes see by the same path as this machine.
SHARED = "SLIDELAKE_SHARED"

_PATTERN = frozenset("*?[")


def shared_folders(folders: Sequence[str]) -> list[Path]:
    """Return the folders that a cluster sees by the same path: an option's, or SLIDELAKE_SHARED's.

    Raises:
        ClusterError: a folder does not exist here.
    """
    named = list(folders) or [
        folder for folder in os.environ.get(SHARED, "").split(os.pathsep) if folder
    ]
    for folder in named:
        if not Path(folder).is_dir():
            msg = f"--shared (or {SHARED}) names {folder}, which is no folder on this machine"
            raise ClusterError(msg)
    return [_absolute(folder) for folder in named]


@dataclass(kw_only=True)
class JobPaths:
    """Turns paths of this machine into paths of a job, and collects what has to travel.

    Attributes:
        same_machine: whether the cluster is this machine, where each path stays as it is.
        shared: folders that all nodes see by the same path.
        files: path in the job's working directory -> file or folder that travels with it.
        outputs: path in that directory of what the command writes -> place on this machine.
    """

    same_machine: bool
    shared: Sequence[Path] = ()
    files: dict[str, Path] = field(default_factory=dict)
    outputs: dict[str, Path] = field(default_factory=dict)

    def in_job(self, text: str, kind: PathKind) -> str:
        """Return the text that stands for a path in the job.

        Args:
            text: what the user gave: a path, a URL, or a name that is no path.
            kind: what the path is of.

        Raises:
            ClusterError: it is of this machine, and can't travel.
        """
        if kind is PathKind.NAMED_FILE:
            name, equals, rest = text.partition("=")
            return f"{name}{equals}{self.in_job(rest, PathKind.FILES)}"
        if kind is PathKind.PYTHON:
            own = split_own(text)
            return text if own is None else f"{self.in_job(own[0], PathKind.FILES)}{own[1]}"
        if _is_url(text):
            return text
        path = _absolute(text)
        if kind is PathKind.OUTPUT:
            return self._output(path)
        exists = path.exists()
        if self.same_machine or any(path.is_relative_to(folder) for folder in self.shared):
            return str(path) if exists or kind is not PathKind.FILES else text
        if kind is PathKind.FILES:
            return self._travelling(path) if exists else text
        if kind is PathKind.SLIDES:
            return self._slides(text, path)
        if exists or not Path(text).is_absolute():
            raise ClusterError(_REFUSALS[kind].format(text=text, parent=path.parent))
        return text  # an absolute path that this machine does not have: the cluster's own

    def _travelling(self, path: Path) -> str:
        name = packed_name(path, self.files)
        self.files[name] = path
        return name

    def _output(self, path: Path) -> str:
        if self.same_machine or any(path.is_relative_to(folder) for folder in self.shared):
            return str(path)
        name = path.name
        if name == FOLDER or self.outputs.get(name, path) != path:
            msg = f"{path}: the job has another file or folder of that name; give another name"
            raise ClusterError(msg)
        self.outputs[name] = path
        return name

    def _slides(self, text: str, path: Path) -> str:
        """Return a manifest's path in the job; its slides have to be where the cluster sees them.

        Raises:
            ClusterError: slides of this machine are named.
        """
        from ingest.select.manifests import is_manifest, read_manifest

        refusal = _REFUSALS[PathKind.SLIDES]
        if not (is_manifest(text) and path.is_file()):
            if any(mark in text for mark in _PATTERN):
                exists = any(True for _ in path.parent.glob(path.name))
            else:
                exists = os.path.lexists(path.parent / path.name.partition("#")[0])
            if exists or not Path(text).is_absolute():
                raise ClusterError(refusal.format(text=text, parent=path.parent))
            return text
        for row in read_manifest(str(path), distinct_ids=True):
            slide = Path(row.uri)
            is_shared = any(slide.is_relative_to(folder) for folder in self.shared)
            if _is_url(row.uri) or is_shared:
                continue
            if os.path.lexists(slide) or slide.is_relative_to(path.parent):
                named = f"{row.uri} ({row.place})"
                raise ClusterError(refusal.format(text=named, parent=slide.parent))
        return self._travelling(path)


_ADVICE = "or --shared {parent} if all nodes of the cluster see that folder by the same path"
_REFUSALS = {
    PathKind.LAKE: (
        "{text} is a folder of this machine, and a lake does not travel with a job; give the URL "
        "of a lake in a bucket, as s3://lab/lake, " + _ADVICE
    ),
    PathKind.SLIDES: (
        "{text} is on this machine, and slides do not travel with a job; copy them to a bucket "
        "and give their URL, " + _ADVICE
    ),
    PathKind.WEIGHTS: (
        "{text} is a folder of this machine, and weights do not travel with a job; put them into a "
        "bucket and give its URL, as s3://lab/weights, " + _ADVICE
    ),
}


def _is_url(text: str) -> bool:
    return "://" in text and not text.startswith(("file://", "local://"))


def _absolute(text: str) -> Path:
    """Return an absolute path, without `..`; links stay as they are."""
    if text.startswith(("file://", "local://")):
        text = unquote(urlsplit(text).path)
    return Path(os.path.abspath(Path(text).expanduser()))  # noqa: PTH100 - resolve follows links
