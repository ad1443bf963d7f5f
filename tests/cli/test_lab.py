"""`nanogpt lab` starts a server and prints its address, or prints one error."""

import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.marks import slow

Answer = tuple[int, str, str]
Command = Callable[..., Answer]
Process = Callable[..., AbstractContextManager[subprocess.Popen[str]]]


def read_address(process: "subprocess.Popen[str]") -> str:
    assert process.stdout
    line = process.stdout.readline()
    found = re.fullmatch(
        r"The lab is at (http://\S+) \(Ctrl-C ends it, but not the training\)\n", line
    )
    assert found, line
    return found[1]


@pytest.mark.parametrize("number", [slow(name) for name in ("SIGINT", "SIGTERM")])
def test_the_page_is_at_the_printed_address(process: Process, run: Path, number: str) -> None:
    with process("lab", run, "--no-browser") as lab:
        address = read_address(lab)
        assert address.startswith("http://127.0.0.1:")
        assert address.endswith(f"#run={run}")
        with urllib.request.urlopen(address.partition("#")[0]) as page:
            assert b"<title>nanogpt lab</title>" in page.read()
        lab.send_signal(getattr(signal, number))
        out, err = lab.communicate(timeout=20)
    assert (lab.returncode, out) == (128 + getattr(signal, number), "")
    assert "Traceback" not in err


@pytest.mark.slow
def test_another_lab_uses_another_port(process: Process) -> None:
    with process("lab", "--no-browser") as one, process("lab", "--no-browser") as other:
        ports = {read_address(lab).split("/")[2] for lab in (one, other)}
    assert len(ports) == 2


def test_a_port_in_use_is_refused_with_advice(nanogpt: Command) -> None:
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        used.listen()
        port = used.getsockname()[1]
        status, out, err = nanogpt("lab", "--no-browser", "--port", port)
    assert (status, out) == (2, "")
    assert err.startswith(f"nanogpt: cannot listen at 127.0.0.1:{port}: ")
    assert err.endswith("; choose another --port or --host\n")


def test_other_computers_need_a_password(nanogpt: Command) -> None:
    status, _, err = nanogpt("lab", "--no-browser", "--host", "0.0.0.0")
    assert status == 2
    assert err.startswith("nanogpt: --host 0.0.0.0 lets other computers train models here")


@pytest.mark.parametrize("port", ["0", "65536", "-1"])
def test_an_impossible_port_is_refused(nanogpt: Command, port: str) -> None:
    status, _, err = nanogpt("lab", "--port", port)
    assert (status, err) == (2, f"nanogpt: --port is {port}: it must be between 1 and 65535\n")


def test_an_unknown_run_is_refused(nanogpt: Command) -> None:
    status, _, err = nanogpt("lab", "nothing", "--no-browser")
    assert (status, err) == (2, "nanogpt: there is no run 'nothing'; the runs in runs/: none yet\n")


def test_a_missing_library_is_named(nanogpt: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("nanogpt.lab")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)  # as if uvicorn were not installed
    status, _, err = nanogpt("lab", "--no-browser")
    assert status == 2
    assert err == (
        "nanogpt: the lab needs more libraries: install them with pip install 'nanogpt[lab]'\n"
    )
