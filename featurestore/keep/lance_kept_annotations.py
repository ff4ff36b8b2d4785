"""The annotation tables that belong to kept versions of a lake, and stray annotation files."""

from collections.abc import Iterable

from featurestore.storage.store import FileInfo, Store
from featurestore.tables import lance_annotations as registry
from featurestore.tables.lance_tables import open_table
from featurestore.tables.schema import SLIDES


def named_tables(store: Store, slides_versions: Iterable[int]) -> set[str]:
    """Return the paths of the tables that versions of `slides` name."""
    return {
        str(annotation.path)
        for version in slides_versions
        for annotation in registry.tables_of(open_table(store, SLIDES, version)).values()
    }


def stray_files(store: Store, slides_versions: Iterable[int]) -> list[FileInfo]:
    """List files of tables that no kept version names.

    Args:
        store: the lake's files; its committer's lock is held, so that no edit is half done.
        slides_versions: versions of `slides` that are kept.
    """
    files = list(store.walk(registry.FOLDER))
    if not files:
        return []
    named = named_tables(store, slides_versions)
    return [file for file in files if "/".join(file.path.split("/")[:2]) not in named]
