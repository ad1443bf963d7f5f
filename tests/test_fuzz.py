"""A checkpoint from a stranger loads to the weights that were saved, or ends in our own error.

Mutated directories: bits flipped, files cut, swapped, replaced, fields changed, huge numbers,
links; with the checksums as they were, and with checksums made right again, as a stranger would.
Each has two seconds and 500 MB. In a process of its own, whose memory can be measured.
"""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nanogpt.errors import UserError
from nanogpt.models import GPTConfig, ModernConfig
from nanogpt.optim import OptimConfig
from nanogpt.runs.checkpoint import load_checkpoint, load_tensors, load_training
from nanogpt.runs.config import RunConfig, TrainConfig
from nanogpt.runs.reading import SUMS
from nanogpt.runs.run import ResumeInfo, load_run_text, read_run_config
from nanogpt.runs.start import prepare_run, resume_run
from nanogpt.system.files import remove_if_present
from nanogpt.train import train

resource = pytest.importorskip("resource")  # not on Windows, nor are /dev/zero and pipes
UNIT = 1 if sys.platform == "darwin" else 1024  # bytes of ru_maxrss

Files = dict[str, bytes]


def signed(files: Files) -> Files:
    """With the checksums made right again."""
    sums = (f"{hashlib.sha256(raw).hexdigest()}  {n}\n" for n, raw in files.items() if n != SUMS)
    return files | {SUMS: "".join(sums).encode()}


def any_value(draw: random.Random) -> Any:
    """Something that does not belong."""
    return draw.choice(
        [
            *(0, -1, 1, 3, 2**31, 2**63, 10**30, 10**400, -(2**64), 1e308, 0.5, True, False, None),
            *("", "x", "../../etc/passwd", "/dev/zero", "\0", "é" * 1000, "9" * 100),
            *([], [1], [[[]]], {}, {"kind": "gpt"}, {"a": {"b": []}}, [0] * 1000),
        ]
    )


def flipped_bits(draw: random.Random, files: Files) -> Files:
    name = draw.choice(sorted(files))
    raw = bytearray(files[name])
    for _ in range(draw.randint(1, 8)):
        raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
    return files | {name: bytes(raw)}


def cut(draw: random.Random, files: Files) -> Files:
    name = draw.choice(sorted(files))
    return files | {name: files[name][: draw.randrange(len(files[name]))]}


def longer(draw: random.Random, files: Files) -> Files:
    name = draw.choice(sorted(files))
    more = draw.choice([b"\0", b" ", b"\n{}", draw.randbytes(100), bytes(10**7)])
    return files | {name: files[name] + more}


def missing(draw: random.Random, files: Files) -> Files:
    name = draw.choice(sorted(files))
    return {other: raw for other, raw in files.items() if other != name}


def garbage(draw: random.Random, files: Files) -> Files:
    return files | {draw.choice(sorted(files)): draw.randbytes(draw.randrange(1000))}


def swapped(draw: random.Random, files: Files) -> Files:
    one, other = draw.sample(sorted(files), 2)
    return files | {one: files[other], other: files[one]}


def another_field(draw: random.Random, files: Files) -> Files:
    """A value of a JSON file changed, a key renamed, removed or there twice."""
    name = draw.choice(sorted(file for file in files if file.endswith(".json")))
    whole = json.loads(files[name])
    inner = whole
    while True:
        key = draw.choice(sorted(inner))
        if not isinstance(inner[key], dict) or not inner[key] or draw.random() < 0.2:
            break
        inner = inner[key]
    how = draw.randrange(5)
    if how == 0:
        del inner[key]
    elif how == 1:
        inner[key + "s"] = inner.pop(key)
    elif how == 2:
        inner["more"] = any_value(draw)
    else:
        inner[key] = any_value(draw)
    raw = json.dumps(whole)
    if draw.random() < 0.1:
        raw = raw.replace("{", '{"step": 7, "step": 8, ', 1)
    return files | {name: raw.encode()}


def another_header(draw: random.Random, files: Files) -> Files:
    """A safetensors header that claims something else."""
    name = draw.choice(sorted(file for file in files if file.endswith(".safetensors")))
    length = int.from_bytes(files[name][:8], "little")
    header, data = json.loads(files[name][8 : 8 + length]), files[name][8 + length :]
    tensor = draw.choice(sorted(header))
    how = draw.randrange(6)
    if how == 0:
        header[tensor]["shape"] = draw.choice(
            [[], [1], [2**40], [2**32, 2**32], [2**63], [-1], ["a"], header[tensor]["shape"] + [1]]
        )
    elif how == 1:
        header[tensor]["dtype"] = draw.choice(["F64", "F16", "BF16", "I32", "U8", "X", "", 3])
    elif how == 2:
        begin, end = header[tensor]["data_offsets"]
        header[tensor]["data_offsets"] = draw.choice(
            [[0, 0], [begin, 2**63], [end, begin], [begin + 4, end + 4], [-1, end], [begin], "x"]
        )
    elif how == 3:
        header[draw.choice(["../x", "", "\0", "x" * 10_000])] = header.pop(tensor)
    elif how == 4:
        del header[tensor]
    else:
        raw = bytearray(json.dumps(header).encode())
        for _ in range(draw.randint(1, 4)):
            raw[draw.randrange(len(raw))] = draw.randrange(256)
        return files | {name: len(raw).to_bytes(8, "little") + bytes(raw) + data}
    raw_header = json.dumps(header).encode()
    claimed = draw.choice([len(raw_header)] * 5 + [0, 1, 2**20, 2**27, 2**40, 2**63, 2**64 - 1])
    return files | {name: claimed.to_bytes(8, "little") + raw_header + data}


def unchanged(draw: random.Random, files: Files) -> Files:
    return files


ANYHOW = [flipped_bits, cut, longer, missing, garbage, swapped, another_field, another_header]
SIGNED = [cut, longer, missing, garbage, swapped, another_field, another_header, unchanged]


def odd_file(draw: random.Random, directory: Path) -> None:
    """Something that is no plain file in the place of one."""
    file = directory / draw.choice(sorted(file.name for file in directory.iterdir()))
    raw = file.read_bytes()
    file.unlink()
    how = draw.randrange(5)
    if how == 0:
        file.symlink_to("/dev/zero")
    elif how == 1:
        (directory.parent / "outside").write_bytes(raw)
        file.symlink_to("../outside")
    elif how == 2:
        os.mkfifo(file)
    elif how == 3:
        file.mkdir()
    else:
        file.touch()
        os.truncate(file, 2**42)  # four terabytes, without a byte on the disk


def mutate(draw: random.Random, files: Files, directory: Path) -> str:
    """Write a mutant of a checkpoint; gives what was done to it."""
    kind, mutation = draw.choice(
        [("", m) for m in ANYHOW] + [("signed ", m) for m in SIGNED] + [("odd ", None)]
    )
    mutant = mutation(draw, files) if mutation else files
    if kind == "signed ":
        mutant = signed(mutant)
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for name, raw in mutant.items():
        (directory / name).write_bytes(raw)
    if mutation is None:
        odd_file(draw, directory)
    return kind + (mutation.__name__ if mutation else "file")


def fuzz(base: Path, seed: int, mutants: int) -> dict[str, Any]:
    """Read mutants of the checkpoint base/run/last; counts how they ended."""
    files = {file.name: file.read_bytes() for file in (base / "run/last").iterdir()}
    original = load_checkpoint(base / "run/last")
    tensors = original.model.state_dict()
    state = prepare_run(
        replace(load_training(base / "run/last", ResumeInfo).config, out=base / "x")
    ).state
    state.step = original.step
    pending = load_training(base / "run/last", ResumeInfo).losses
    needed = state.expected(pending)
    saved = load_tensors(base / "run/last", needed)

    def read(directory: Path) -> None:
        loaded = load_checkpoint(directory)
        assert loaded.model.state_dict().keys() == tensors.keys()
        for name, tensor in loaded.model.state_dict().items():
            assert torch.equal(tensor, tensors[name]), name
        load_training(directory, ResumeInfo)
        for name, tensor in load_tensors(directory, needed).items():
            assert torch.equal(tensor, saved[name]), name

    draw, ended, lines = random.Random(seed), Counter[str](), set[str]()
    slowest, memory = 0.0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(mutants):
        what = mutate(draw, files, base / "mutant")
        began = time.perf_counter()
        try:
            read(base / "mutant")
            ended[f"{what}: the same"] += 1
        except UserError as error:
            lines.add(str(error))
            ended[f"{what}: our error"] += 1
        slowest = max(slowest, time.perf_counter() - began)
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    assert all("\n" not in line and len(line) < 1000 for line in lines), lines
    return {"ended": ended, "slowest seconds": slowest, "megabytes": taken * UNIT / 2**20}


RUNS = 100


def odd_run(draw: random.Random, run: Path) -> None:
    """Something that does not belong, around the checkpoints."""
    name = draw.choice(["run.json", "metrics.jsonl"])
    how = draw.randrange(6)
    if how < 3:
        mutation = draw.choice([flipped_bits, cut, longer, garbage, missing])
        files = mutation(draw, {name: (run / name).read_bytes()})
        (run / name).unlink()
        for mutant, raw in files.items():
            (run / mutant).write_bytes(raw)
    elif how == 3:
        lines = (run / "metrics.jsonl").read_text().splitlines()
        line = json.loads(lines[0])
        line[draw.choice([*line, "more"])] = any_value(draw)
        lines[draw.randrange(len(lines))] = json.dumps(line)
        (run / "metrics.jsonl").write_text("\n".join(lines))
    elif how == 4:
        names = ["last", "best", ".last.new", "metrics.jsonl", ".lock", "loss.png"]
        place = run / draw.choice(names)
        if place.exists():
            place.rename(run.parent / "outside")
        place.symlink_to(draw.choice(["../outside", "/dev/zero", place.name]))
    else:
        (run / draw.choice([".last.new", ".best.new", ".last.old"])).write_bytes(b"planted")


def fuzz_runs(base: Path, seed: int) -> dict[str, int]:
    """Go on with mutants of the run base/run; counts how they ended."""
    draw, ended = random.Random(seed), Counter[str]()
    tensors = load_checkpoint(base / "run/last").model.state_dict()
    for _ in range(RUNS):
        remove_if_present(base / "mutant")
        remove_if_present(base / "outside")
        shutil.copytree(base / "run", base / "mutant")
        odd_run(draw, base / "mutant")
        try:
            load_run_text(base / "mutant")
            run = resume_run(base / "mutant", read_run_config(base / "mutant"))
            run.lock.release()
            for name, tensor in run.model.state_dict().items():
                assert torch.equal(tensor, tensors[name]), name
            ended["the same"] += 1
        except UserError:
            ended["our error"] += 1
    return ended


def test_whatever_was_around_it(text_file: Path, tmp_path: Path) -> None:
    model = ModernConfig(n_layer=1, n_head=2, n_embd=16, block_size=16)
    optim = OptimConfig("muon", ema=0.9)
    settings = TrainConfig(steps=4, batch_size=4, eval_every=2, log_every=1)
    config = RunConfig(data=str(text_file), device="cpu", model=model, optim=optim, train=settings)
    train(replace(config, out=tmp_path / "run"))
    ended = fuzz_runs(tmp_path, seed=0)
    assert ended["our error"] > RUNS / 3
    assert ended["the same"] > RUNS / 20


@pytest.mark.parametrize("mutants", [300, pytest.param(2000, marks=pytest.mark.slow)])
def test_whatever_it_was_it_is_the_same_or_our_error(
    text_file: Path, tmp_path: Path, mutants: int
) -> None:
    model = GPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=16)
    settings = TrainConfig(steps=3, batch_size=4, eval_every=2, log_every=2)
    config = RunConfig(data=str(text_file), device="cpu", model=model, train=settings)
    train(replace(config, out=tmp_path / "run"))
    command = [sys.executable, __file__, str(tmp_path), "0", str(mutants)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert sum(found["ended"].values()) == mutants
    assert found["slowest seconds"] < 2
    assert found["megabytes"] < 500
    errors = sum(n for how, n in found["ended"].items() if how.endswith("our error"))
    assert errors > mutants / 2
    for mutation in ANYHOW:  # what nobody signed is found out, but for the odd harmless one
        escape_control = found["ended"].get(f"{mutation.__name__}: the same", 0)
        assert escape_control <= found["ended"][f"{mutation.__name__}: our error"] / 4
    assert found["ended"]["signed unchanged: the same"] > 0


if __name__ == "__main__":
    print(json.dumps(fuzz(Path(sys.argv[1]), *map(int, sys.argv[2:]))))
