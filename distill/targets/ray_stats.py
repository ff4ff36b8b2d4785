"""Parts of statistics as Ray tasks: each worker reads its slides from the lake by itself.

A result is the mean and covariance of about 260,000 tiles, 19 MB at 1,536 channels; the driver
holds those that wait for their turn, at most `MOST_AHEAD`.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from cluster import ray_map
from featurestore import Lake, open_lake
from featurestore.stats import Moments, Part, part_moments

MOST_AHEAD = 64


def map_on_ray(
    lake: Lake,
    parts: Sequence[Part],
    on_tiles: Callable[[int], None],
    *,
    num_cpus: float = 1.0,
) -> Iterator[tuple[int, Moments | None]]:
    """Yield number and moments of each part, in the order in which they are finished.

    Args:
        lake: the lake.
        parts: the parts.
        on_tiles: function that is called with the number of tiles of each finished part.
        num_cpus: CPUs that the task of a part reserves.
    """
    of_part = partial(_of_part, lake.uri, lake.version)
    for number, moments in ray_map(of_part, parts, num_cpus=num_cpus, max_in_flight=MOST_AHEAD):
        on_tiles(parts[number].tiles)
        yield number, moments


def _of_part(lake_uri: str, version: int, part: Part) -> Moments | None:
    return part_moments(open_lake(lake_uri, version=version), part)
