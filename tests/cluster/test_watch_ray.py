"""Metrics as Prometheus finds them: a job in a Ray of its own, whose metrics port is read."""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from cluster.watch.ray_metrics import METRICS, exported_name
from tests.conftest import ROOT

#: A job that counts each metric once, names its metrics port, and waits for the end of stdin.
JOB = """
import sys
import ray
from cluster import ray_session
from cluster.watch.ray_metrics import METRICS, Metrics
with ray_session(num_cpus=1, ray_data=False):
    metrics = Metrics("ingest", "s3://bucket/lake")
    for name, spec in METRICS.items():
        count = metrics.add if spec.kind == "counter" else metrics.set
        count(name, 7, **dict.fromkeys(spec.labels, "x"))
    node = ray.nodes()[0]
    print(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", flush=True)
    sys.stdin.read()
"""
PATIENCE_S = 60.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def samples(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return str(answer.read().decode())
    except OSError:  # the agent that serves it starts after the node
        return ""


@pytest.mark.slow
def test_prometheus_finds_every_metric_by_its_name_and_labels() -> None:
    job = subprocess.Popen(
        [sys.executable, "-c", JOB],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "SLIDELAKE_METRICS_PORT": str(free_port())},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert job.stdin is not None
    assert job.stdout is not None
    try:
        url = job.stdout.readline().strip()
        assert url
        names = {exported_name(name) for name in METRICS}
        end, text = time.monotonic() + PATIENCE_S, ""
        while time.monotonic() < end:
            text = samples(url)
            if names <= set(re.findall(r"^(\w+)\{", text, re.MULTILINE)):
                break
            time.sleep(1)
        for name, spec in METRICS.items():
            (line,) = re.findall(rf"^{exported_name(name)}\{{(.*)\}} (\S+)$", text, re.MULTILINE)
            labels = dict(re.findall(r'(\w+)="([^"]*)"', line[0]))
            assert (labels["command"], labels["lake"]) == ("ingest", "s3://bucket/lake")
            assert all(labels[label] == "x" for label in spec.labels)
            assert float(line[1]) == 7
            assert re.search(rf"^# TYPE {exported_name(name)} {spec.kind}$", text, re.MULTILINE)
            assert f"# HELP {exported_name(name)} {spec.help}" in text
    finally:
        job.stdin.close()
        job.stdout.close()
        job.wait(60)
