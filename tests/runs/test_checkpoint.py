"""A checkpoint loads as it was saved; the error about a damaged file names this file."""

import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from nanogpt.errors import UserError
from nanogpt.models import GPT, Bigram, BigramConfig, GPTConfig, Model, Modern, ModernConfig
from nanogpt.runs.background import BackgroundWriter
from nanogpt.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from nanogpt.runs.reading import SUMS, read_consistently
from nanogpt.system import files
from nanogpt.system.files import dump_json
from nanogpt.text.tokenizers import CharTokenizer
from tests.platforms import linux_only, needs_links, peak_memory
from tests.signing import change_json, sign

CONFIG = GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=8, vocab_size=3)


@pytest.fixture(params=["gpt", "bigram"])
def model(request: pytest.FixtureRequest) -> Model:
    return GPT(CONFIG) if request.param == "gpt" else Bigram(BigramConfig(3, 8))


@pytest.fixture
def best(model: Model) -> Path:
    """The checkpoint best/ of a run."""
    directory = Path("runs/one/best")
    save_checkpoint(directory, Checkpoint(model, CharTokenizer("abc"), 7))
    return directory


def test_a_checkpoint_loads_as_it_was_saved(model: Model, best: Path) -> None:
    loaded = load_checkpoint(best)
    assert loaded.step == 7
    assert loaded.model.config == model.config
    assert loaded.tokenizer.to_json() == {"kind": "char", "alphabet": "abc"}
    assert not loaded.model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor)


def test_a_checkpoint_replaces_the_one_before(model: Model, best: Path) -> None:
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    save_checkpoint(best, Checkpoint(model, CharTokenizer("abc"), 8))
    loaded = load_checkpoint(best)
    assert loaded.step == 8
    torch.testing.assert_close(next(loaded.model.parameters()), next(model.parameters()))
    assert [file.name for file in best.parent.iterdir()] == ["best"]


def test_a_checkpoint_consists_of_safetensors_and_json(best: Path) -> None:
    names = {file.name for file in best.iterdir()}
    assert names == {"model.safetensors", "config.json", "tokenizer.json", "SHA256SUMS"}


def test_all_files_have_the_permissions_that_the_umask_gives(best: Path) -> None:
    Path("other").touch()
    modes = {file.stat().st_mode & 0o777 for file in [*best.iterdir(), Path("other")]}
    assert len(modes) == 1


@linux_only
def test_a_checkpoint_is_flushed_to_disk_before_it_replaces_the_old_one(
    best: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, exchange = os.fsync, files._swap

    def record_fsync(descriptor: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def record_exchange(one: Path, other: Path) -> None:
        events.append("exchanged")
        exchange(one, other)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(files, "_swap", record_exchange)
    save_checkpoint(best, Checkpoint(model, CharTokenizer("abc"), 8))
    before, after = events[: events.index("exchanged")], events[events.index("exchanged") + 1 :]
    assert {file.name for file in best.iterdir()} | {".best.new"} == set(before)
    assert after == ["one"]  # the parent directory of best/


def damage(file: Path, how: str) -> None:
    if how == "missing":
        file.unlink()
    elif how == "cut":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif how == "empty":
        file.write_bytes(b"")
    else:
        file.write_text("[1, 2]")


@pytest.mark.parametrize("how", ["missing", "cut", "empty", "a list"])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_damaged_file_is_named(best: Path, name: str, how: str) -> None:
    damage(best / name, how)
    with pytest.raises(UserError, match=r"is missing or damaged \(.*\): restore it") as error:
        load_checkpoint(best)
    assert str(error.value).startswith(str(best / name))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("n_embed", 16, "model: unknown key 'n_embed'"),
        ("kind", "rnn", "model: its kind must be one of gpt, modern, plain, bigram"),
        ("n_head", 3, "model: n_embd is 16: it must be a multiple of n_head 3"),
        ("n_embd", 32, r"\w+ is F32 .*, not torch.float32"),
        ("n_embd", "16", "model: n_embd cannot be '16'"),
        ("n_embd", 10**30, "n_embd is 10+: it must be at least 1 and less than 2"),
        ("block_size", 10**9, r"position_embedding.weight is F32 \(8, 16\)"),
        ("n_layer", 2, "the number of tensors does not match GPT"),
        ("n_layer", 10**9, "the number of tensors does not match GPT"),
    ],
)
def test_a_configuration_that_does_not_fit_the_weights_is_refused(
    key: str, value: object, message: str
) -> None:
    save_checkpoint(Path("best"), Checkpoint(GPT(CONFIG), CharTokenizer("abc"), 7))
    change_json(Path("best/config.json"), "model", **{key: value})
    with pytest.raises(UserError, match=message):
        load_checkpoint("best")


@pytest.mark.parametrize("length", [10**9, 10**12, 10**30])
def test_an_impossible_block_size_allocates_no_memory(length: int) -> None:
    """The modern model has no position embedding, so no tensor shape shows the block size."""
    model = Modern(
        ModernConfig(n_layer=3, n_head=2, n_embd=16, block_size=8, vocab_size=3, skips=True)
    )
    save_checkpoint(Path("best"), Checkpoint(model, CharTokenizer("abc"), 7))
    change_json(Path("best/config.json"), "model", block_size=length)
    before = peak_memory()
    with suppress(UserError):
        load_checkpoint("best")
    assert peak_memory() - before < 100 << 20


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("step", -1, "step is -1: it must be at least 0"),
        ("step", 1.0, "step cannot be 1.0"),
        ("steps", 1, "unknown key 'steps'"),
        ("best", {"step": 1, "val_loss": 2.0}, "best: the key 'bits_per_byte' is missing"),
    ],
)
def test_config_json_is_read_strictly(best: Path, key: str, value: object, message: str) -> None:
    change_json(best / "config.json", **{key: value})
    with pytest.raises(UserError, match=f"config.json is missing or damaged \\({message}"):
        load_checkpoint(best)


def test_each_file_is_compared_with_its_checksum(best: Path) -> None:
    done = subprocess.run(["sha256sum", "-c", SUMS], cwd=best, capture_output=True, check=True)
    assert done.stdout.count(b"OK") == 3
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        raw = bytearray((best / name).read_bytes())
        raw[-2] ^= 1
        (best / name).write_bytes(raw)
        with pytest.raises(UserError, match=f"{name} is missing or damaged"):
            load_checkpoint(best)
        raw[-2] ^= 1
        (best / name).write_bytes(raw)
    assert load_checkpoint(best).step == 7


def test_a_huge_header_is_refused(best: Path) -> None:
    weights = best / "model.safetensors"
    raw = weights.read_bytes()
    for length in (2**20 + 1, 2**40, 2**63):
        weights.write_bytes(length.to_bytes(8, "little") + raw[8:])
        sign(best)
        with pytest.raises(UserError, match=f"its header has {length:,} bytes"):
            load_checkpoint(best)


WITHOUT_MEMORY = """
import re, resource, sys
from pathlib import Path
import torch
from nanogpt.runs.reading import CheckpointFiles
files = CheckpointFiles(Path(sys.argv[1]))
files.count_tensors("model.safetensors")
used = int(re.search(r"VmSize:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + (40 << 20), -1))
try:
    files.count_tensors("model.safetensors")
except MemoryError:
    print("too little memory")
"""
"""A program that opens the weights of a checkpoint twice, the second time with 40 MiB of memory.

Weights of 28 MB do not fit, because they are mapped into memory by safetensors, and by torch.
"""


@linux_only
def test_a_checkpoint_that_does_not_fit_into_memory_is_not_called_damaged(tmp_path: Path) -> None:
    config = GPTConfig(n_layer=1, n_head=1, n_embd=768, block_size=8, vocab_size=3)
    save_checkpoint(tmp_path / "best", Checkpoint(GPT(config), CharTokenizer("abc"), 7))
    command = [sys.executable, "-c", WITHOUT_MEMORY, str(tmp_path / "best")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("too little memory\n", 0), done.stderr


def test_unexpected_tensors_are_refused(best: Path, model: Model) -> None:
    weights = dict(model.state_dict())
    save_file(weights | {"more": torch.zeros(1)}, best / "model.safetensors")
    sign(best)
    with pytest.raises(UserError, match="the number of tensors does not match"):
        load_checkpoint(best)
    name = min(weights)
    others = {("more" if key == name else key): tensor for key, tensor in weights.items()}
    save_file(others, best / "model.safetensors")
    sign(best)
    with pytest.raises(UserError, match=f"{name} is missing"):
        load_checkpoint(best)
    save_file(weights | {name: weights[name].double()}, best / "model.safetensors")
    sign(best)
    with pytest.raises(UserError, match=rf"{name} is F64 \(.*\), not torch.float32"):
        load_checkpoint(best)


@needs_links
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", SUMS])
def test_a_link_out_of_the_checkpoint_is_not_followed(best: Path, name: str) -> None:
    (best / name).rename("elsewhere")
    (best / name).symlink_to(Path("elsewhere").resolve())
    with pytest.raises(UserError, match=f"{name} is a link that leads out of runs/one/best"):
        load_checkpoint(best)


def test_a_wrapped_model_is_saved_under_plain_names(model: Model) -> None:
    checkpoint = Checkpoint(torch.compile(model), CharTokenizer("abc"), 7)  # type: ignore[arg-type]
    save_checkpoint(Path("compiled"), checkpoint)
    save_checkpoint(Path("parallel"), replace(checkpoint, model=Wrapped(model)))  # type: ignore[arg-type]
    for directory in ("compiled", "parallel"):
        with safe_open(f"{directory}/model.safetensors", "pt") as opened:
            assert set(opened.keys()) == model.state_dict().keys()


class Wrapped(nn.Module):
    """A wrapper that stores the model as `module`, like DistributedDataParallel."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def test_loading_does_not_change_the_random_generator(best: Path) -> None:
    before = torch.get_rng_state()
    load_checkpoint(best)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_a_checkpoint_can_be_read_while_it_is_replaced(best: Path, model: Model) -> None:
    """One thread keeps replacing the checkpoint while another thread keeps reading it."""
    steps, done = [7], threading.Event()

    def keep_replacing() -> None:
        for step in range(8, 108):
            save_checkpoint(best, Checkpoint(model, CharTokenizer("abc"), step))
        done.set()

    thread = threading.Thread(target=keep_replacing)
    thread.start()
    while not done.is_set():
        steps.append(load_checkpoint(best).step)
    thread.join()
    assert steps == sorted(steps)
    assert len(set(steps)) > 3


def test_a_replacement_with_the_same_inode_number_is_noticed(best: Path) -> None:
    calls = []

    def read(directory: Path) -> int:
        calls.append(directory)
        if len(calls) == 1:
            os.utime(directory, ns=(1, 1))  # as if a new directory had the same inode number
            raise UserError("the files do not belong together")
        return 7

    assert read_consistently(best, read) == 7
    assert len(calls) == 2


def test_a_failed_write_leaves_the_old_checkpoint(best: Path, model: Model) -> None:
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    big = GPT(replace(CONFIG, n_embd=64)) if isinstance(model, GPT) else Bigram(BigramConfig(99))
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save_checkpoint(best, Checkpoint(big, CharTokenizer("abc"), 8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert load_checkpoint(best).step == 7
    assert [file.name for file in best.parent.iterdir()] == ["best"]


@pytest.mark.parametrize("in_background", [False, True])
def test_a_writer_runs_jobs_in_order(in_background: bool) -> None:
    done: list[int] = []
    with BackgroundWriter(in_background) as writer:
        for i in range(5):
            writer.submit(partial(done.append, i))
    assert done == list(range(5))


@pytest.mark.parametrize("in_background", [False, True])
def test_a_writer_raises_the_first_error_and_skips_later_jobs(in_background: bool) -> None:
    done: list[int] = []

    def fail() -> None:
        time.sleep(0.1)
        raise OSError("No space left on device")

    def write() -> None:
        with BackgroundWriter(in_background) as writer:
            writer.submit(fail)
            writer.submit(partial(done.append, 1))

    with pytest.raises(OSError, match="No space left"):
        write()
    assert not done


def test_a_writer_limits_the_number_of_pending_jobs() -> None:
    done: list[int] = []

    def slow(i: int) -> None:
        time.sleep(0.02)
        done.append(i)

    with BackgroundWriter(in_background=True) as writer:
        for i in range(10):
            writer.submit(partial(slow, i))
            assert i - len(done) <= 5


def test_a_tokenizer_with_another_vocabulary_is_refused(best: Path) -> None:
    shutil.copytree(best, "backup")
    (best / "tokenizer.json").write_bytes(dump_json(CharTokenizer("abcdef").to_json()))
    sign(best)
    with pytest.raises(UserError, match="6 tokens, but the model has 3: restore all files of this"):
        load_checkpoint(best)
    shutil.copytree("backup", best, dirs_exist_ok=True)
    assert load_checkpoint(best).tokenizer.vocab_size == 3
