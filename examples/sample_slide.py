"""The real slide that is shipped, for a first try without slides of one's own."""

from pathlib import Path

REAL_SLIDE = Path(__file__).parent / "data" / "CMU-1-Small-Region.svs"


def sample_slide() -> str:
    """Return the path of a small real slide (SVS, 1.9 MB) that is shipped with slidelake.

    It is OpenSlide's `CMU-1-Small-Region.svs`, which is dedicated to the public domain (CC0 1.0):
    2220 x 2967 pixels at 0.499 mpp (20x), one level, without a patient's data.

    Examples:
        >>> import slidelake as sl
        >>> slide = sl.sample_slide()
        >>> sl.ingest("new-lake", [slide], sl.LakeConfig(mpps=(1.0,))).ready
        1

    Returns:
        The path as text, as `ingest` and `build_lake` take it.
    """
    return str(REAL_SLIDE)
