"""The network interface by which workers on several nodes exchange gradients on CPUs.

Gloo listens at the address of the host's own name. Where that is a loopback address, as on each
machine that Debian's installer has set up (127.0.1.1), workers on other nodes are refused. The
address by which Ray reaches the node is one that others reach, so its interface is named to Gloo.
"""

import os
from dataclasses import dataclass
from typing import Any

from ray.train.torch import TorchConfig
from ray.util import get_node_ip_address

VARIABLE = "GLOO_SOCKET_IFNAME"
_TORCH_BACKEND: Any = TorchConfig().backend_cls  # it has no public name of its own


class _NodeBackend(_TORCH_BACKEND):  # type: ignore[misc]  # ray is untyped
    """Ray's start of torch's processes, after each has the name of its interface."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:  # noqa: ANN401
        worker_group.execute(name_interface)
        super().on_start(worker_group, backend_config)


@dataclass
class NodeTorchConfig(TorchConfig):  # type: ignore[misc]  # ray is untyped
    """Settings of torch's processes on several nodes: Ray's own, with the interface of each."""

    @property
    def backend_cls(self) -> type[_NodeBackend]:
        """Return the class that starts the processes."""
        return _NodeBackend


def name_interface() -> None:
    """Set GLOO_SOCKET_IFNAME in this process to the interface of its node, unless a user has."""
    if os.environ.get(VARIABLE):
        return
    address: str = get_node_ip_address()
    interface = interface_of(address)
    if interface is not None:
        os.environ[VARIABLE] = interface


def interface_of(address: str) -> str | None:
    """Return the name of the network interface that has an address; None if none has it.

    None is possible where Ray was started with an address that is translated on the way.
    """
    import psutil  # Ray brings it

    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == address for one in addresses):
            return str(name)
    return None
