"""The work of a small study on lakes in several clouds, on one Ray; a process of its own.

Run as `python -m tests.worlds.cloud_work SLIDES ENCODER LAKE [LAKE ...]`: each lake is made of the
slides, and the encoder is run on it: on Ray for lakes in buckets, and in this process, as small
studies are, for one in a folder. It prints a line of JSON per lake: seconds, or the error.
"""

import json
import sys
import time
from collections.abc import Callable

from cluster import ray_session
from featurestore import BucketError, LakeConfig
from ingest.ray_ingest import ingest
from ingest.teachers.ray_extract import extract

CONFIG = LakeConfig(tile_px=256, mpps=(0.5, 2.0))
TRIES = 3

Failed = list[dict[str, str]]


def complete(work: Callable[[], Failed]) -> None:
    """Run an ingest or extract; run it again after trouble of the bucket, as a user would.

    What is done stays done.
    """
    for tries_left in reversed(range(TRIES)):
        try:
            failed = work()
        except BucketError:
            if not tries_left:
                raise
            continue
        if not failed or not tries_left:
            assert not failed, failed
            return


class Filling:
    """A lake that is filled, the seconds that this took, and the error with which it ended.

    Args:
        uri: folder or URL of the lake.
    """

    def __init__(self, uri: str) -> None:
        self.uri, self.seconds, self.error = uri, 0.0, ""

    def run(self, work: Callable[[], Failed]) -> None:
        """Run a job of this lake, unless one failed before."""
        if self.error:
            return
        begun = time.monotonic()
        try:
            complete(work)
        except Exception as error:  # noqa: BLE001 - the test of this lake fails with it
            self.error = f"{type(error).__name__}: {error}"
        self.seconds += time.monotonic() - begun

    def line(self) -> str:
        """Return the outcome as JSON."""
        if self.error:
            return json.dumps({"lake": self.uri, "error": self.error})
        return json.dumps({"lake": self.uri, "seconds": round(self.seconds, 1)})


def main(slides: str, encoder: str, *uris: str) -> None:
    """Fill the lakes one after the other."""

    def run_ingest(lake: Filling) -> None:
        lake.run(lambda: ingest(lake.uri, [slides], CONFIG, commit_slides=2).failed)

    def run_extract(lake: Filling) -> None:
        lake.run(lambda: extract(lake.uri, [encoder]).failed)

    lakes = [Filling(uri) for uri in uris]
    on_ray = [lake for lake in lakes if "://" in lake.uri]
    with ray_session(num_cpus=2):
        for lake in lakes:
            run_ingest(lake)
        for lake in on_ray:
            run_extract(lake)
    for lake in lakes:
        if lake not in on_ray:
            run_extract(lake)
        print(lake.line(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
