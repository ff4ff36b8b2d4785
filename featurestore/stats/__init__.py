"""Statistics of a teacher's features, and the PHI-S rotation."""

from featurestore.stats.moments import read_card
from featurestore.stats.phi_s_rotation import phi_s

__all__ = [
    "phi_s",
    "read_card",
]
