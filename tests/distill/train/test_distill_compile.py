"""`--compile`: a step of each kind of student runs through compiled graphs, to the same losses."""

from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.utils import counters

from tests.worlds.recipe_cases import CASES

#: A case of each kind of network, and the operations of its network that graphs must hold.
COMPILED = {
    "gpfm": 20,
    "agglomerate-vit": 20,
    "shazam": 10,
    "pathme": 20,
    "context": 20,
    "robust": 8,
}


@pytest.fixture(autouse=True)
def counted_graphs() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    torch.set_num_threads(threads)


# Dynamo looks at `.grad` of every input, also of those that have none.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("name", COMPILED)
def test_a_step_runs_through_compiled_graphs(name: str) -> None:
    case = CASES[name]
    recipe = case.made(dihedral=False, stain=0.0) if name != "shazam" else case.made()
    plain, compiled = (case.task(recipe).train() for _ in range(2))
    compiled.compile_student(backend="eager")
    batch = case.batch(0)
    losses = []
    for task in (plain, compiled):
        assert not counters["stats"]["unique_graphs"]
        torch.manual_seed(0)
        losses.append(task(batch, torch.Generator().manual_seed(0)))
    assert counters["stats"]["unique_graphs"] >= 1
    assert counters["stats"]["calls_captured"] >= COMPILED[name]
    for term, loss in losses[0].items():
        torch.testing.assert_close(losses[1][term], loss, rtol=1e-4, atol=1e-5)
    assert plain.state_dict().keys() == compiled.state_dict().keys()
