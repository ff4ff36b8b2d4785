"""Upkeep of a lake: verification, repair, copies, compaction, vacuum and restore."""

from featurestore.keep.lance_upkeep import upkeep
from featurestore.keep.repairing import Repaired, RepairPlan, plan_repair, repair, way_back

__all__ = [
    "RepairPlan",
    "Repaired",
    "plan_repair",
    "repair",
    "upkeep",
    "way_back",
]
