"""Driver, workers or all of Ray are killed at work; the lake ends as if nothing had happened."""

from pathlib import Path

import pytest

from tests.kill_drill import Drill
from tests.kills import KINDS


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twelve_kills_with_ray(tmp_path: Path) -> None:
    drill = Drill(tmp_path)
    drill.prepare()
    drill.run(12)
    assert [kill.kind for kill in drill.kills] == list(KINDS) * 4
    assert drill.lakes
