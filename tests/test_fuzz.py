"""Loading a damaged checkpoint gives the weights that were saved, or raises UserError.

A mutant is a copy of a checkpoint after a random mutation. A mutation flips bits, changes fields
or damages whole files. For example, it swaps two files, or replaces a file with a link. Some
mutants have the checksums of the original files. Others have new checksums that match the changed
files, as an attacker would write them. Reading a mutant may take at most two seconds and 500 MB.
The mutants are read in a separate process, to measure only the memory for reading them.
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
from nanogpt.runs.checkpoint import load_checkpoint, load_training_tensors
from nanogpt.runs.config import RunConfig, TrainConfig
from nanogpt.runs.reading import SUMS
from nanogpt.runs.run import load_run_text, read_run_config, read_saved_run
from nanogpt.runs.start import prepare_run, resume_run
from nanogpt.system.files import remove_if_present
from nanogpt.train import train
from tests.platforms import peak_memory

pytest.importorskip("resource")  # Windows lacks this module, /dev/zero and named pipes

Files = dict[str, bytes]


def sign_files(files: Files) -> Files:
    """Return the files with new checksums."""
    sums = (f"{hashlib.sha256(raw).hexdigest()}  {n}\n" for n, raw in files.items() if n != SUMS)
    return files | {SUMS: "".join(sums).encode()}


def draw_value(draw: random.Random) -> Any:
    """Choose a value that is probably wrong."""
    return draw.choice(
        [
            *(0, -1, 1, 3, 2**31, 2**63, 10**30, 10**400, -(2**64), 1e308, 0.5, True, False, None),
            *("", "x", "../../etc/passwd", "/dev/zero", "\0", "é" * 1000, "9" * 100),
            *([], [1], [[[]]], {}, {"kind": "gpt"}, {"a": {"b": []}}, [0] * 1000),
        ]
    )


def flip_bits(draw: random.Random, files: Files) -> Files:
    name = draw.choice(sorted(files))
    raw = bytearray(files[name])
    for _ in range(draw.randint(1, 8)):
        raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
    return files | {name: bytes(raw)}


def cut(draw: random.Random, files: Files) -> Files:
    name = draw.choice(sorted(files))
    return files | {name: files[name][: draw.randrange(len(files[name]))]}


def lengthen(draw: random.Random, files: Files) -> Files:
    name = draw.choice(sorted(files))
    more = draw.choice([b"\0", b" ", b"\n{}", draw.randbytes(100), bytes(10**7)])
    return files | {name: files[name] + more}


def remove_file(draw: random.Random, files: Files) -> Files:
    name = draw.choice(sorted(files))
    return {other: raw for other, raw in files.items() if other != name}


def overwrite(draw: random.Random, files: Files) -> Files:
    return files | {draw.choice(sorted(files)): draw.randbytes(draw.randrange(1000))}


def swap(draw: random.Random, files: Files) -> Files:
    one, other = draw.sample(sorted(files), 2)
    return files | {one: files[other], other: files[one]}


def change_field(draw: random.Random, files: Files) -> Files:
    """Change a value in a JSON file, or add, rename, remove or repeat a key."""
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
        inner["more"] = draw_value(draw)
    else:
        inner[key] = draw_value(draw)
    raw = json.dumps(whole)
    if draw.random() < 0.1:
        raw = raw.replace("{", '{"step": 7, "step": 8, ', 1)
    return files | {name: raw.encode()}


def change_header(draw: random.Random, files: Files) -> Files:
    """Change the header of a safetensors file."""
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


def keep(draw: random.Random, files: Files) -> Files:
    return files


UNSIGNED = [flip_bits, cut, lengthen, remove_file, overwrite, swap, change_field, change_header]
SIGNED = [cut, lengthen, remove_file, overwrite, swap, change_field, change_header, keep]


def replace_file(draw: random.Random, directory: Path) -> None:
    """Replace a file with a link, a named pipe, a directory or a huge sparse file."""
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
        os.truncate(file, 2**42)  # a sparse file of 4 TiB


def write_mutant(draw: random.Random, files: Files, directory: Path) -> str:
    """Write a mutant of a checkpoint; return the name of the mutation."""
    kind, mutation = draw.choice(
        [("", m) for m in UNSIGNED] + [("signed ", m) for m in SIGNED] + [("replaced ", None)]
    )
    mutant = mutation(draw, files) if mutation else files
    if kind == "signed ":
        mutant = sign_files(mutant)
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for name, raw in mutant.items():
        (directory / name).write_bytes(raw)
    if mutation is None:
        replace_file(draw, directory)
    return kind + (mutation.__name__ if mutation else "file")


def fuzz_checkpoints(base: Path, seed: int, mutants: int) -> dict[str, Any]:
    """Read mutants of base/run/last; return the outcomes, the longest time and the extra memory."""
    files = {file.name: file.read_bytes() for file in (base / "run/last").iterdir()}
    original = load_checkpoint(base / "run/last")
    weights = original.model.state_dict()
    saved = read_saved_run(base / "run")
    state = prepare_run(replace(saved.config, out=base / "x")).state
    state.step = original.step
    expected = state.expected_tensors(saved.info.losses)
    tensors = load_training_tensors(base / "run/last", expected)

    def read(run: Path) -> None:
        loaded = load_checkpoint(run / "last").model.state_dict()
        assert loaded.keys() == weights.keys()
        for name, tensor in loaded.items():
            assert torch.equal(tensor, weights[name]), name
        read_saved_run(run)
        for name, tensor in load_training_tensors(run / "last", expected).items():
            assert torch.equal(tensor, tensors[name]), name

    draw, outcomes, messages = random.Random(seed), Counter[str](), set[str]()
    slowest, memory = 0.0, peak_memory()
    (base / "mutant").mkdir()
    for _ in range(mutants):
        mutation = write_mutant(draw, files, base / "mutant/last")
        start = time.perf_counter()
        try:
            read(base / "mutant")
            outcomes[f"{mutation}: same"] += 1
        except UserError as error:
            messages.add(str(error))
            outcomes[f"{mutation}: UserError"] += 1
        slowest = max(slowest, time.perf_counter() - start)
    growth = peak_memory() - memory
    assert all("\n" not in line and len(line) < 1000 for line in messages), messages
    return {"outcomes": outcomes, "slowest seconds": slowest, "megabytes": growth / (1 << 20)}


RUNS = 100


def damage_run(draw: random.Random, run: Path) -> None:
    """Damage one JSON file of a run, or put an unexpected link or file into the run directory."""
    name = draw.choice(["run.json", "metrics.jsonl"])
    how = draw.randrange(6)
    if how < 3:
        mutation = draw.choice([flip_bits, cut, lengthen, overwrite, remove_file])
        files = mutation(draw, {name: (run / name).read_bytes()})
        (run / name).unlink()
        for mutant, raw in files.items():
            (run / mutant).write_bytes(raw)
    elif how == 3:
        lines = (run / "metrics.jsonl").read_text().splitlines()
        line = json.loads(lines[0])
        line[draw.choice([*line, "more"])] = draw_value(draw)
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
    """Resume damaged copies of the run base/run; return how often each outcome occurred."""
    draw, outcomes = random.Random(seed), Counter[str]()
    tensors = load_checkpoint(base / "run/last").model.state_dict()
    for _ in range(RUNS):
        remove_if_present(base / "mutant")
        remove_if_present(base / "outside")
        shutil.copytree(base / "run", base / "mutant")
        damage_run(draw, base / "mutant")
        try:
            load_run_text(base / "mutant")
            run = resume_run(base / "mutant", read_run_config(base / "mutant"))
            run.lock.release()
            for name, tensor in run.model.state_dict().items():
                assert torch.equal(tensor, tensors[name]), name
            outcomes["same"] += 1
        except UserError:
            outcomes["UserError"] += 1
    return outcomes


def test_a_damaged_run_resumes_with_the_same_weights_or_raises_an_error(
    text_file: Path, tmp_path: Path
) -> None:
    model = ModernConfig(n_layer=1, n_head=2, n_embd=16, block_size=16)
    optim = OptimConfig("muon", ema=0.9)
    settings = TrainConfig(steps=4, batch_size=4, eval_every=2, log_every=1)
    config = RunConfig(data=str(text_file), device="cpu", model=model, optim=optim, train=settings)
    train(replace(config, out=tmp_path / "run"))
    outcomes = fuzz_runs(tmp_path, seed=0)
    assert outcomes["UserError"] > RUNS / 3
    assert outcomes["same"] > RUNS / 20


@pytest.mark.slow
@pytest.mark.parametrize("mutants", [300, 2000])
def test_a_damaged_checkpoint_loads_the_same_weights_or_raises_an_error(
    text_file: Path, tmp_path: Path, mutants: int
) -> None:
    model = GPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=16)
    settings = TrainConfig(steps=3, batch_size=4, eval_every=2, log_every=2)
    config = RunConfig(data=str(text_file), device="cpu", model=model, train=settings)
    train(replace(config, out=tmp_path / "run"))
    command = [sys.executable, "-m", "tests.test_fuzz", str(tmp_path), "0", str(mutants)]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    outcomes = report["outcomes"]
    assert sum(outcomes.values()) == mutants
    assert report["slowest seconds"] < 10  # measured: 7 ms on average
    assert report["megabytes"] < 500
    errors = sum(n for outcome, n in outcomes.items() if outcome.endswith("UserError"))
    assert errors > mutants / 2
    for mutation in UNSIGNED:  # a mutant with the original checksums rarely loads
        same = outcomes.get(f"{mutation.__name__}: same", 0)
        assert same <= outcomes[f"{mutation.__name__}: UserError"] / 4
    assert outcomes["signed keep: same"] > 0


if __name__ == "__main__":
    print(json.dumps(fuzz_checkpoints(Path(sys.argv[1]), *map(int, sys.argv[2:]))))
