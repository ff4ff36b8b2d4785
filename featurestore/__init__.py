"""The lake: embeddings of many teachers at many magnifications, versioned and checked."""

import os
import warnings

# Lance reads its log level once, on import, and warns on every DataReplacement that the operation
# is young; the committer checks row counts itself, and docs/decisions.md says why it is used.
os.environ.setdefault("LANCE_LOG", "error")
# Lance warns at every fork. Nothing here goes on in a forked child (threads or spawn only); Ray's
# own fork is followed by an exec.
warnings.filterwarnings("ignore", message="lance is not fork-safe", category=UserWarning)

from featurestore.annotations.annotating import annotate, set_patients
from featurestore.commits.cuts import GridCut, SlideCut
from featurestore.commits.lance_commit import Committer
from featurestore.config import FORMAT, LakeConfig
from featurestore.edits.drop_and_rename import drop, rename
from featurestore.errors import (
    AccessError,
    BucketDownError,
    BucketError,
    DamageError,
    FormatError,
    IdentityError,
    LakeError,
    LakeMissingError,
)
from featurestore.ids import mpp_code, mpp_name, tile_ids, tile_parts
from featurestore.keep.lance_compact import Compacted, compact
from featurestore.keep.lance_copy import Copied, copy_lake
from featurestore.keep.lance_restore import Restored, restore
from featurestore.keep.lance_vacuum import Vacuumed, free_old_versions, vacuum
from featurestore.keep.repairing import Repaired, repair
from featurestore.keep.verify.damage import Damage, Verdict
from featurestore.keep.verify.lance_verify import verify
from featurestore.lake import Lake
from featurestore.licences import (
    Forbidden,
    Licence,
    check_licences,
    forbidden_by_any,
    licence_from_json,
    licences_text,
)
from featurestore.messages import listing
from featurestore.notebook.shown import ResultDict, Shown
from featurestore.opening import create_lake, open_lake, settings_for
from featurestore.query.lance_index import IndexState, build_index, index_state
from featurestore.query.sql import query, tables
from featurestore.read.bags import Bag
from featurestore.read.held_out_patients import holdout_patients, patient_of
from featurestore.read.pairs import Pairs
from featurestore.read.stream_tiles import TileBatch
from featurestore.read.stream_under import Under
from featurestore.shards.tar_shards import Shard, ShardReader, ShardWriter
from featurestore.stats.fitting import fit_stats
from featurestore.stats.moments import Moments, read_phi_s, read_stats
from featurestore.stats.phi_s_rotation import PhiS
from featurestore.storage.store import Store
from featurestore.tables.annotation import Annotation
from featurestore.tables.lance_columns import ColumnFile, ColumnWriter
from featurestore.tables.lance_rows import matrix
from featurestore.tables.schema import tiles_table

__all__ = [
    "FORMAT",
    "AccessError",
    "Annotation",
    "Bag",
    "BucketDownError",
    "BucketError",
    "ColumnFile",
    "ColumnWriter",
    "Committer",
    "Compacted",
    "Copied",
    "Damage",
    "DamageError",
    "Forbidden",
    "FormatError",
    "GridCut",
    "IdentityError",
    "IndexState",
    "Lake",
    "LakeConfig",
    "LakeError",
    "LakeMissingError",
    "Licence",
    "Moments",
    "Pairs",
    "PhiS",
    "Repaired",
    "Restored",
    "ResultDict",
    "Shard",
    "ShardReader",
    "ShardWriter",
    "Shown",
    "SlideCut",
    "Store",
    "TileBatch",
    "Under",
    "Vacuumed",
    "Verdict",
    "annotate",
    "build_index",
    "check_licences",
    "compact",
    "copy_lake",
    "create_lake",
    "drop",
    "fit_stats",
    "forbidden_by_any",
    "free_old_versions",
    "holdout_patients",
    "index_state",
    "licence_from_json",
    "licences_text",
    "listing",
    "matrix",
    "mpp_code",
    "mpp_name",
    "open_lake",
    "patient_of",
    "query",
    "read_phi_s",
    "read_stats",
    "rename",
    "repair",
    "restore",
    "set_patients",
    "settings_for",
    "tables",
    "tile_ids",
    "tile_parts",
    "tiles_table",
    "vacuum",
    "verify",
]
