"""The choice of devices, precisions and threads, and errors that give a reason."""

import copy
import ctypes
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest
import torch
from torch.nn import functional as F

from nanogpt.errors import UserError
from nanogpt.models import GPTConfig, ModernConfig, build
from nanogpt.system import cores as system_cores
from nanogpt.system import devices
from nanogpt.system.devices import (
    Precision,
    autocast,
    describe_device,
    find_peak_flops,
    keep_freed_memory,
    pick_device,
    pick_precision,
    requested_memory,
)
from nanogpt.system.libc import find_c_function
from tests.platforms import linux_only, posix_only

AVAILABLE = {
    "cpu": True,
    "cuda": torch.cuda.is_available(),
    "mps": torch.backends.mps.is_available(),
}


def test_auto_picks_an_available_device() -> None:
    assert AVAILABLE[pick_device("auto").type]
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps"])
def test_a_device_that_this_machine_lacks_is_refused(name: str) -> None:
    kind = name.partition(":")[0]
    if AVAILABLE[kind]:
        pytest.skip("this machine has the device")
    with pytest.raises(UserError, match=f"this machine has no {kind} device: use cpu"):
        pick_device(name)


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "", "CPU"])
def test_an_unknown_device_name_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"there is no device '{name}': use auto, cpu"):
        pick_device(name)


def test_each_process_gets_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPUs are pretended: pick_device() only asks for their number."""
    variables = ("RANK", "5"), ("WORLD_SIZE", "6"), ("LOCAL_RANK", "1"), ("MASTER_ADDR", "a")
    for name, value in (*variables, ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda") == pick_device("auto") == torch.device("cuda:1")
    assert pick_device("cuda:0") == torch.device("cuda:0")
    assert pick_device("cpu") == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match=r"^this machine has 2 GPUs, but torchrun started more pr"):
        pick_device("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # each process sees only its own
    assert pick_device("cuda") == torch.device("cuda:0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert pick_device("cuda") == torch.device("cuda")


@pytest.mark.gpu
def test_the_number_of_a_missing_gpu_is_refused() -> None:
    with pytest.raises(UserError, match="there is no cuda:99: the last cuda device of this"):
        pick_device("cuda:99")


def test_the_device_that_an_error_names_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    with pytest.raises(UserError, match="there is no cuda:9: the last cuda device") as raised:
        pick_device("cuda:9")
    assert pick_device(str(raised.value).split()[-1]).index == 2


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ({"avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
        ({"avx512_f": True}, torch.float32),
        (None, torch.float32),
    ],
)
def test_precision_auto_is_bfloat16_on_a_cpu_with_bfloat16_instructions(
    capabilities: dict[str, bool] | None,
    expected: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu = torch.device("cpu")
    if capabilities is None:  # torch 2.11 lacks this function
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert pick_precision("auto", cpu) == expected
    assert pick_precision("float32", cpu) == torch.float32
    assert pick_precision("bfloat16", cpu) == torch.bfloat16
    assert pick_precision("float16", cpu) == torch.float16


def test_an_unsupported_precision_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, original = torch.device("cpu"), torch.ones

    def ones(*size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        if dtype == torch.bfloat16:
            raise RuntimeError("not implemented")
        return original(*size, dtype=dtype, device=device)

    monkeypatch.setattr(torch, "ones", ones)
    error = r"cpu \(.*\) does not support bfloat16: use precision float32$"
    with pytest.raises(UserError, match=error):
        pick_precision("bfloat16", cpu)
    assert pick_precision("float32", cpu) == torch.float32
    assert pick_precision("float16", cpu) == torch.float16


@pytest.mark.parametrize(("capability", "has_float8"), [((8, 6), False), ((8, 9), True)])
def test_float8_needs_a_recent_nvidia_gpu(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], has_float8: bool
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: capability)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "a GPU")
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda **_: True)
    device = torch.device("cuda")
    monkeypatch.setattr("nanogpt.system.devices._supports", lambda *_: True)
    if has_float8:
        assert pick_precision("float8", device) == torch.bfloat16
    else:
        with pytest.raises(UserError, match=r"a GPU does not support float8: use precision auto$"):
            pick_precision("float8", device)
    with pytest.raises(UserError, match="does not support float8"):
        pick_precision("float8", torch.device("cpu"))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
def test_autocast_multiplies_matrices_at_the_given_precision(precision: torch.dtype) -> None:
    a = torch.randn(4, 4)
    with autocast(torch.device("cpu"), precision):
        assert (a @ a).dtype == precision
    assert (a @ a).dtype == torch.float32


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_autocast_restores_the_attention_kernels(precision: torch.dtype) -> None:
    """Within autocast(), only the math kernel is enabled; afterwards, all kernels are enabled."""
    q, k, v = torch.randn(3, 2, 4, 16, 8).unbind()
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    with autocast(torch.device("cpu"), precision):
        assert (
            not torch.backends.cuda.flash_sdp_enabled()
        )  # this kernel is slow in bfloat16 on a CPU
        attention = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert attention.dtype == precision
    torch.testing.assert_close(attention.float(), expected, atol=2e-2, rtol=2e-2)
    assert torch.backends.cuda.flash_sdp_enabled()
    assert not torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()


def test_freed_memory_is_reused() -> None:
    """Without keep_freed_memory(), glibc requests new pages for each tensor of 32 MB."""
    resource = pytest.importorskip("resource")
    keep_freed_memory()
    faults = []
    for _ in range(15):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(8 << 20)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    if find_c_function("mallopt"):
        assert median(faults) < 100  # 32 MB of new pages would cause 8,192 page faults


@posix_only
def test_freed_memory_is_reused_with_an_older_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    """An old glibc refuses an mmap threshold above 32 MB, so the threshold becomes 32 MB."""

    class OldGlibc:
        maximum = 32 << 20

        def __init__(self, *_: object, **__: object) -> None:
            pass

        def mallopt(self, parameter: int, size: int) -> int:
            calls.append((parameter, size))
            return int(parameter != -3 or size <= self.maximum)

    calls: list[tuple[int, int]] = []
    monkeypatch.setattr(ctypes, "CDLL", OldGlibc)
    keep_freed_memory()
    assert calls == [(-3, 1 << 30), (-3, 32 << 20), (-1, 2**31 - 1)]
    calls.clear()
    OldGlibc.maximum = 0
    keep_freed_memory()
    assert calls == [(-3, 1 << 30), (-3, 32 << 20)]


TOLERANCE = {"float32": 1e-5, "bfloat16": 3e-2, "float16": 4e-3}
"""The largest allowed error of the logits, divided by the largest logit."""


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("name", [name for name in AVAILABLE if AVAILABLE[name]])
@pytest.mark.parametrize("kind", [GPTConfig, ModernConfig])
def test_every_device_computes_the_same_logits(
    kind: type[GPTConfig | ModernConfig], name: str, precision: Precision
) -> None:
    """The logits equal float64 logits from the CPU, within the tolerance of the precision."""
    model = build(kind(n_layer=4, n_head=4, n_embd=128, block_size=64, vocab_size=65))
    for parameter in model.parameters():  # the initial weights are small or zero
        parameter.data.add_(torch.randn_like(parameter), alpha=0.05)
    tokens = torch.randint(65, (4, 64))
    with torch.no_grad():
        reference = copy.deepcopy(model).double()(tokens)
        device = torch.device(name)
        with autocast(device, pick_precision(precision, device)):
            logits = model.to(device)(tokens.to(device)).cpu().double()
    error = ((logits - reference).abs().max() / reference.abs().max()).item()
    assert error < TOLERANCE[precision]


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA GH200 480GB", None),  # contains "H200", but is not an H200
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("Tesla T4", None),
    ],
)
def test_the_peak_is_that_of_the_data_sheet_or_none(
    monkeypatch: pytest.MonkeyPatch, name: str, peak: float | None
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: name)
    cuda = torch.device("cuda")
    assert find_peak_flops(cuda, torch.bfloat16) == find_peak_flops(cuda, torch.float16) == peak
    assert find_peak_flops(cuda, torch.float32) is None
    assert find_peak_flops(torch.device("cpu"), torch.bfloat16) is None


def test_the_description_of_a_cpu_has_its_threads() -> None:
    assert describe_device(torch.device("cpu")) == f"cpu ({torch.get_num_threads()} threads)"


@pytest.mark.slow
def test_a_run_on_a_cpu_never_calls_cuda(text_file: Path, small: list[str], tmp_path: Path) -> None:
    """The run does not even ask torch.cuda whether there is a device."""
    code = f"""
import torch
def forbid(name):
    def call(*args, **options):
        raise AssertionError("called torch.cuda." + name)
    return call
for name in ("is_available", "device_count", "current_device", "get_device_name", "init",
             "get_device_properties", "get_device_capability", "is_bf16_supported",
             "get_rng_state", "set_rng_state", "synchronize", "mem_get_info"):
    setattr(torch.cuda, name, forbid(name))
from nanogpt.cli.main import main
main(["train", "tiny", "--data", {str(text_file)!r}, "--out", "mine", *{small!r}])
main(["train", "--resume", "mine", "--train.steps", "25"])
main(["sample", "mine", "--device", "cpu", "--max-new-tokens", "5"])
main(["eval", "mine", "--device", "cpu"])
assert not torch.cuda.is_initialized()
import sys
assert "torch._dynamo" not in sys.modules, "torch's compiler takes longer to import than torch"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Threads.


def count_threads(**environment: str) -> int:
    """Count the threads of a new process with this environment."""
    code = "from nanogpt.system.devices import *; limit_threads(); print(torch.get_num_threads())"
    clean = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=clean | environment, capture_output=True, check=True)
    return int(done.stdout)


@pytest.mark.slow
def test_omp_num_threads_sets_the_number_of_threads() -> None:
    assert count_threads(OMP_NUM_THREADS="1") == 1


def test_omp_num_threads_may_exceed_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(devices, "count_cores", lambda: 1)
    monkeypatch.setenv("OMP_NUM_THREADS", str(before))
    devices.limit_threads()
    assert torch.get_num_threads() == before


@pytest.mark.slow
@linux_only
def test_there_are_no_more_threads_than_cores() -> None:
    cores = os.sched_getaffinity(0)
    assert 1 <= count_threads() <= len(cores)
    try:
        os.sched_setaffinity(0, {min(cores)})
        assert count_threads() == 1
    finally:
        os.sched_setaffinity(0, cores)


@pytest.mark.parametrize(
    ("quota", "cores"), [("150000 100000", 2), ("50000 100000", 1), ("max 100000", 8), ("", 8)]
)
def test_the_quota_of_a_container_limits_the_cores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quota: str, cores: int
) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(system_cores, "QUOTA", tmp_path / "cpu.max")
    assert system_cores.count_cores() == cores


def test_other_systems_have_the_cores_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows and macOS have no sched_getaffinity(), and no file with a CPU quota."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    monkeypatch.setattr(system_cores, "QUOTA", Path("nowhere"))
    assert system_cores.count_cores() == 6


# Memory.


def test_the_requested_memory_is_read_from_the_error() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(10**14)
    assert requested_memory(error.value) == "372529.03 GiB"
    assert requested_memory(ValueError("other")) is None
    gpu = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a tot")
    assert requested_memory(gpu) == "2.50 GiB"
    assert requested_memory(torch.OutOfMemoryError("CUDA out of memory.")) == "an unknown amount"
    mps = RuntimeError("MPS backend out of memory (...). Tried to allocate 4.00 GB on private pool")
    assert requested_memory(mps) == "4.00 GB"
    cpu = RuntimeError(
        "DefaultCPUAllocator: not enough memory: you tried to allocate 5368709120 bytes."
    )
    assert requested_memory(cpu) == "5.00 GiB"  # the error on Windows
