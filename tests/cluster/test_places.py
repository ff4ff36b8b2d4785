"""The files for Kubernetes, AWS and SLURM, against schemas that we did not write."""

import copy
import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import jsonschema
import pytest
import typer
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start
from ray.scripts.symmetric_run import curate_and_validate_ray_start_args

import slidelake
from cluster.ray_placement import NODES, _groups
from commands.installation.job_paths import JobPaths
from commands.installation.job_words import job_words
from tests.conftest import ROOT

CLUSTER = ROOT / "cluster"
KUBERAY = CLUSTER / "kuberay"
SCHEMA = json.loads((ROOT / "tests" / "data" / "kuberay.schema.json").read_text())
AWS = CLUSTER / "aws" / "cluster.yaml"
SLURM = sorted((CLUSTER / "slurm").glob("*.sbatch"))
MANIFESTS = [KUBERAY / "raycluster.yaml", KUBERAY / "rayjob.yaml"]

Manifest = dict[str, Any]


def documents(path: Path) -> list[Manifest]:
    """The documents of a file of manifests."""
    return list(yaml.safe_load_all(path.read_text()))


def problems(manifest: object, definition: str) -> list[str]:
    """What a definition of the schema has against a manifest."""
    schema = {**SCHEMA, "$ref": f"#/$defs/{definition}"}
    errors = jsonschema.Draft202012Validator(schema).iter_errors(manifest)
    return [f"{'/'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]


def dicts(node: object) -> Iterator[Manifest]:
    """All mappings within a manifest."""
    children: list[object] = node if isinstance(node, list) else []
    if isinstance(node, dict):
        yield node
        children = list(node.values())
    for child in children:
        yield from dicts(child)


def values(node: object, key: str) -> set[str]:
    """All texts that a manifest has under a key."""
    return {one[key] for one in dicts(node) if isinstance(one.get(key), str)}


# ---------------------------------------------------------------------- Kubernetes


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_a_manifest_is_one_of_kuberay(path: Path) -> None:
    (manifest,) = documents(path)
    assert manifest["apiVersion"] == "ray.io/v1"
    assert problems(manifest, manifest["kind"]) == []


@pytest.mark.parametrize(
    ("place", "field"),
    [
        ((), "headGroupSpecs"),
        (("headGroupSpec",), "servicetype"),
        (("headGroupSpec", "template", "spec", "containers", 0), "image_pull_policy"),
        (("headGroupSpec", "template", "spec", "containers", 0, "resources"), "limit"),
        (("workerGroupSpecs", 0), "maxReplica"),
    ],
)
def test_a_misspelt_field_is_found(place: tuple[str | int, ...], field: str) -> None:
    """As a server does not: it drops what it does not know."""
    (manifest,) = documents(MANIFESTS[0])
    wrong = copy.deepcopy(manifest)
    node: Any = wrong["spec"]
    for key in place:
        node = node[key]
    node[field] = {}
    assert any(field in problem for problem in problems(wrong, "RayCluster"))


def test_the_job_has_the_cluster_of_the_cluster_file() -> None:
    (one,), (job,) = (documents(path) for path in MANIFESTS)
    spec = copy.deepcopy(one["spec"])
    spec["authOptions"]["secretName"] = "slidelake"  # its own cluster has a name of its own
    assert job["spec"]["rayClusterSpec"] == spec
    assert job["spec"]["shutdownAfterJobFinishes"] is True


def test_the_jobs_command_is_one_of_slidelake() -> None:
    (job,) = documents(KUBERAY / "rayjob.yaml")
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:3] == ["python", "-m", "slidelake"]
    app = cast("typer.core.TyperGroup", typer.main.get_command(slidelake.app))
    paths = JobPaths(here=False)
    assert job_words(app, words[3:], paths) == words[3:]
    assert (paths.files, paths.outputs) == ({}, {})


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_the_groups_are_told_to_jobs_as_they_are(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (manifest,) = documents(path)
    spec = manifest["spec"].get("rayClusterSpec", manifest["spec"])
    groups = set()
    for group in spec["workerGroupSpecs"]:
        (container,) = group["template"]["spec"]["containers"]
        limits = container["resources"]["limits"]
        size = (float(limits["cpu"]), float(limits.get("nvidia.com/gpu", 0)))
        groups.add((size, group["maxReplicas"]))
        (told,) = [one["value"] for one in container["env"] if one["name"] == NODES]
        monkeypatch.setenv(NODES, told)
    assert set(_groups()) == groups


def test_what_pods_mount_and_ask_for_is_there() -> None:
    """Claims, services and secrets: of storage.yaml, the operator, or a command that is shown."""
    storage = documents(KUBERAY / "storage.yaml")
    named = {(one["kind"], one["metadata"]["name"]) for one in storage}
    shown = (KUBERAY / "raycluster.yaml").read_text() + (KUBERAY / "storage.yaml").read_text()
    secrets = {*re.findall(r"kubectl create secret generic (\S+)", shown), "slidelake"}
    for path in MANIFESTS:
        (manifest,) = documents(path)
        claims = values(manifest, "claimName")
        assert claims == {"slidelake-weights"}
        assert {("PersistentVolumeClaim", name) for name in claims} <= named
        spec = manifest["spec"].get("rayClusterSpec", manifest["spec"])
        host = spec["gcsFaultToleranceOptions"]["redisAddress"].partition(":")[0]
        assert ("Service", host) in named
        keys = [one["secretKeyRef"] for one in dicts(manifest) if "secretKeyRef" in one]
        assert {key["name"] for key in keys} == secrets
        for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
            pod = group["template"]["spec"]
            (container,) = pod["containers"]
            volumes = {one["name"] for one in pod["volumes"]}
            assert {one["name"] for one in container["volumeMounts"]} == volumes


def test_redis_is_a_pod_by_the_same_definition_and_keeps_its_password() -> None:
    *_, stateful = documents(KUBERAY / "storage.yaml")
    schema: Any = SCHEMA
    template: Any = schema["$defs"]["RayCluster"]
    for key in ("spec", "headGroupSpec", "template"):
        while "$ref" in template:
            template = schema["$defs"][template["$ref"].rpartition("/")[2]]
        template = template["properties"][key]
    schema["$defs"]["template"] = template
    assert problems(stateful["spec"]["template"], "template") == []
    (container,) = stateful["spec"]["template"]["spec"]["containers"]
    assert "requirepass" not in " ".join(container["command"])
    assert (
        stateful["spec"]["template"]["metadata"]["labels"]
        == (stateful["spec"]["selector"]["matchLabels"])
    )


# ---------------------------------------------------------------------- AWS


def test_the_cluster_on_aws_is_one_of_rays_launcher() -> None:
    config = yaml.safe_load(AWS.read_text())
    """By Ray's own check, which reads its own schema."""
    validate_config(prepare_config(copy.deepcopy(config)))
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        validate_config(prepare_config({**config, "max_worker": 3}))


def test_the_cluster_on_aws_takes_spot_workers_and_a_head_that_only_schedules(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = yaml.safe_load(AWS.read_text())
    types = config["available_node_types"]
    head = types.pop(config["head_node_type"])
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]
    (told,) = re.findall(rf"--env {NODES}=(\S+)", " ".join(config["docker"]["run_options"]))
    monkeypatch.setenv(NODES, told)
    assert set(_groups()) == {
        ((one["resources"]["CPU"], one["resources"].get("GPU", 0)), one["max_workers"])
        for one in types.values()
    }
    assert config["max_workers"] == sum(one["max_workers"] for one in types.values())
    for one in types.values():
        assert one["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
        assert one["min_workers"] == 0
    commands = " ".join(config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in commands
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert "/home/ray/.ray/auth_token" in config["file_mounts"]


def test_rays_start_commands_are_commands_of_ray() -> None:
    config = yaml.safe_load(AWS.read_text())
    for line in config["head_start_ray_commands"] + config["worker_start_ray_commands"]:
        if match := re.search(r"ray start (.*)", line):
            start.make_context("start", shlex.split(match[1]))


# ---------------------------------------------------------------------- SLURM

STUBS = {
    "srun": 'printf "%s\\n" "$@" >> "$LOG"; env | grep ^RAY_ >> "$LOG.env"; exit "${CODE:-0}"',
    "slidelake": 'printf "%s\\n" "slidelake" "$@" "$TMPDIR" >> "$LOG"; exit "${CODE:-0}"',
    "hostname": "echo 127.0.1.1 10.0.0.7 172.17.0.1",
}


def started(script: Path, folder: Path, *words: str, **variables: str) -> tuple[int, list[str]]:
    """What a batch script starts, with stubs in the place of SLURM's and our programs."""
    programs = folder / "bin"
    programs.mkdir()
    for name, text in STUBS.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    environ = {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "LOG": str(folder / "log"),
        "SLURM_JOB_ID": "123456", "SLURM_JOB_NUM_NODES": "4", "SLURM_CPUS_ON_NODE": "48",
        "RAY_ADDRESS": "left.over:6379", **variables,
    }  # fmt: skip
    done = subprocess.run(["bash", str(script), *words], env=environ, check=False)
    return done.returncode, (folder / "log").read_text().splitlines()


@pytest.mark.parametrize("script", SLURM, ids=lambda path: path.stem)
def test_a_batch_script_is_bash_and_goes_on_after_preemption(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    options = re.findall(r"^#SBATCH (\S+)", script.read_text(), re.MULTILINE)
    assert "--requeue" in options
    assert "--open-mode=append" in options


def test_several_nodes_are_one_ray_with_a_token_of_its_own(tmp_path: Path) -> None:
    nodes = CLUSTER / "slurm" / "nodes.sbatch"
    code, words = started(nodes, tmp_path, "info", "/shared/a lake", CODE="2")
    assert code == 2
    at = words.index("symmetric-run")
    assert words[at - 1] == "ray"
    call = words[at + 1 : words.index("--ntasks-per-node=1", at)]
    assert call[-4:] == ["--", "slidelake", "info", "/shared/a lake"]
    assert call[:4] == ["--address", "10.0.0.7:23456", "--min-nodes", "4"]
    rest = curate_and_validate_ray_start_args(call[: call.index("--")])
    start.make_context("start", ["--head", *rest])
    start.make_context("start", ["--address=10.0.0.7:23456", *rest])
    assert "--num-cpus=48" in rest
    assert not [word for word in rest if word.startswith("--include-dashboard")]  # the head's alone
    environ = dict(line.split("=", 1) for line in (tmp_path / "log.env").read_text().splitlines())
    assert environ["RAY_AUTH_MODE"] == "token"
    assert len(environ["RAY_AUTH_TOKEN"]) == 64
    assert environ["RAY_ADDRESS"] == "10.0.0.7:23456"
    assert words[-3:-1] == ["rm", "-rf"]  # what Ray left on each node


def test_one_node_has_a_ray_of_its_own_in_a_folder_of_its_own(tmp_path: Path) -> None:
    one = CLUSTER / "slurm" / "one-node.sbatch"
    code, words = started(one, tmp_path, "info", "a lake", SLURM_TMPDIR=str(tmp_path))
    assert (code, words[:3]) == (0, ["slidelake", "info", "a lake"])
    assert words[3] == f"{tmp_path}/sl-123456-0"
    assert not Path(words[3]).exists()
