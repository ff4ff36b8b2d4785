"""How an export is passed on: under which licences, and under which names."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from featurestore.interop.hub.remote_outbox import RemoteOutbox
from featurestore.interop.writers.outbox import Outbox
from featurestore.licences import Licence

LICENCES_FILE = "licences.json"


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """Licences, a permission and pseudonyms of an export.

    Attributes:
        licences: licence of each column, for those that keep none (`column_licences` of ingest).
        permission: who permitted what a licence forbids, in words; written to `licences.json`.
        deidentify: path of a key outside the export, a CSV that is made or extended: slides get
            the random names in it, and users' own columns, texts and paths are left out.
    """

    licences: Mapping[str, Licence] = field(default_factory=dict)
    permission: str | None = None
    deidentify: str | os.PathLike[str] | None = None


def write_licences(
    box: Outbox | RemoteOutbox, licences: Mapping[str, Licence], sharing: Sharing
) -> None:
    """Write what each column's licence is, and forbids, beside the files of the columns.

    Columns that an earlier export wrote stay in it, as their files do.
    """
    if not licences:
        return
    earlier = json.loads(box.read_text(LICENCES_FILE) or '{"licences": {}, "permission": null}')
    permission = sharing.permission or earlier["permission"]
    if sharing.permission is not None and sharing.deidentify is not None:
        permission = "stated; the words are not part of a de-identified export"
    record = earlier["licences"] | {name: one.to_json() for name, one in licences.items()}
    text = json.dumps({"licences": record, "permission": permission}, indent=2) + "\n"
    box.write_text(LICENCES_FILE, text)
