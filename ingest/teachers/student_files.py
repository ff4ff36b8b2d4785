"""The files of a student in a lake, each compared with its checksum when it is read."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from featurestore import Store

#: A student's trained network; its report, written last, names the checksums of all its files.
WEIGHTS, REPORT = "model.safetensors", "report.json"


def student_folder(name: str) -> str:
    """Return the folder of a student, relative to the lake."""
    return f"students/{name}"


def student_file(store: "Store", name: str, file: str) -> bytes:
    """Return a file of a student, checked against the checksum in its report.

    Args:
        store: the lake's files.
        name: name of the student.
        file: name of the file in the student's folder.

    Raises:
        DamageError: the file is gone or damaged; the file is named.
        AccessError: the file can't be read now.
    """
    from featurestore.storage import read_named, read_sealed

    report = f"{student_folder(name)}/{REPORT}"
    # A student that is not finished has no report yet, and so no checksums.
    seal = read_sealed(store, report) if store.exists(report) else {}
    return read_named(store, f"{student_folder(name)}/{file}", seal)
