"""Processes on several machines train the run of one process, as docs/scale.md shows.

Here, the machines are directories of one machine: each has its own working directory and cache.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from nanogpt.text.corpora import LARGE_TEXT
from tests.fast.test_parallel import MUON, assert_same_losses, run
from tests.ports import free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="the page has commands for bash"),
]
PAGE = (Path(__file__).parents[2] / "docs/scale.md").read_text("utf-8")


@pytest.fixture
def arguments(text_file: Path) -> list[str]:
    """Arguments of `nanogpt train`, after one process has trained runs/alone with them."""
    found = [*MUON, "--data", str(text_file)]
    command = [sys.executable, "-m", "nanogpt", "train", *found, "--out", "runs/alone"]
    assert run(command) == (0, [])
    return found


def read_block(first_words: str) -> str:
    """Return the code block of docs/scale.md that begins with these words."""
    blocks: list[str] = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    return next(block for block in blocks if block.startswith(first_words))


def adapt(text: str, arguments: Sequence[str], address: str = "127.0.0.1") -> str:
    """Let a command of the page train a small model on this machine, with this Python."""
    for old, new in (
        ("train tiny --device cpu", f"train {' '.join(arguments)} --out runs/together"),
        ("10.0.0.1", address),
        ("trainer-0", "127.0.0.1"),
        ("29500", str(free_port())),
        ("--nproc-per-node 2", "--nproc-per-node 1"),
        ("torchrun ", f"{sys.executable} -m torch.distributed.run "),
        (" nanogpt train", f" {sys.executable} -m nanogpt train"),
    ):
        if old != " nanogpt train" or "-m nanogpt" not in text:
            text = text.replace(old, new)
    return text


def read_commands(
    first_words: str, arguments: Sequence[str], address: str = "127.0.0.1"
) -> list[str]:
    """Return the commands of a code block of the page, except `export`."""
    lines = adapt(read_block(first_words), arguments, address).replace("\\\n", " ").splitlines()
    return [line for line in lines if not line.startswith("export")]


def start(machine: int, script: str, **variables: str) -> subprocess.Popen[str]:
    """Run a script in the directory of a machine."""
    directory = Path(f"machine-{machine}").absolute()
    (directory / "bin").mkdir(parents=True, exist_ok=True)
    environment: Mapping[str, str] = {
        **os.environ,
        "NANOGPT_CACHE": str(directory / "cache"),
        "OMP_NUM_THREADS": "1",
        "PATH": f"{directory / 'bin'}{os.pathsep}{os.environ['PATH']}",
        **variables,
    }
    return subprocess.Popen(
        ["bash", "-c", script],
        cwd=directory,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(processes: Sequence[subprocess.Popen[str]]) -> list[tuple[int, list[str]]]:
    """Return the status of each process, and the lines of nanogpt on its standard error."""
    results = []
    try:
        for process in processes:
            error = process.communicate(timeout=120)[1]
            lines = [line for line in error.splitlines() if line.startswith("nanogpt: ")]
            results.append((process.returncode, lines))
    finally:
        for process in processes:
            process.kill()
    return results


@pytest.mark.parametrize("first_words", ["export", "RANK=0"])
def test_two_machines_train_the_run_of_one_process(arguments: list[str], first_words: str) -> None:
    lines = read_commands(first_words, arguments)
    assert len(lines) == 2
    assert finish([start(i, line) for i, line in enumerate(lines)]) == [(0, []), (0, [])]
    assert_same_losses(Path("runs/alone"), Path("machine-0/runs/together"))
    assert not Path("machine-1/runs").exists()

    # The second machine does not have the run directory, so it cannot resume the run.
    resume = [re.sub("train .*", "train --resume runs/together", line) for line in lines]
    results = finish([start(i, line) for i, line in enumerate(resume)])
    assert [status != 0 for status, _ in results] == [True, True]
    assert [line for _, found in results for line in found] == [
        "nanogpt: process 1: there is no run 'runs/together'; the runs in runs/: none yet"
    ]


@pytest.mark.parametrize("shared", [True, False])
def test_machines_with_a_shared_cache_or_two_caches(text: str, shared: bool) -> None:
    large = Path("large.txt").absolute()
    large.write_text(text * (LARGE_TEXT // len(text) + 1), "utf-8")
    flags = [*MUON, "--data", str(large), "--val-fraction", "0.0001", "--tokenizer", "bpe:300"]
    lines = read_commands("export", flags)
    lines = [line.replace("--nproc-per-node 1", "--nproc-per-node 2") for line in lines]
    cache = {"NANOGPT_CACHE": str(Path("cache").absolute())} if shared else {}
    processes = [start(i, line, **cache) for i, line in enumerate(lines)]
    assert finish(processes) == [(0, []), (0, [])]
    caches = [Path("cache")] if shared else [Path(f"machine-{i}/cache") for i in (0, 1)]
    for directory in caches:
        assert len([*directory.glob("tokens-*.bin")]) == 2  # of the two splits
        assert len([*directory.glob("tokenizer-*.json")]) == 1


NETWORK = """
ip netns add {0} && ip netns add {1}
ip link add eth0 netns {0} type veth peer name eth0 netns {1}
ip -n {0} addr add 10.0.0.1/24 dev eth0
ip -n {1} addr add 10.0.0.2/24 dev eth0
for machine in {0} {1}; do ip -n $machine link set lo up; ip -n $machine link set eth0 up; done
"""


@pytest.fixture
def machines() -> Iterator[list[str]]:
    """The names of two network namespaces: as machines, they are connected by a network only."""
    names = [f"nanogpt-{os.getpid()}-{number}" for number in (0, 1)]
    created = subprocess.run(["bash", "-e", "-c", NETWORK.format(*names)], capture_output=True)
    try:
        if created.returncode:
            pytest.skip("this user cannot create network namespaces")
        yield names
    finally:
        for name in names:
            subprocess.run(["bash", "-c", f"ip netns del {name}"], capture_output=True)


@pytest.mark.skipif(sys.platform != "linux", reason="needs network namespaces")
def test_two_machines_with_a_network_between_them(
    arguments: list[str], machines: list[str]
) -> None:
    """The address is that of the page. The host name does not lead to the other machine."""
    lines = [
        f"ip netns exec {name} {line}"
        for name, line in zip(
            machines, read_commands("export", arguments, address="10.0.0.1"), strict=True
        )
    ]
    processes = [start(i, line, GLOO_SOCKET_IFNAME="eth0") for i, line in enumerate(lines)]
    assert finish(processes) == [(0, []), (0, [])]
    assert_same_losses(Path("runs/alone"), Path("machine-0/runs/together"))

    # Without the interface, each machine tries to reach the other one at its own address.
    results = finish([start(i, line) for i, line in enumerate(lines)])
    for number, (status, found) in enumerate(results):
        assert status != 0
        (message,) = found
        assert message.startswith(
            f"nanogpt: {'process 1: ' * number}the 2 processes cannot connect"
        )
        assert message.endswith("name the network interface of each machine in GLOO_SOCKET_IFNAME")


SRUN = """#!/bin/bash
# Starts the command once for each of two nodes.
shift 2  # --cpus-per-task and --kill-on-bad-exit
SLURM_NODEID=1 "$@" & SLURM_NODEID=0 "$@"; status=$?
wait $! && exit $status
"""


def test_the_slurm_script(arguments: list[str]) -> None:
    """Stand-ins of `srun` and `scontrol` start both nodes on this machine."""
    commands = Path("machine-0/bin")
    commands.mkdir(parents=True)
    for name, script in (("srun", SRUN), ("scontrol", "#!/bin/bash\necho 127.0.0.1\necho b\n")):
        (commands / name).write_text(script, "utf-8")
        (commands / name).chmod(0o755)
    script = adapt(read_block("#!/bin/bash"), arguments).replace("OMP_NUM_THREADS=8", "A=1")
    process = start(0, script, SLURM_JOB_NODELIST="a,b", SLURM_NNODES="2")
    assert finish([process]) == [(0, [])]
    assert_same_losses(Path("runs/alone"), Path("machine-0/runs/together"))
