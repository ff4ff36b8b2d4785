"""Where an evaluation runs: here without a cluster, else as one task of a worker."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from cluster import ClusterError
from cluster.ray_placement import NodeShape
from distill.errors import DistillError
from distill.evaluate import ray_evaluation
from distill.evaluate.evaluation_spec import EvaluationSpec
from distill.evaluate.ray_evaluation import evaluate_there

Tasks = list[dict[str, Any]]


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> Tasks:
    """The tasks that were given to a cluster of a head without CPUs and two kinds of workers."""
    made: Tasks = []

    def ray_map(
        fn: Callable[[Any], Any], items: Sequence[Any], **share: float
    ) -> Iterator[tuple[int, Any]]:
        for number, item in enumerate(items):
            made.append({"spec": item, **share})
            yield number, fn(item)

    def evaluate(lake_uri: str, students: Sequence[str], spec: object, **options: object) -> object:
        return {"lake": lake_uri, "students": list(students), "spec": spec, **options}

    shapes = [NodeShape(cpus=8, gpus=1, count=2), NodeShape(cpus=32, gpus=0, count=4)]
    monkeypatch.setattr(ray_evaluation, "ray_map", ray_map)
    monkeypatch.setattr(ray_evaluation, "evaluate", evaluate)
    monkeypatch.setattr(ray_evaluation, "node_shapes", lambda: shapes)
    monkeypatch.setattr(ray_evaluation, "ray_session", lambda **_: nullcontext())
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray_evaluation, "joins_cluster", lambda address: address is not None)
    return made


def test_without_a_cluster_it_runs_here(tasks: Tasks) -> None:
    report = evaluate_there("lake", ["s"], EvaluationSpec(labels="t.csv"), version=3)
    assert (report["students"], report["version"], tasks) == (["s"], 3, [])


@pytest.mark.parametrize(
    ("spec", "cpus", "gpus", "device"),
    [
        (EvaluationSpec(), 8, 1, "cuda"),
        (EvaluationSpec(device="cuda:0", threads=2), 2, 1, "cuda"),
        (EvaluationSpec(device="cpu"), 32, 0, "cpu"),
        (EvaluationSpec(device="cpu", threads=4, labels="lake:regions"), 4, 0, "cpu"),
    ],
)
def test_a_worker_reserves_what_it_uses(
    tasks: Tasks, spec: EvaluationSpec, cpus: float, gpus: float, device: str
) -> None:
    report = evaluate_there("lake", ["s", "t"], spec, address="head:6379")
    (task,) = tasks
    assert (task["num_cpus"], task["num_gpus"]) == (cpus, gpus)
    placed = task["spec"]
    assert (placed.device, placed.threads, placed.labels) == (device, cpus, spec.labels)
    assert (report["students"], report["spec"]) == (["s", "t"], placed)


def test_what_no_worker_has_is_refused(tasks: Tasks, tmp_path: Path) -> None:
    too_large = EvaluationSpec(device="cpu", threads=64)
    with pytest.raises(ClusterError, match=r"64 CPUs fits on no node"):
        evaluate_there("lake", ["s"], too_large, address="head:6379")
    (tmp_path / "labels.csv").write_text("slide_id,x,y,label\n")
    own = EvaluationSpec(labels=str(tmp_path / "labels.csv"))
    with pytest.raises(DistillError, match=r"is a file of this machine.*--labels lake:NAME"):
        evaluate_there("lake", ["s"], own, address="head:6379")
    assert tasks == []
