"""A process to kill: brings a lake from nothing to a known end, and goes on where it was killed.

Run as `python -m tests.worlds.fault_worker LAKE`. The end is the same whatever happened before:
eight slides (one of them scanned again), two teachers, compacted.
"""

import sys
import time

from featurestore import Lake, LakeConfig, LakeError, compact, create_lake
from tests.worlds.small_lake import add_slides, add_teacher

SLIDES = {f"s{number}": 3 + number for number in range(8)}


def run(uri: str) -> Lake:
    """Do all the work; what is done already is left as it is."""
    lake = create_lake(uri, LakeConfig(mpps=(0.5, 2.0)))
    print("started", flush=True)
    cut_slides = set(lake.tiles_of(mpp=0.5)["slide_id"])
    again = lake.slides().collect()
    scanned_again = bool((again["fingerprint"] == "again").any())
    for name, tiles in SLIDES.items():
        if name == "s3" and scanned_again:
            continue
        if name not in cut_slides or not set(lake.tiles_of(mpp=2.0)["slide_id"]) >= {name}:
            lake = add_slides(lake, {name: tiles})
    lake = add_teacher(lake, "t")
    if not scanned_again:
        lake = add_slides(lake, {"s3": 11}, mark="again")
    lake = add_teacher(add_teacher(lake, "t"), "uu", dim=3)
    while not _compacted(lake):
        time.sleep(0.05)
    return lake.refreshed()


def _compacted(lake: Lake) -> bool:
    """Compact, unless another worker is doing so."""
    try:
        compact(lake)
    except LakeError as error:
        if "in use by" not in str(error):
            raise
        return False
    return True


if __name__ == "__main__":
    run(sys.argv[1])
