"""Knock at ports as a stranger does: without a token, by HTTP and by gRPC.

Run as `python -m tests.worlds.knock HOST PORT...`; it prints a JSON object: port -> the answers.
"""

import contextlib
import http.client
import json
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc

PATHS = (
    *("/", "/metrics", "/api/jobs/", "/api/version", "/nodes?view=summary", "/api/job_agent/jobs/"),
    *(
        "/api/local_raylet_healthz",
        "/api/gcs_healthz",
        "/api/v0/logs",
        "/log_proxy",
        "/get_runtime",
    ),
    *("/api/healthz", "/api/serve/applications/", "/api/cluster_status", "/api/prometheus/sd"),
)
CALLS = (
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.InternalKVGcsService/InternalKVKeys",
    "/ray.rpc.JobInfoGcsService/GetAllJobInfo",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.NodeManagerService/RequestWorkerLease",
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "/ray.rpc.CoreWorkerService/PushTask",
    "/ray.rpc.ObjectManagerService/Pull",
    "/ray.rpc.ReporterService/GetTraceback",
    "/ray.rpc.LogService/ListLogs",
    "/ray.rpc.RayletDriver/Init",
    "/ray.rpc.RuntimeEnvAgentService/GetOrCreateRuntimeEnv",
    "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
)
SECONDS = 5.0
#: Codes of a server that answered nothing: it wants a token, has no such service, or is none.
CLOSED = {"UNAUTHENTICATED", "UNIMPLEMENTED", "UNAVAILABLE", "DEADLINE_EXCEEDED"}


def by_http(host: str, port: int) -> dict[str, int]:
    """Return the status of each path; nothing where no HTTP is spoken."""
    statuses = {}
    for path in PATHS:
        connection = http.client.HTTPConnection(host, port, timeout=SECONDS)
        with (
            contextlib.closing(connection),
            contextlib.suppress(OSError, http.client.HTTPException),
        ):
            connection.request("GET", path)
            statuses[path] = connection.getresponse().status
        if path not in statuses:
            break
    return statuses


def by_grpc(host: str, port: int) -> dict[str, str]:
    """Return the code of each call; nothing where no gRPC is spoken."""
    codes = {}
    with grpc.insecure_channel(f"{host}:{port}") as channel:
        for call in CALLS:
            try:
                channel.unary_unary(call)(b"", timeout=SECONDS)
                codes[call] = "OK"
            except grpc.RpcError as error:
                codes[call] = error.code().name
                if codes[call] == "UNAVAILABLE":
                    break
    return codes


def knock(host: str, port: int) -> dict[str, object]:
    """Return what a port answers: the paths with status 200 and the calls that were served."""
    statuses, codes = by_http(host, port), by_grpc(host, port)
    return {
        "http": statuses,
        "grpc": codes,
        "open": [path for path, status in statuses.items() if status == http.HTTPStatus.OK]
        + [call for call, code in codes.items() if code not in CLOSED],
    }


def main() -> None:
    """HOST PORT...: print the answers of each port."""
    host, *ports = sys.argv[1:]
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda port: knock(host, int(port)), ports)
        print(json.dumps(dict(zip(ports, answers, strict=True))))


if __name__ == "__main__":
    main()
