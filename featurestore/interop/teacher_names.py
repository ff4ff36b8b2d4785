"""Which teacher the features under a folder are of: what files say, or what the user names."""

from collections.abc import Mapping
from pathlib import Path

from featurestore.interop.foreign_slide import Given, InteropError


def name_teachers(
    given: Given, root: Path, folders: Mapping[Path, str | None], tool: str
) -> dict[Path, str]:
    """The teacher of each folder of features; folders that were not asked for are left out.

    A plain NAME in `given.teachers` chooses the folders that call themselves so; if the files
    do not name their encoder, it names the only folder there is. NAME=FOLDER names a folder.

    Args:
        given: what the user gave.
        root: the folder that is imported.
        folders: folders of features, with the name that their files give them, or None.
        tool: the format, for messages.

    Raises:
        InteropError: a folder has no name, or a name or folder that was asked for is not there.
    """
    plain = [text for text in given.teachers if "=" not in text]
    named = dict(_named(text, folders, root) for text in given.teachers if "=" in text)
    flat = {folder: name for name, found in named.items() for folder in found}
    rest = {folder: own for folder, own in folders.items() if folder not in flat}
    unknown = [folder for folder, own in rest.items() if own is None]
    if len(unknown) == 1 and len(plain) == 1:
        return {**flat, unknown[0]: plain[0]}
    if unknown:
        raise InteropError(_ask(unknown, root, tool))
    missing = set(plain) - {own for own in rest.values() if own}
    if missing:
        there = sorted({own for own in rest.values() if own})
        msg = (
            f"no features of {', '.join(sorted(missing))} under {root}; there are: "
            f"{', '.join(there) or 'none'}; --teacher NAME=FOLDER gives a folder another name"
        )
        raise InteropError(msg)
    return {**flat, **{f: own for f, own in rest.items() if own and (not plain or own in plain)}}


def _named(text: str, folders: Mapping[Path, str | None], root: Path) -> tuple[str, list[Path]]:
    name, _, wanted = text.partition("=")
    parts = Path(wanted).parts
    found = [f for f in folders if parts and f.parts[-len(parts) :] == parts]
    if not name or not found:
        there = ", ".join(sorted(_short(folder, root) for folder in folders)) or "none"
        msg = f"--teacher {text}: no such folder of features under {root}; there are: {there}"
        raise InteropError(msg)
    return name, found


def _ask(unknown: list[Path], root: Path, tool: str) -> str:
    there = ", ".join(sorted(_short(folder, root) for folder in unknown))
    if len(unknown) == 1:
        return (
            f"{tool} files do not say their encoder; give --teacher NAME for the features in "
            f"{there}"
        )
    return (
        f"{tool} files do not say their encoder, and there are several folders of features "
        f"({there}); give --teacher NAME=FOLDER for each"
    )


def _short(folder: Path, root: Path) -> str:
    return str(folder.relative_to(root)) if folder.is_relative_to(root) else str(folder)
