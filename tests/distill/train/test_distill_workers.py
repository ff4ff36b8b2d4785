"""One worker and two: a run that was killed ends like one that was not, and losses are the same."""

from typing import Any

import pytest
import torch
from torch import Tensor

from distill.errors import DistillError
from distill.recipes.recipe import Schedule
from distill.recipes.recipe_table import make_recipe
from distill.train.distill_run import plan_run
from distill.train.loop import NETWORK_DRAWS, seed_of
from featurestore import Lake
from tests.conftest import TEACHERS
from tests.worlds import pair_work
from tests.worlds.pair_work import ALIKE, LOSSES, PARTS, SAMPLES, UNEQUAL
from tests.worlds.recipe_cases import CASES
from tests.worlds.worker_pair import on_two_workers

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two workers computes."""
    folder = tmp_path_factory.mktemp("pair")
    return on_two_workers("tests.worlds.pair_work:everything", folder)


@pytest.fixture(scope="module")
def one_thread() -> Any:  # noqa: ANN401
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def check_equal(ours: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert ours.keys() == other.keys()
    for name, tensor in other.items():
        assert float((ours[name].double() - tensor.double()).abs().max()) < 1e-6, name


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_one_worker_that_was_killed_ends_like_one_that_was_not(name: str) -> None:
    check_equal(pair_work.trained(name, kill_after=2), pair_work.trained(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_workers_that_were_killed_end_like_two_that_were_not(
    pair: list[dict[str, Any]], name: str
) -> None:
    """The second worker goes on from the first one's checkpoint."""
    for whole, resumed in (worker["trained"][name] for worker in pair):
        check_equal(resumed, whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_both_workers_end_in_one_state(pair: list[dict[str, Any]], name: str) -> None:
    """Also in that of the moving average that teaches, with its batch norms' statistics."""
    check_equal(pair[1]["trained"][name][0], pair[0]["trained"][name][0])


def test_dropout_differs_between_workers_and_steps() -> None:
    seeds = {seed_of(0, step, 0, rank, NETWORK_DRAWS) for step in range(9) for rank in range(9)}
    seeds |= {seed_of(0, step, 0, rank) for step in range(9) for rank in range(9)}
    assert len(seeds) == 2 * 81


# ---------------------------------------------------------------------- shares of a step


def test_a_step_is_shared_equally_or_refused() -> None:
    schedule = Schedule(batch_tiles=64, accumulate=2)
    assert [schedule.tiles_of_worker(workers) for workers in (1, 2, 16)] == [32, 16, 2]
    with pytest.raises(
        DistillError,
        match=r"64 tiles over 64 workers x 2 parts is 0\.5 tiles for each.*--batch-tiles 256",
    ):
        schedule.tiles_of_worker(64)
    with pytest.raises(DistillError, match=r"64 tiles over 3 workers.*--batch-tiles 60 or 66"):
        schedule.tiles_of_worker(3)
    with pytest.raises(DistillError, match="over 1 worker x 3 parts"):
        Schedule(batch_tiles=64, accumulate=3)


def test_the_number_of_workers_is_part_of_a_run(lake: Lake) -> None:
    recipe = make_recipe("agglomerate", TEACHERS, batch_tiles=16)
    one, two = (plan_run(lake, recipe, student="s", workers=n) for n in (1, 2))
    assert one.run == plan_run(lake, recipe, student="s").run != two.run
    assert (one.to_json()["workers"], two.to_json()["workers"]) == (1, 2)
    with pytest.raises(DistillError, match="16 tiles over 16 workers"):
        plan_run(lake, recipe, student="s", workers=16)


# ---------------------------------------------------------------------- losses


@pytest.mark.parametrize("kind", ["equal", "unequal"])
@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_loss_of_two_workers_is_that_of_one(
    pair: list[dict[str, Any]], name: str, kind: str
) -> None:
    student, teacher = pair_work.inputs()
    loss_N, gradient_ND = pair_work.losses_and_gradient(name, student, teacher, SAMPLES)
    for worker, part in zip(pair, PARTS if kind == "equal" else UNEQUAL, strict=True):
        loss_B, gradient_BD = worker["losses"][kind][name]
        torch.testing.assert_close(loss_B, loss_N[part], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradient_BD, gradient_ND[part], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ALIKE)
def test_a_step_of_two_workers_is_that_of_one(pair: list[dict[str, Any]], name: str) -> None:
    """The same tiles: each term's mean loss and the gradient of each weight agree."""
    losses, gradients = pair_work.case_losses(name, 0, 1)
    for worker in pair:
        assert worker["cases"][name][0] == pytest.approx(losses, rel=1e-5)
        for parameter, gradient in worker["cases"][name][1].items():
            torch.testing.assert_close(gradient, gradients[parameter], rtol=1e-3, atol=1e-6)
