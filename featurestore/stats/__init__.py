"""Statistics of a teacher's features, and the PHI-S rotation."""

from featurestore.stats.fitting import Part, PartMap, map_here, part_moments
from featurestore.stats.moments import Moments, kept_stats, moments_of, read_card
from featurestore.stats.phi_s_rotation import phi_s

__all__ = [
    "Moments",
    "Part",
    "PartMap",
    "kept_stats",
    "map_here",
    "moments_of",
    "part_moments",
    "phi_s",
    "read_card",
]
