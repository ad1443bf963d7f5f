"""nanogpt lab: a local web page that trains models and shows what happens inside them."""

import os
import re
import socket
import webbrowser
from dataclasses import dataclass
from typing import Annotated

from ..errors import UserError, make_line, print_note
from ..runs.directory import RUNS, find_run
from ..system.devices import limit_threads
from .arguments import parse_arguments
from .values import Flag, placeholder, positional

PORT = 8765
LOCAL = "127.0.0.1"
LIBRARIES = ("starlette", "uvicorn", "markdown_it", "mdit_py_plugins", "latex2mathml")
"""Import names of the libraries that the extra `lab` installs."""


@dataclass(frozen=True)
class LabArgs:
    """Train models and look inside them, on a local web page. The page needs no network."""

    runs: Annotated[tuple[str, ...], positional, placeholder("[RUN ...]")] = ()
    """Runs to offer: directories, or names below runs/. The page opens at the first of them. It
    always offers all runs in runs/."""
    port: int | None = None
    """Port of the server; by default 8765, or a free port if 8765 is in use."""
    host: str = LOCAL
    """Address that the server listens on. An address other than 127.0.0.1 or localhost lets other
    computers use the page, so it needs --password."""
    password: str | None = None
    """Password that the browser asks for. It is sent without encryption: use it only in a network
    that you trust."""
    no_browser: Flag = False
    """Only print the address; do not open a browser."""

    def __post_init__(self) -> None:
        if self.port is not None and not 1 <= self.port < 65536:
            raise ValueError(f"port is {self.port}: it must be between 1 and 65535")


def lab(args: list[str]) -> None:
    """Start the server, print its address and open it in the browser."""
    options = parse_arguments(LabArgs(), args, "nanogpt lab")
    if options.host not in (LOCAL, "localhost") and not options.password:
        raise UserError(
            f"--host {options.host} lets other computers train models here and read your runs: "
            f"add --password, or leave --host out"
        )
    runs = [find_run(run) for run in options.runs]
    try:
        from ..lab.library import Library
        from ..lab.server import Lab, serve
    except ModuleNotFoundError as error:
        if error.name not in LIBRARIES:
            raise
        raise UserError(
            "the lab needs more libraries: install them with pip install 'nanogpt[lab]'"
        ) from None
    limit_threads()
    listener = _listen(options.host, options.port)
    port = listener.getsockname()[1]
    is_local = options.host in (LOCAL, "localhost")
    hosts = [f"{name}:{port}" for name in (LOCAL, "localhost")] if is_local else None
    page = Lab(Library(runs))
    address = f"http://{options.host}:{port}/{page.token}/"
    if runs:
        name = runs[0].name if runs[0].parent == RUNS else runs[0]
        quoted = re.sub(rb"[^\w./-]", lambda byte: b"%%%02X" % ord(byte[0]), os.fsencode(name))
        address += f"#run={quoted.decode()}"
    app = page.app(hosts, options.password)
    print(f"The lab is at {make_line(address)} (Ctrl-C ends it, but not the training)", flush=True)
    if not options.no_browser and not webbrowser.open(address):
        print_note("no browser could be opened: open the address yourself")
    serve(app, listener)


def _listen(host: str, port: int | None) -> socket.socket:
    """Return a socket that listens on `host`. Raises UserError if that is impossible.

    If `port` is None, the port is PORT, or a free port if PORT is in use.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in [port] if port else [PORT, 0]:
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, candidate))
            listener.listen(128)
        except OSError as error:
            listener.close()
            if port or candidate == 0:
                place = f"{host}:{candidate}: {error.strerror or error}"
                raise UserError(
                    f"cannot listen at {place}; choose another --port or --host"
                ) from None
            continue
        return listener
    raise AssertionError
