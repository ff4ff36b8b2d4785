"""The teacher names of feature folders, from their files or from the user."""

from collections.abc import Mapping
from pathlib import Path

from featurestore.interop.foreign_slide import ImportFacts, InteropError


def name_teachers(
    facts: ImportFacts, root: Path, folders: Mapping[Path, str | None], tool: str
) -> dict[Path, str]:
    """Return the teacher of each folder of features; folders without a teacher are left out.

    A plain NAME in `facts.teachers` chooses the folders whose files have this name; if the files
    do not name their encoder, NAME becomes the only folder's name. NAME=FOLDER names a folder.

    Args:
        facts: facts that the user added.
        root: the folder that is imported.
        folders: folders of features, with the teacher name in their files, or None.
        tool: the format, for messages.

    Raises:
        InteropError: a folder has no name, or a name or folder that the user gave is not there.
    """
    plain = [text for text in facts.teachers if "=" not in text]
    named = dict(_named(text, folders, root) for text in facts.teachers if "=" in text)
    flat = {folder: name for name, named_folders in named.items() for folder in named_folders}
    rest = {folder: own for folder, own in folders.items() if folder not in flat}
    unknown = [folder for folder, own in rest.items() if own is None]
    if len(unknown) == 1 and len(plain) == 1:
        return {**flat, unknown[0]: plain[0]}
    if unknown:
        raise InteropError(_missing_name_message(unknown, root, tool))
    missing = set(plain) - {own for own in rest.values() if own}
    if missing:
        names = sorted({own for own in rest.values() if own})
        msg = (
            f"no features of {', '.join(sorted(missing))} under {root}; there are: "
            f"{', '.join(names) or 'none'}; --teacher NAME=FOLDER gives a folder another name"
        )
        raise InteropError(msg)
    return {**flat, **{f: own for f, own in rest.items() if own and (not plain or own in plain)}}


def _named(text: str, folders: Mapping[Path, str | None], root: Path) -> tuple[str, list[Path]]:
    name, _, folder_name = text.partition("=")
    parts = Path(folder_name).parts
    matching_folders = [f for f in folders if parts and f.parts[-len(parts) :] == parts]
    if not name or not matching_folders:
        short_names = ", ".join(sorted(_short(folder, root) for folder in folders)) or "none"
        msg = f"--teacher {text}: no such folder of features under {root}; there are: {short_names}"
        raise InteropError(msg)
    return name, matching_folders


def _missing_name_message(unknown: list[Path], root: Path, tool: str) -> str:
    short_names = ", ".join(sorted(_short(folder, root) for folder in unknown))
    if len(unknown) == 1:
        return (
            f"{tool} files do not say their encoder; give --teacher NAME for the features in "
            f"{short_names}"
        )
    return (
        f"{tool} files do not say their encoder, and there are several folders of features "
        f"({short_names}); give --teacher NAME=FOLDER for each"
    )


def _short(folder: Path, root: Path) -> str:
    return str(folder.relative_to(root)) if folder.is_relative_to(root) else str(folder)
