"""What others may watch of a job: events, metrics, the dashboard, the call when it fails."""

import io
import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from cluster import (
    ClusterError,
    JobWatch,
    call_hook,
    checked_hook,
    progress,
    reason_class,
    without_secrets,
)
from cluster.watch.ray_metrics import COMMON_LABELS, METRICS, Metrics, exported_name
from tests.conftest import ROOT

DASHBOARD = ROOT / "cluster" / "grafana" / "slidelake.json"
WRITE = "import sys; open(sys.argv[1], 'wb').write(sys.stdin.buffer.read())"


# ---------------------------------------------------------------------- events


def events(out: io.StringIO, name: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    return [line for line in lines if line["event"] == name]


def test_each_slide_and_each_commit_is_a_line_of_json() -> None:
    out = io.StringIO()
    with progress("ingest", total=2, unit="slides", every_s=1e9, stream=out) as bar:
        watch = JobWatch("ingest", "s3://bucket/lake", bar)
        watch.slide("a", seconds=1.23456, tiles=12, bytes=3400)
        watch.slide("b", reason="https://me:pw@host/b.svs?sig=1 does not say its mpp")
        with watch.commit(slides=1):
            pass
    ready, failed = events(out, "slide")
    assert ready["at"].endswith("+00:00")
    assert {name: ready[name] for name in ("title", "slide", "state", "tiles", "seconds")} == {
        "title": "ingest", "slide": "a", "state": "ready", "tiles": 12, "seconds": 1.235,
    }  # fmt: skip
    assert (failed["state"], failed["class"]) == ("failed", "no_mpp")
    assert "pw" not in failed["reason"]
    assert "sig=1" not in failed["reason"]
    (commit,) = events(out, "commit")
    assert commit["slides"] == 1
    assert commit["seconds"] >= 0


@pytest.mark.parametrize("view", ["plain", "none"])
def test_people_see_no_events(view: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIDELAKE_PROGRESS", view)
    out = io.StringIO()
    with progress("ingest", total=1, unit="slides", stream=out) as bar:
        JobWatch("ingest", "lake", bar).slide("needle")
    assert "needle" not in out.getvalue()


def test_a_commit_that_fails_is_no_commit() -> None:
    out = io.StringIO()
    with progress("ingest", stream=out) as bar:
        watch = JobWatch("ingest", "lake", bar)
        with pytest.raises(OSError, match="full"), watch.commit(slides=1):
            raise OSError("full")  # noqa: EM101
    assert events(out, "commit") == []


# ---------------------------------------------------------------------- metrics


class _Recorded:
    """Stands for Ray's metrics: keeps what a job counts."""

    def __init__(self) -> None:
        self.counted: list[tuple[str, float, dict[str, str]]] = []

    def add(self, name: str, amount: float, **labels: str) -> None:
        if amount > 0:
            self.counted.append((name, amount, labels))

    set = add


def test_what_a_job_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = _Recorded()
    monkeypatch.setattr("cluster.watch.job_watch.Metrics", lambda *_: recorded)
    with progress("ingest", total=4, unit="slides", stream=io.StringIO()) as bar:
        watch = JobWatch("ingest", "lake", bar)
        bar.advance(1)
        watch.slide("a", tiles=12, bytes=3400)
        watch.slide("b", reason="the worker died on it")
        watch.steps(3, tiles=96, waited_s=0.5)
        watch.epoch(1, {"match": 0.25})
        watch.waited("data", 2.0)
        with watch.commit():
            pass
    counted = [(name.removeprefix("slidelake_"), labels) for name, _, labels in recorded.counted]
    assert ("slides", {"state": "ready"}) in counted
    assert ("failures", {"reason": "crash"}) in counted
    assert ("train_loss", {"term": "match"}) in counted
    amounts = {name: amount for name, amount, _ in recorded.counted}
    assert amounts["slidelake_slide_bytes"] == 3400
    assert amounts["slidelake_units_left"] == 3
    assert abs(amounts["slidelake_last_progress_timestamp_seconds"] - time.time()) < 60
    assert {name for name, _, _ in recorded.counted} == METRICS.keys() - {"slidelake_tile_features"}
    for name, _, labels in recorded.counted:
        assert set(labels) == set(METRICS[name].labels)


def test_without_ray_nothing_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    Metrics("ingest", "lake").add("slidelake_slides", 1, state="ready")
    assert "ray" not in sys.modules


def test_a_job_goes_on_where_a_metric_is_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no agent")  # noqa: EM101

    monkeypatch.setattr(Metrics, "add", refuse)
    with progress("ingest", stream=io.StringIO()) as bar:
        watch = JobWatch("ingest", "lake", bar)
        watch.slide("a")
        watch.slide("b")
    assert caplog.text.count("metrics are not counted: RuntimeError: no agent") == 1


def test_metrics_are_named_and_labelled_as_prometheus_asks() -> None:
    for name, spec in METRICS.items():
        assert re.fullmatch(r"slidelake(_[a-z]+)+", name)
        assert not name.endswith("_total"), "Prometheus' exporter adds it"
        assert spec.help.endswith(".")
        assert not {"job", "instance", "le"} & {*spec.labels, *COMMON_LABELS}
        assert all(re.fullmatch(r"[a-z_]+", label) for label in spec.labels)
        assert not re.search(r"_(ms|minutes|kb|mb)(_|$)", name)


def test_the_dashboard_shows_every_metric_and_no_other() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    targets = [target for panel in dashboard["panels"] for target in panel["targets"]]
    shown = {
        name for target in targets for name in re.findall(r"ray_slidelake_\w+", target["expr"])
    }
    assert shown == {exported_name(name) for name in METRICS}
    for target in targets:
        for name in METRICS:
            labels = {*COMMON_LABELS, *METRICS[name].labels}
            if exported_name(name) in target["expr"]:
                by = re.findall(r"by \(([^)]*)\)", target["expr"])
                used = {label.strip() for group in by for label in group.split(",")}
                assert used <= labels, target["expr"]
                assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= labels
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    variables = {one["name"] for one in dashboard["templating"]["list"]}
    assert variables == {"datasource", *COMMON_LABELS}
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    for at, one in enumerate(places):
        for other in places[at + 1 :]:
            apart = (
                one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
                or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
            )  # fmt: skip
            assert apart, (one, other)


@pytest.mark.parametrize(
    ("reason", "name"),
    [
        ("no tissue found on /crash died/mpp.svs (all glass)", "no_tissue"),
        ("/mpp/a.svs is cut off: what it lists reaches to byte 7", "damaged"),
        ("cutting it died of SIGSEGV, 2 times", "crash"),
        ("cutting it took longer than 600 s, 2 times", "timeout"),
        ("s3://b/x.svs can't be read: access is denied; the keys must allow", "denied"),
        ("https://h/x.svs can't be read: the server failed (503) at 5 tries", "network"),
        ("s3://b/x.svs does not exist", "missing"),
        ("/a/x.svs is not a slide format that openslide reads (or it is truncated)", "unsupported"),
        ("mask /m/x.png has 3 x 4 px, another aspect ratio than the slide of", "mask"),
        ("/a/x.svs does not say its mpp, nor its objective", "no_mpp"),
        ("no space left on the disk, or in the quota, of /lake", "disk_full"),
        ("ValueError: 3", "other"),
    ],
)
def test_reasons_have_few_classes(reason: str, name: str) -> None:
    assert reason_class(reason) == name


# ---------------------------------------------------------------------- the hook


def test_a_command_gets_the_report_on_stdin(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    target = f'{sys.executable} -c "{WRITE}" "{out}"'
    assert call_hook(target, {"command": "ingest", "failed": 3})
    assert json.loads(out.read_text()) == {"command": "ingest", "failed": 3}


def test_no_shell_reads_the_command(tmp_path: Path) -> None:
    out = tmp_path / "a; touch hacked $(touch hacked2) | `touch hacked3` > b"
    assert call_hook(f"{sys.executable} -c \"{WRITE}\" '{out}'", {"slide": "$(touch hacked4)"})
    assert json.loads(out.read_text()) == {"slide": "$(touch hacked4)"}
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


@pytest.mark.slow
def test_a_command_that_does_not_end_is_killed_with_all_it_started(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    late = tmp_path / "late"
    code = f"import time; time.sleep(3); open('{late}', 'w')"
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"
    script = tmp_path / "hook.py"
    script.write_text(nested)
    start = time.monotonic()
    assert not call_hook(f"{sys.executable} {script}", {}, timeout_s=0.5)
    assert time.monotonic() - start < 3
    assert "no end after 0.5 s" in caplog.text
    time.sleep(max(0.0, 3.5 - (time.monotonic() - start)))
    assert not late.exists()


def test_a_command_that_fails_is_told_and_fails_nothing(caplog: pytest.LogCaptureFixture) -> None:
    assert not call_hook(f"{sys.executable} -c 'exit(3)'", {})
    assert "exit code 3" in caplog.text


class _Server:
    """A web server that keeps what it gets, and answers as its path says."""

    def __init__(self) -> None:
        self.bodies: list[tuple[str, str, bytes]] = []
        bodies = self.bodies

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                bodies.append((self.path, str(self.headers["Content-Type"]), body))
                if self.path == "/slow":
                    time.sleep(1.5)
                code = {"/refused": 500, "/moved": 302}.get(self.path, 200)
                self.send_response(code)
                if code == 302:
                    self.send_header("Location", "/elsewhere")
                self.end_headers()

            def do_GET(self) -> None:
                self.do_POST()

            def log_message(self, *_: object) -> None:
                """Print nothing."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()


@pytest.fixture
def server() -> Iterator[_Server]:
    one = _Server()
    yield one
    one.server.shutdown()
    one.server.server_close()
    one.thread.join()


def test_a_url_gets_a_post(server: _Server) -> None:
    assert call_hook(f"{server.url}/ok", {"failed": 3})
    ((path, kind, body),) = server.bodies
    assert (path, kind, json.loads(body)) == ("/ok", "application/json", {"failed": 3})


@pytest.mark.parametrize("path", ["/refused", "/moved", "/slow"])
def test_a_server_that_refuses_moves_or_waits_fails_nothing(
    server: _Server, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert not call_hook(f"{server.url}{path}", {}, timeout_s=0.5)
    assert len(server.bodies) == 1
    assert path not in caplog.text, "the path of a hook is its secret in many chat services"


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("no-such-program-here --to me", "'no-such-program-here' is no program"),
        ("", "'' is no program"),
        ("echo 'a", "can't be split"),
        ("s3://bucket/x", "s3:// can't be called"),
        ("https:///path", "with a host"),
    ],
)
def test_a_hook_that_can_never_be_called_is_refused_at_the_start(target: str, why: str) -> None:
    with pytest.raises(ClusterError, match=re.escape(why)):
        checked_hook(target)


@pytest.mark.parametrize(
    "text",
    [
        "denied: https://user:needle99@host/x",
        "GET https://host/a.svs?X-Amz-Signature=needle99&x=1 failed",
        "az://c/x?sv=2020&sig=needle99",
        "{'aws_secret_access_key': 'needle99'}",
        "Authorization: Bearer needle99",
        "AccountKey=needle99;EndpointSuffix=x",
        "api_key = needle99",
        "the token of the variable, needle99, is refused",
    ],
)
def test_secrets_do_not_leave_the_machine(text: str) -> None:
    plain = without_secrets(text, {"HF_TOKEN": "needle99", "PATH": "/usr/bin"})
    assert "needle99" not in plain
    assert "***" in plain


def test_words_that_are_no_secret_stay() -> None:
    text = "slide s3://bucket/a.svs at 0.5 mpp: what it lists reaches to byte 7"
    assert without_secrets(text, {"AWS_SECRET_ACCESS_KEY": "x" * 40, "MY_KEY": "a"}) == text
