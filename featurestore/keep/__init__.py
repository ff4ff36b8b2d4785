"""Keeping a lake: what is checked, recorded, copied and freed, and the way back."""

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
