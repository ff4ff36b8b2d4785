"""Where an evaluation runs: here without a cluster, else as one task of a worker."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from cluster import ClusterError
from cluster.ray_placement import NodeShape
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
        path = options.get("labels_path")
        table = None if path is None else Path(str(path)).read_text()
        return {
            "lake": lake_uri,
            "students": list(students),
            "spec": spec,
            "table": table,
            **options,
        }

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
    assert report["lake"] == str(Path("lake").absolute())  # a worker has another folder


def test_what_no_worker_has_is_refused(tasks: Tasks, tmp_path: Path) -> None:
    too_large = EvaluationSpec(device="cpu", threads=64)
    with pytest.raises(ClusterError, match=r"64 CPUs fits on no node"):
        evaluate_there("lake", ["s"], too_large, address="head:6379")
    assert tasks == []


def test_the_options_of_resources_are_those_of_other_jobs(tasks: Tasks) -> None:
    evaluate_there(
        "lake",
        ["s"],
        EvaluationSpec(),
        address="head:6379",
        cpus_per_worker=3.0,
        gpus_per_worker=0.25,
    )
    evaluate_there(
        "lake", ["s"], EvaluationSpec(device="cpu"), address="head:6379", cpus_per_worker=12
    )
    assert [(task["num_cpus"], task["num_gpus"]) for task in tasks] == [(3, 0.25), (12, 0)]
    assert [task["spec"].device for task in tasks] == ["cuda", "cpu"]
    with pytest.raises(ClusterError, match="2 GPUs fits on no node"):
        evaluate_there("lake", ["s"], EvaluationSpec(), address="head:6379", gpus_per_worker=2)


def test_a_table_of_this_machine_is_sent_to_the_worker(tasks: Tasks, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("slide_id,x,y,label\n")
    read = evaluate_there("lake", ["s"], EvaluationSpec(labels=str(table)), address="head:6379")
    assert len(tasks) == 1
    assert read["table"] == "slide_id,x,y,label\n"
    assert Path(read["labels_path"]).name == "labels.csv" != read["labels_path"]
    assert not Path(read["labels_path"]).exists()
    assert read["spec"].labels == str(table)  # what the report names
