"""Driver, workers or all of Ray are killed at work; the lake ends as if nothing had happened."""

from pathlib import Path

import pytest

from tests.worlds.kill_drill import KINDS, Drill


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("ray_up")
def test_twelve_kills_with_ray(tmp_path: Path) -> None:
    drill = Drill(tmp_path)
    drill.prepare()
    drill.run(12)
    assert [kill.kind for kill in drill.kills] == list(KINDS) * 3
    assert drill.lakes
