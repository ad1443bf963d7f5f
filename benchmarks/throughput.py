"""Tokens a second of training at two sizes, and of nanoGPT beside the larger one.

    python benchmarks/throughput.py --nanogpt CHECKOUT

baby: the preset's 10.8M parameters at 64 × 256 tokens, by milliseconds a step. gpt2: the shape of
GPT-2, 124M parameters at 1,024 tokens, on a text of as many random characters as GPT-2 has tokens
(50,304, as nanoGPT pads them), at every batch size given; against nanoGPT's bench.py on random
tokens. Both without biases, as bench.py leaves them out. Ours is `nanogpt train`, a process of its
own: the median over ten lines of metrics.jsonl after the first two, none with an evaluation.
nanoGPT's is what bench.py prints at its end. The programs take turns; the table has medians, and
the best batch size of each.

Written to benchmarks/results after every round: throughput.json and .md.
"""

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import RESULTS, save

from nanogpt.models import GPTConfig, build, flops_per_token
from nanogpt.runs.presets import PRESETS
from nanogpt.system.devices import describe_device, find_peak_flops

CHARACTERS = 50_304
GPT2 = GPTConfig(
    n_layer=12, n_head=12, n_embd=768, block_size=1024, vocab_size=CHARACTERS, bias=False
)


def ours(steps: int, flags: list[str]) -> float:
    """Tokens a second of `nanogpt train` with these flags; 0 where it fails."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory, "run")
        every = max(1, steps // 12)
        command = [sys.executable, "-m", "nanogpt", "train", *flags, "--out", str(out)]
        command += ["--train.log-every", str(every), "--train.steps", str(12 * every + 1)]
        command += ["--train.no-eval-first", "--train.eval-every", str(10**6)]
        if subprocess.run(command, stdout=sys.stderr).returncode:  # too large a batch, most likely
            return 0.0
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rates = [
        (later["tokens"] - earlier["tokens"]) / (later["seconds"] - earlier["seconds"])
        for earlier, later in pairwise(lines[2:13])
    ]
    return float(median(rates))


def theirs(checkout: Path, batch_size: int) -> float:
    """Tokens a second of nanoGPT's bench.py; 0 where it fails."""
    command = [sys.executable, "bench.py", f"--batch_size={batch_size}", "--real_data=False"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    if done.returncode:
        print(done.stderr[-500:], file=sys.stderr)
        return 0.0
    found = re.findall(r"time per iteration: ([\d.]+)ms", done.stdout)
    return batch_size * 1024 / (float(found[-1]) / 1000)


def gpt2_flags(text: Path, batch_size: int) -> list[str]:
    """Of nanogpt train: the shape of GPT-2, and bench.py's optimizer."""
    shape = {"n-layer": 12, "n-head": 12, "n-embd": 768, "block-size": 1024, "dropout": 0.0}
    flags = ["baby", "--data", str(text), "--train.batch-size", str(batch_size), "--model.no-bias"]
    for name, value in shape.items():
        flags += [f"--model.{name}", str(value)]
    optim = {"lr": 1e-4, "beta2": 0.95, "weight-decay": 0.01, "grad-clip": 0.0}
    for name, value in optim.items():
        flags += [f"--optim.{name}", str(value)]
    return flags


def random_text(file: Path) -> None:
    """As many different characters as there are tokens, in random order."""
    draw, alphabet = random.Random(0), [chr(0x10000 + i) for i in range(CHARACTERS)]
    draw.shuffle(alphabet)
    file.write_text("".join(alphabet) + "".join(draw.choices(alphabet, k=400_000)), "utf-8")


def table(record: dict[str, Any]) -> str:
    """What was measured, in Markdown."""
    baby, peak = record["baby"], record["peak"]
    rows = [
        f"| {record['device']}, torch {record['torch']} | tokens a second | MFU |",
        "| --- | --- | --- |",
        f"| `baby`, 64 × 256: {1000 * 64 * 256 / median(baby['rates']):.2f} ms a step "
        f"| {median(baby['rates']):,.0f} | {_mfu(median(baby['rates']), baby['flops'], peak)} |",
    ]
    best: dict[str, float] = {}
    for program, sizes in record["gpt2"]["rates"].items():
        for size, rates in sizes.items():
            rate = median(rates)
            best[program] = max(best.get(program, 0.0), rate)
            rows.append(
                f"| {program}, GPT-2 124M, {size} × 1,024 | {rate:,.0f} "
                f"| {_mfu(rate, record['gpt2']['flops'], peak)} |"
            )
    if all(best.values()):
        times = best["nanogpt"] / best["nanoGPT"]
        rows += ["", f"At the best batch size of each: {times:.2f} times."]
    return "\n".join([*rows, ""])


def _mfu(rate: float, flops: int, peak: float | None) -> str:
    return f"{rate * flops / peak:.0%}" if peak else ""


def main() -> None:
    """Let the programs take turns, and keep what came of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nanogpt", type=Path, required=True, help="a clone of nanoGPT")
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    device = torch.device("cuda")
    with torch.device("meta"):
        models = {"baby": build(PRESETS["baby"].config.model), "gpt2": build(GPT2)}
    flops = {name: flops_per_token(model) for name, model in models.items()}
    baby: list[float] = []
    rates: dict[str, dict[str, list[float]]] = {"nanoGPT": {}, "nanogpt": {}}
    record = {
        "device": describe_device(device),
        "torch": torch.__version__,
        "peak": find_peak_flops(device, torch.bfloat16),
        "baby": {"flops": flops["baby"], "rates": baby},
        "gpt2": {"flops": flops["gpt2"], "rates": rates},
    }
    with tempfile.TemporaryDirectory() as directory:
        text = Path(directory, "random.txt")
        random_text(text)
        for _ in range(args.repeats):
            baby.append(ours(1200, ["baby"]))
            for size in args.batches:
                found = theirs(args.nanogpt, size), ours(60, gpt2_flags(text, size))
                for program, rate in zip(rates, found, strict=True):
                    rates[program].setdefault(str(size), []).append(rate)
            save(RESULTS / "throughput.json", record)
            (RESULTS / "throughput.md").write_text(table(record), encoding="utf-8")
    print(table(record))


if __name__ == "__main__":
    main()
