"""Processes agree on errors and signals. The tests of tests/fast/test_parallel.py train runs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from nanogpt.errors import Stopped, UserError
from nanogpt.system import agreement, distributed, launch
from nanogpt.system.heartbeat import Lost

SCRIPT = """
import signal, sys, torch
from types import SimpleNamespace
from nanogpt.errors import Stopped, UserError
from nanogpt.system import agreement as a
from nanogpt.system import distributed as d

assert (d.rank(), d.size()) == (0, 1)  # not connected yet
with d.join():
    rank, size = d.rank(), d.size()
    assert (rank, size) == (d.launch.get_rank(), d.launch.get_size())
    tensors = [torch.full((2, 3), float(rank)), torch.arange(4.0)]
    d.add_up(tensors)
    assert torch.equal(tensors[0], torch.full((2, 3), sum(range(size)) * 1.0))
    assert torch.equal(tensors[1], size * torch.arange(4.0))
    gathered = d.gather(torch.full((2,), rank))
    assert gathered.tolist() == [r for r in range(size) for _ in range(2)]
    assert d.gather_objects("ab"[rank % 2]) == ["ab"[r % 2] for r in range(size)]
    assert a.agree_on_signal(None) is None
    received = signal.SIGTERM if rank == 1 else None
    assert a.agree_on_signal(received) == signal.SIGTERM
    with a.agreement():
        pass
    for kind in (UserError, Stopped):
        try:
            with a.agreement():
                if rank == 1:
                    raise kind("wrong")
        except kind as error:
            assert str(error) == ("wrong" if rank == 1 else "process 1: wrong")
        else:
            raise AssertionError
    d.add_up(tensors, in_step=True)
    d.connect_gpus(torch.device("cpu"))  # does nothing
    a.require_own_gpu(torch.device("cpu"))
    for uuids, message in (("abc", None), ("aba", "processes 0 and 2 use the same GPU: ")):
        gpu = SimpleNamespace(uuid=uuids[rank])  # this machine may have no GPU
        torch.cuda.get_device_properties = lambda _, gpu=gpu: gpu
        try:
            a.require_own_gpu(torch.device("cuda", rank))
        except UserError as error:
            assert message and str(error).startswith(message)
        else:
            assert not message
assert (d.rank(), d.size()) == (0, 1)
open(f"done-{d.launch.get_rank()}", "w").close()
"""


def run_script(script: str, processes: int) -> subprocess.CompletedProcess[str]:
    """Run a script in several processes."""
    Path("script.py").write_text(script, "utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), "script.py"]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


def test_three_processes_agree() -> None:
    process = run_script(SCRIPT, 3)
    assert process.returncode == 0, process.stderr
    assert sorted(Path().glob("done-*")) == [Path(f"done-{rank}") for rank in range(3)]


# Process 1 fails by itself, while the others wait for it and cannot notice this, as with GPUs.
FAILURE = """
import signal, time
from nanogpt.system import distributed as d

with d.join(), d.watch(": advice", lambda: open("before-end", "w").close()):
    if d.rank() == 1:
        time.sleep(2)
        raise RuntimeError("no memory")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(60)
"""


@pytest.mark.slow
def test_processes_do_not_wait_for_one_that_has_failed() -> None:
    start = time.monotonic()
    process = run_script(FAILURE, 2)
    assert time.monotonic() - start < 45  # by itself, the script takes 60 s
    assert process.returncode == 1
    assert "RuntimeError: no memory" in process.stderr
    line = "nanogpt: another process of this run has ended, or does not answer: advice"
    assert line in process.stderr.splitlines()
    assert Path("before-end").exists()


def test_an_error_that_only_mentions_nccl_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """For example, the name of the run directory."""
    monkeypatch.setattr(distributed, "size", lambda: 2)
    error = Stopped("the loss is NaN; the last checkpoint in runs/nccl is intact")
    for context in (distributed.communicating(), distributed._communicating(distributed.TIMEOUT)):
        with pytest.raises(Stopped) as raised, context:
            raise error
        assert raised.value is error


def test_an_error_of_nccl_is_shown() -> None:
    message = r"^the GPUs cannot communicate \(NCCL error: unhandled\): set NCCL_DEBUG=WARN to see"
    communicating = distributed._communicating(distributed.PATIENCE, uses_gpus=True)
    with pytest.raises(Lost, match=message), communicating:
        raise RuntimeError("NCCL error:\n  unhandled")


def test_one_process_needs_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")  # alone, it means nothing
    assert (launch.get_rank(), launch.get_size()) == (0, 1)
    tensor = torch.ones(2)
    with distributed.join():
        assert (distributed.rank(), distributed.size()) == (0, 1)
        distributed.add_up([tensor])
        assert distributed.gather(tensor).tolist() == [1, 1]
        assert distributed.gather_objects(5) == [5]
        assert agreement.agree_on_signal(signal.SIGINT) == signal.SIGINT
    with pytest.raises(UserError, match=r"^wrong$"), agreement.agreement():
        raise UserError("wrong")


def test_a_port_that_is_in_use_stops_the_run() -> None:
    """The first process of two cannot listen on the port."""
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        environment = {**os.environ, "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        command = [sys.executable, "-m", "nanogpt", "train", "tiny", "--device", "cpu"]
        process = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=100
        )
    lines = [line for line in process.stderr.splitlines() if line.startswith("nanogpt: ")]
    assert process.returncode == 1
    assert len(lines) == 1
    assert lines[0].startswith("nanogpt: the 2 processes cannot connect (")
    assert lines[0].endswith("name the network interface of each machine in GLOO_SOCKET_IFNAME")
