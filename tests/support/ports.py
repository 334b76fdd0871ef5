"""Free TCP ports on loopback for programs that cannot take port 0."""
from __future__ import annotations

import contextlib
import socket
import time


def has_ipv6() -> bool:
    """Whether this machine has IPv6's loopback, as the kernel says."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


_given: set[int] = set()


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on now, and that was not given out before: whoever got it may not listen there yet."""
    for _ in range(1000):
        with socket.socket() as probe:
            probe.bind((host, 0))
            port = probe.getsockname()[1]
        if port not in _given:
            _given.add(port)
            return port
    raise OSError("no port is left")


def wait_for_port(port: int, host: str = "127.0.0.1", seconds: float = 10.0) -> None:
    """Returns when something accepts connections there. TimeoutError otherwise."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
            return
        time.sleep(0.02)
    raise TimeoutError(f"nothing listens on {host}:{port} after {seconds} s")
