"""The work of a small study on lakes in several clouds, on one Ray; a process of its own.

Run as `python -m tests.worlds.cloud_work SLIDES ENCODER LAKE [LAKE ...]`: each lake is made of the
slides, and the encoder is run on it. It prints a line of JSON per lake: seconds, or the error.
"""

import json
import sys
import time

from cluster import ray_session
from featurestore import BucketError, LakeConfig
from ingest.ray_ingest import ingest
from ingest.teachers.ray_extract import extract

CONFIG = LakeConfig(tile_px=256, mpps=(0.5, 2.0))
TRIES = 3


def fill(uri: str, slides: str, encoder: str) -> None:
    """Make a lake of slides and run an encoder on it.

    It is run again after trouble of the bucket, as a user would: what is done stays done.
    """
    for tries_left in reversed(range(TRIES)):
        try:
            failed = ingest(uri, [slides], CONFIG, commit_slides=3).failed
            failed = [*failed, *extract(uri, [encoder]).failed]
        except BucketError:
            if not tries_left:
                raise
            continue
        if not failed or not tries_left:
            assert not failed, failed
            return


def main(slides: str, encoder: str, *uris: str) -> None:
    """Fill the lakes one after the other."""
    with ray_session(num_cpus=2):
        for uri in uris:
            begun = time.monotonic()
            try:
                fill(uri, slides, encoder)
            except Exception as error:  # noqa: BLE001 - the test of this lake fails with it
                print(json.dumps({"lake": uri, "error": f"{type(error).__name__}: {error}"}))
            else:
                print(json.dumps({"lake": uri, "seconds": round(time.monotonic() - begun, 1)}))
            sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
