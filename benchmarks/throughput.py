"""Measure the training throughput of nanogpt and nanoGPT, in tokens per second, for two models.

    python benchmarks/throughput.py --nanogpt CHECKOUT

- baby: nanogpt trains the preset `baby`, with 10.8M parameters and 64 × 256 tokens per step, on the
  text --text.
- gpt2: both programs train a model of the shape of GPT-2, with 124M parameters and 1,024 tokens in
  each block, at every batch size in --batches, and nanogpt also in float8. nanoGPT pads its
  vocabulary to 50,304 tokens. Therefore, the text for nanogpt has 50,304 different characters. The
  text is random, because nanoGPT's bench.py trains on random tokens. As in bench.py, the model has
  no biases.

nanogpt runs as `nanogpt train`, in a separate process. Its rate is the median over the ten
intervals between lines 3 and 13 of metrics.jsonl; these intervals contain no evaluation. bench.py
prints the milliseconds per iteration; this script computes nanoGPT's rate from them. In each of the
--repeats rounds, the script makes every measurement once. The results go to
benchmarks/results/throughput.json.
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

import torch
from common import RESULTS, save_result
from tables import throughput_table

from nanogpt.models import GPTConfig, build, flops_per_token
from nanogpt.runs.presets import PRESETS
from nanogpt.system.devices import describe_device, find_peak_flops

FLOAT8 = "nanogpt in float8"
CHARACTERS = 50_304
GPT2 = GPTConfig(
    n_layer=12, n_head=12, n_embd=768, block_size=1024, vocab_size=CHARACTERS, bias=False
)


def measure_nanogpt(steps: int, flags: list[str]) -> float:
    """Return the median tokens per second of `nanogpt train`, or 0 if it fails."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory, "run")
        every = max(1, steps // 12)
        command = [sys.executable, "-m", "nanogpt", "train", *flags, "--out", str(out)]
        command += ["--train.log-every", str(every), "--train.steps", str(12 * every + 1)]
        command += ["--train.no-eval-first", "--train.eval-every", str(10**6)]
        if subprocess.run(command, stdout=sys.stderr).returncode:  # probably out of memory
            return 0.0
        records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rates = [
        (later["tokens"] - earlier["tokens"]) / (later["seconds"] - earlier["seconds"])
        for earlier, later in pairwise(records[2:13])
    ]
    return float(median(rates))


def measure_nanogpt_bench(checkout: Path, batch_size: int) -> float:
    """Return the tokens per second of nanoGPT's bench.py, or 0 if it fails."""
    command = [sys.executable, "bench.py", f"--batch_size={batch_size}", "--real_data=False"]
    process = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    if process.returncode:
        print(process.stderr[-500:], file=sys.stderr)
        return 0.0
    milliseconds = re.findall(r"time per iteration: ([\d.]+)ms", process.stdout)
    return batch_size * 1024 / (float(milliseconds[-1]) / 1000)


def gpt2_flags(text: Path, batch_size: int) -> list[str]:
    """Return `nanogpt train` options for GPT-2's shape and the optimizer settings of bench.py."""
    shape = {"n-layer": 12, "n-head": 12, "n-embd": 768, "block-size": 1024, "dropout": 0.0}
    flags = ["baby", "--data", str(text), "--train.batch-size", str(batch_size), "--model.no-bias"]
    for name, value in shape.items():
        flags += [f"--model.{name}", str(value)]
    optim = {"lr": 1e-4, "beta2": 0.95, "weight-decay": 0.01, "grad-clip": 0.0}
    for name, value in optim.items():
        flags += [f"--optim.{name}", str(value)]
    return flags


def write_random_text(file: Path) -> None:
    """Write a text of random characters, with an alphabet of CHARACTERS characters."""
    generator, alphabet = random.Random(0), [chr(0x10000 + i) for i in range(CHARACTERS)]
    generator.shuffle(alphabet)
    file.write_text("".join(alphabet) + "".join(generator.choices(alphabet, k=400_000)), "utf-8")


def main() -> None:
    """Measure both programs, save the result after each round, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nanogpt", type=Path, required=True, help="a clone of nanoGPT")
    parser.add_argument("--text", default="tinyshakespeare", help="the text for baby")
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--repeats", type=int, default=3, help="number of rounds")
    args = parser.parse_args()
    device = torch.device("cuda")
    with torch.device("meta"):
        models = {"baby": build(PRESETS["baby"].config.model), "gpt2": build(GPT2)}
    flops = {name: flops_per_token(model) for name, model in models.items()}
    baby: list[float] = []
    rates: dict[str, dict[str, list[float]]] = {"nanoGPT": {}, "nanogpt": {}, FLOAT8: {}}
    result = {
        "device": describe_device(device),
        "torch": torch.__version__,
        "peak": find_peak_flops(device, torch.bfloat16),
        "text": args.text,
        "baby": {"flops": flops["baby"], "rates": baby},
        "gpt2": {"flops": flops["gpt2"], "rates": rates},
    }
    with tempfile.TemporaryDirectory() as directory:
        text = Path(directory, "random.txt")
        write_random_text(text)
        for _ in range(args.repeats):
            baby.append(measure_nanogpt(1200, ["baby", "--data", args.text]))
            if not baby[-1]:
                raise SystemExit("nanogpt train baby failed")
            for size in args.batches:
                theirs = measure_nanogpt_bench(args.nanogpt, size)
                ours = measure_nanogpt(60, gpt2_flags(text, size))
                faster = measure_nanogpt(60, [*gpt2_flags(text, size), "--precision", "float8"])
                for program, rate in zip(rates, (theirs, ours, faster), strict=True):
                    rates[program].setdefault(str(size), []).append(rate)
            save_result(RESULTS / "throughput.json", result)
    print(throughput_table(result))


if __name__ == "__main__":
    main()
