"""Workers that fit the nodes of a cluster, and one line for a demand that fits none."""

import pytest
import yaml

from cluster import ClusterError, NodeShape, WorkerSettings, node_shapes, place
from tests.conftest import ROOT


def nodes(*sizes: tuple[float, float, int]) -> list[NodeShape]:
    return [NodeShape(cpus=cpus, gpus=gpus, count=count) for cpus, gpus, count in sizes]


LAPTOP = nodes((2, 0, 1))
THREE_SMALL = nodes((1, 0, 3))
FOUR_LARGE = nodes((16, 0, 4))
UNEVEN = nodes((3, 0, 1), (1, 0, 2))
KUBERAY = nodes((8, 1, 4), (8, 0, 10))  # the groups of cluster/kuberay: all grow from nothing
BOX = nodes((32, 4, 1))


@pytest.mark.parametrize(
    ("cluster", "settings", "most", "workers", "cpus", "gpus"),
    [
        (LAPTOP, {}, 1, 1, 2, 0),
        (LAPTOP, {}, 9, 2, 1, 0),
        (THREE_SMALL, {}, 2, 2, 1, 0),  # an equal share of all CPUs, 1.5, fits no node
        (FOUR_LARGE, {}, 1, 1, 16, 0),  # not 64
        (FOUR_LARGE, {}, 6, 6, 8, 0),
        (FOUR_LARGE, {}, 1000, 64, 1, 0),
        (UNEVEN, {}, 2, 2, 1, 0),
        (UNEVEN, {}, 1, 1, 3, 0),
        (KUBERAY, {}, 100, 4, 8, 1),
        (KUBERAY, {"device": "cpu"}, 7, 7, 8, 0),
        (KUBERAY, {"gpus_per_worker": 0.5}, 100, 8, 4, 0.5),
        (KUBERAY, {"gpus_per_worker": 0}, 5, 5, 8, 0),
        (BOX, {}, 100, 4, 8, 1),
        (BOX, {}, 1, 1, 8, 1),  # three other GPUs keep their CPUs
        (BOX, {"gpus_per_worker": 0.25}, 100, 16, 2, 0.25),
        (BOX, {"gpus_per_worker": 4, "workers": 1}, 1, 1, 32, 4),
        (BOX, {"cpus_per_worker": 2}, 100, 4, 2, 1),
        (LAPTOP, {"workers": 5, "cpus_per_worker": 0.5}, 9, 5, 0.5, 0),
        (LAPTOP, {"workers": 5, "cpus_per_worker": 0.5}, 2, 2, 0.5, 0),  # no more than have work
        (
            nodes((8, 2, 1)),
            {"gpus_per_worker": 0.4},
            100,
            4,
            2,
            0.4,
        ),  # two to a GPU
        (nodes((8, 2, 1)), {"gpus_per_worker": 0.6}, 100, 2, 4, 0.6),
        (nodes((0.5, 0, 1)), {}, 3, 1, 0.5, 0),
    ],
)
def test_workers_fit_the_nodes(
    cluster: list[NodeShape],
    settings: dict[str, float],
    most: int,
    workers: int,
    cpus: float,
    gpus: float,
) -> None:
    placement = place(WorkerSettings(**settings), cluster, most=most)  # type: ignore[arg-type]
    assert (placement.workers, placement.cpus_per_worker, placement.gpus_per_worker) == (
        workers,
        cpus,
        gpus,
    )
    assert placement.device == ("cuda" if gpus else "cpu")
    assert placement.threads == max(1, int(cpus))
    assert any(
        shape.holds(placement.cpus_per_worker, placement.gpus_per_worker) for shape in cluster
    )


def test_workers_that_run_together_share_a_node() -> None:
    """Two workers of an uneven cluster: each on its own node, or both on the larger."""
    placement = place(WorkerSettings(workers=2), UNEVEN, most=2, together=True)
    assert (placement.workers, placement.cpus_per_worker) == (2, 1)
    placement = place(WorkerSettings(workers=2), nodes((8, 0, 1)), most=2, together=True)
    assert (placement.workers, placement.cpus_per_worker) == (2, 4)


@pytest.mark.parametrize(
    ("cluster", "settings", "message"),
    [
        (KUBERAY, {"cpus_per_worker": 25}, r"25 CPUs and 1 GPU fits on no node .*4 x 8 CPUs and 1"),
        (LAPTOP, {"device": "cuda"}, r"1 CPU and 1 GPU fits on no node .*give --device cpu"),
        (LAPTOP, {"cpus_per_worker": 3}, r"a worker of 3 CPUs fits on no node .*1 x 2 CPUs"),
        (BOX, {"gpus_per_worker": 8}, r"8 GPUs fits on no node"),
        ([], {}, r"fits on no node \(nodes .*: none with CPUs\)"),
        (LAPTOP, {"workers": 3}, r"3 workers of 1 CPU have to run at once, and 2 fit"),
    ],
)
def test_a_demand_that_no_node_holds_is_refused_with_the_nodes(
    cluster: list[NodeShape], settings: dict[str, float], message: str
) -> None:
    with pytest.raises(ClusterError, match=message):
        place(WorkerSettings(**settings), cluster, most=4, together=True)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "gpu"}, "allowed are auto, cuda, cpu"),
        ({"workers": 0}, "give 1 or more"),
        ({"cpus_per_worker": 0}, "above 0"),
        ({"cpus_per_worker": float("nan")}, "finite numbers"),
        ({"gpus_per_worker": 1.5}, "a part of one"),
        ({"gpus_per_worker": -1}, "a part of one"),
        ({"device": "cpu", "gpus_per_worker": 1}, "do not go with device cpu"),
        ({"device": "cuda", "gpus_per_worker": 0}, "do not go with device cuda"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    settings: dict[str, float], message: str
) -> None:
    with pytest.raises(ClusterError, match=message):
        WorkerSettings(**settings)  # type: ignore[arg-type]


def test_groups_of_a_growing_cluster_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIDELAKE_NODES", "10x8, 4 x 8+1,")
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": {"CPU": 8.0}}])
    assert node_shapes() == nodes((8, 1, 4), (8, 0, 10))
    monkeypatch.setenv("SLIDELAKE_NODES", "")
    assert node_shapes() == nodes((8, 0, 1))
    monkeypatch.setenv("SLIDELAKE_NODES", "ten of 8")
    with pytest.raises(ClusterError, match="'ten of 8' is no group of nodes; give COUNTxCPUS"):
        node_shapes()


def test_the_kubernetes_manifest_names_its_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = yaml.safe_load((ROOT / "cluster" / "kuberay" / "raycluster.yaml").read_text())
    named, expected = set(), []
    for group in manifest["spec"]["workerGroupSpecs"]:
        (container,) = group["template"]["spec"]["containers"]
        named |= {e["value"] for e in container["env"] if e["name"] == "SLIDELAKE_NODES"}
        limits = container["resources"]["limits"]
        size = (float(limits["cpu"]), float(limits.get("nvidia.com/gpu", 0)))
        expected += nodes((*size, group["maxReplicas"]))
    monkeypatch.setattr("ray.nodes", list)
    (text,) = named
    monkeypatch.setenv("SLIDELAKE_NODES", text)
    assert sorted(node_shapes(), key=str) == sorted(expected, key=str)


def test_workers_on_nodes_with_more_gpus_than_cpus_share_their_cpus() -> None:
    uneven = nodes((2, 4, 1), (8, 1, 1))
    placement = place(WorkerSettings(workers=5), uneven, most=5, together=True)
    assert (placement.workers, placement.cpus_per_worker) == (5, 0.5)


def test_a_number_in_place_of_settings_is_refused() -> None:
    with pytest.raises(ClusterError, match="give a WorkerSettings"):
        place(2, LAPTOP, most=1)  # type: ignore[arg-type]
