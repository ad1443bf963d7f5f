"""Ports for servers of the tests."""

import random
import socket
from contextlib import suppress


def free_port() -> int:
    """Return a free port; a program that asks the system for any free port does not get it."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
