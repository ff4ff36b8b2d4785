"""The batch scripts in a real SLURM of two nodes, each with a network and processes of its own."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from featurestore import open_lake
from tests.worlds import slurm as world
from tests.worlds.slurm import Slurm

pytestmark = [
    pytest.mark.slow,
    pytest.mark.servers,
    pytest.mark.skipif(bool(world.missing()), reason=world.missing() or "SLURM is here"),
]


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    """SLURM in a folder with a short path: sockets are in it."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)  # as munge wants it
    try:
        with world.running(folder) as running:
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for a lake that the tests fill one after the other."""
    return tmp_path_factory.mktemp("slurm") / "lake"


def ready(lake: Path) -> int:
    """The number of slides with tiles."""
    return open_lake(lake).tiles(mpp=2.0).select("slide_id").collect()["slide_id"].n_unique()


def test_a_command_on_one_node_has_its_own_ray_and_ends_with_its_exit_code(
    slurm: Slurm, cohort: Path, lake: Path
) -> None:
    options = ("--cpus-per-task=2", "--mem=3000")
    words = ("ingest", str(lake), str(cohort), "--mpp", "2.0", "--limit", "2")
    code, log = slurm.sbatch("one-node", *words, options=options)
    assert code == 0, log + slurm.logs()
    assert ready(lake) == 2
    code, log = slurm.sbatch("one-node", "info", f"{lake}-none", options=options)
    assert code == 2, log


def test_a_command_on_two_nodes_is_one_ray_and_goes_on_with_the_lake(
    slurm: Slurm, cohort: Path, lake: Path
) -> None:
    words = ("ingest", str(lake), str(cohort), "--mpp", "2.0")
    code, log = slurm.sbatch("nodes", *words, options=("--nodes=2",))
    assert code == 0, log + slurm.logs()
    assert "On head node" in log
    assert "On worker node" in log
    assert "6 slides ready, 0 failed" in log
    assert ready(lake) == 6
    states = slurm.run("sinfo", "--noheader", "--Node", "--format=%T").stdout.split()
    assert states == ["idle", "idle"]
    assert not list(Path("/tmp").glob("sl-*-*")), "Ray's folders are left"
