"""The record that an extract leaves in its lake: how fast each teacher ran there.

`slidelake estimate` goes by it. Two extracts that end at the same moment may lose one record of the
two, which costs nothing but an estimate.
"""

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from cluster import Placement
from featurestore import LakeError, Store
from featurestore.storage import json_bytes

PATH = "measured.json"

log = logging.getLogger(__name__)


def keep_rates(
    store: Store, teachers: Mapping[str, Mapping[str, float]], workers: Placement
) -> None:
    """Keep the rates of an extract, by teacher and device; the run with more tiles stays.

    Args:
        store: the lake's files.
        teachers: counts of each column: tiles, seconds of its network, stall.
        workers: the workers that ran them.
    """
    records = read_rates_of(store)
    for name, counts in teachers.items():
        before = records.get(name, {}).get(workers.device, {})
        if counts["seconds"] <= 0 or counts["tiles"] < before.get("tiles", 1):
            continue
        records.setdefault(name, {})[workers.device] = {
            "tiles": int(counts["tiles"]),
            "tiles_per_s_per_worker": round(
                counts["tiles"] / counts["seconds"] * (1 - counts["stall"]), 3
            ),
            "workers": workers.workers,
            "cpus_per_worker": workers.cpus_per_worker,
            "gpus_per_worker": workers.gpus_per_worker,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
    try:
        store.write_bytes(PATH, json_bytes({"extract": records}))
    except (OSError, LakeError) as error:  # the features are committed: this is no reason to fail
        log.warning("%s/%s was not written: %s", store.uri, PATH, error)


def read_rates_of(store: Store) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the records of a lake: teacher -> device -> counts; empty if there are none."""
    try:
        records = json.loads(store.read_bytes(PATH))["extract"]
    except LakeError:  # the bucket does not answer
        raise
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}
    return records if isinstance(records, dict) else {}
