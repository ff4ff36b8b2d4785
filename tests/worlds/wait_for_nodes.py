"""Wait until exactly the nodes at some addresses are alive to the Ray at RAY_ADDRESS."""

import os
import sys
import time

import ray


def main() -> None:
    """ADDRESS...: end with 1, and the nodes that there are, after PATIENCE_S seconds."""
    expected, deadline = sorted(sys.argv[1:]), time.monotonic() + float(os.environ["PATIENCE_S"])
    while True:
        try:
            ray.init(logging_level=40, log_to_driver=False)
            break
        except Exception as error:  # whatever a head that is not up yet raises
            if time.monotonic() > deadline:
                raise SystemExit(str(error)) from error
            time.sleep(1)
    alive: list[str] = []
    while time.monotonic() < deadline:
        alive = sorted(node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"])
        if alive == expected:
            return
        time.sleep(0.3)
    print(f"waited for {expected}, there are {alive}")
    raise SystemExit(1)


if __name__ == "__main__":
    main()
