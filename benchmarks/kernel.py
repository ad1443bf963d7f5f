"""Train models of GPT-2's size on the source code of Linux, with nanogpt and with nanoGPT.

    python benchmarks/kernel.py text SOURCE DIR                  # write the tokens of the text
    python benchmarks/kernel.py train nanoGPT DIR OUT --nanogpt CHECKOUT [FLAG ...]
    python benchmarks/kernel.py train gpt2 DIR OUT [FLAG ...]    # a preset; flags of the program

SOURCE is an unpacked source tree of Linux, for example from Debian's package linux-source-6.1. The
text consists of C files in random order, without the drivers of GPUs, which contain large tables
of numbers. The tokenizer, with 50,304 tokens, is trained on the training split. DIR gets the tokens
of both splits in nanoGPT's format, so that both programs read the same tokens. The last 0.5% of the
text is the validation split.

`train` trains one model, saves its run and its output in OUT, and prints a line of JSON: the tokens
per second of the training steps (the median over the lines of the log), and the evaluations, with
the seconds since the start of the process. The weights of both programs are evaluated in the same
way: on the whole validation split, in non-overlapping windows, in float32. nanoGPT and the preset
gpt2 use the same learning rates, and batches of 512 x 1,024 tokens.
"""

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import train_nanogpt
from safetensors.torch import load_file

from nanogpt.data import Split
from nanogpt.evaluate import evaluate
from nanogpt.text.corpora import SPLITS, load_corpus
from nanogpt.text.encoding import encode_corpus, get_tokenizer
from nanogpt.text.tokenizers import read_tokenizer

VOCABULARY, VAL_FRACTION = 50_304, 0.005
SHARE = 0.55
"""The share of the C files that belong to the text, which has about 300 MB."""
BATCH, CONTEXT, PARTS = 512, 1024, 16
"""The blocks of a batch, the tokens of a block, and the parts in which a batch is processed."""
WARMUP = 20
NANOGPT = {
    "block_size": CONTEXT,
    "n_layer": 12,
    "n_head": 12,
    "n_embd": 768,
    "dropout": 0.0,
    "bias": True,
    "learning_rate": 6e-4,
    "min_lr": 6e-5,
    "beta2": 0.95,
    "warmup_iters": WARMUP,
    "log_interval": 1,
    "compile": True,
}
"""Settings of nanoGPT: the model of `gpt2` and its learning rates."""


def write_text(source: Path, directory: Path) -> None:
    """Write text.txt, tokenizer.json, train.bin and val.bin."""

    def draw(file: Path) -> float:
        digest = hashlib.sha256(str(file.relative_to(source)).encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64

    files = [f for f in source.rglob("*.c") if "drivers/gpu/" not in str(f.relative_to(source))]
    chosen = sorted((draw(f), f) for f in files if f.is_file() and draw(f) < SHARE)
    directory.mkdir(parents=True)
    with (directory / "text.txt").open("w", encoding="utf-8", newline="\n") as text:
        for _, file in chosen:
            text.write(f"// {file.relative_to(source)}\n{file.read_text('utf-8', 'replace')}\n")
    corpus = load_corpus(str(directory / "text.txt"))
    tokenizer = get_tokenizer(f"bpe:{VOCABULARY}", corpus, VAL_FRACTION, print_progress)
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer.to_json()))
    for split in SPLITS:
        ids = encode_corpus(corpus, tokenizer, split, VAL_FRACTION, print_progress).ids
        ids.astype("<u2").tofile(directory / f"{split}.bin")
        print(f"{split}: {len(ids):,} tokens; {corpus.facts.bytes:,} bytes in the whole text")


def print_progress(task: str, done: int, total: int) -> None:
    """Print how much of a task is done."""
    print(f"\r{task} {done:,} of {total:,}", end="", file=sys.stderr)


def train_preset(preset: str, data: Path, out: Path, steps: int, flags: list[str]) -> Any:
    """Train a preset of nanogpt in a new process; return its result."""
    start, log = time.time(), out / "output.txt"
    command = [sys.executable, "-m", "nanogpt", "train", preset, "--data", str(data), *flags]
    command += ["--tokenizer", str(data / "tokenizer.json"), "--train.steps", str(steps)]
    if not any(flag.startswith("--optim.warmup") for flag in flags):
        command += ["--optim.warmup", str(WARMUP)]
    command += ["--train.log-every", "5", "--out", str(out / "run"), "--sample-tokens", "400"]
    with log.open("w") as file:
        subprocess.run(command, stdout=file, stderr=file, check=True)
    records = [json.loads(line) for line in (out / "run/metrics.jsonl").read_text().splitlines()]
    started = time.time() - start - records[-1]["seconds"]
    evaluations = [
        {"step": r["step"], "seconds": round(started + r["seconds"], 1), "val_loss": r["val_loss"]}
        for r in records
        if "val_loss" in r
    ]
    plain = [
        (b["tokens"] - a["tokens"]) / (b["seconds"] - a["seconds"])
        for a, b in pairwise(records)
        if "val_loss" not in a and a["step"] >= 5
    ]
    return {"tokens_per_second": median(plain), "evaluations": evaluations}


@contextmanager
def copy_nanogpt(checkout: Path, data: Path) -> Iterator[Path]:
    """Within this context, there is a copy of nanoGPT with the dataset `kernel`."""
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / "nanoGPT"
        shutil.copytree(checkout, copy)
        (copy / "data/kernel").symlink_to(data.resolve())
        yield copy


def start_nanogpt(checkout: Path, data: Path, out: Path, steps: int, flags: list[str]) -> Any:
    """Train with a copy of nanoGPT in a new process; return its result."""
    with copy_nanogpt(checkout, data) as copy:
        command = [sys.executable, __file__, "inside", str(copy), str(data), str(steps)]
        command += [str(time.time()), *flags]
        log = out / "output.txt"
        with log.open("w") as file:
            result = subprocess.run(command, stdout=subprocess.PIPE, stderr=file, check=True)
    times = re.findall(r"iter (\d+): loss [\d.]+, time ([\d.]+)ms", log.read_text())
    plain = [float(ms) for step, ms in times if 5 <= int(step) < steps]
    rate = BATCH * CONTEXT / (median(plain) / 1000)
    return {"tokens_per_second": rate, "evaluations": json.loads(result.stdout.splitlines()[-1])}


def train_inside(
    checkout: Path, data: Path, steps: int, start: float, flags: list[str]
) -> list[dict[str, float]]:
    """Train with nanoGPT in this process; return the evaluation of its last weights."""
    settings = {
        "dataset": "kernel",
        "batch_size": BATCH // PARTS,
        "gradient_accumulation_steps": PARTS,
        **NANOGPT,
        "lr_decay_iters": steps,
        "max_iters": steps,
        "eval_interval": steps,
        "eval_iters": 5,
    }
    flags = [*(f"--{name}={value}" for name, value in settings.items()), *flags]
    data = data.resolve()
    with tempfile.TemporaryDirectory() as folder:
        program, checkpoints = train_nanogpt.train(checkout, " ".join(flags), Path(folder), start)
        step, seconds, model_args = checkpoints[-1]
        model = program["GPT"](program["GPTConfig"](**model_args)).to(program["device"])
        model.load_state_dict(load_file(Path(folder) / str(step)))
    tokenizer = read_tokenizer(data / "tokenizer.json")
    tokens = encode_corpus(load_corpus(str(data)), tokenizer, "val")
    validation = Split(tokens, program["device"])
    loss = evaluate(train_nanogpt.Logits(model), validation).loss  # type: ignore[arg-type]
    return [{"step": step, "seconds": round(seconds, 1), "val_loss": loss}]


def main() -> None:
    """Parse the command line, and do the work."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["text", "train", "inside"])
    parser.add_argument("paths", nargs="+")
    parser.add_argument("--nanogpt", type=Path, metavar="CHECKOUT")
    parser.add_argument("--steps", type=int, default=190, help="steps of the optimizer")
    args, flags = parser.parse_known_args()
    if args.action == "text":
        write_text(Path(args.paths[0]), Path(args.paths[1]))
    elif args.action == "inside":
        checkout, tokens, steps, start = args.paths
        result = train_inside(Path(checkout), Path(tokens), int(steps), float(start), flags)
        print(json.dumps(result))
    else:
        name, data, out = args.paths[0], Path(args.paths[1]), Path(args.paths[2])
        out.mkdir(parents=True)
        if name == "nanoGPT":
            result = start_nanogpt(args.nanogpt.resolve(), data, out, args.steps, flags)
        else:
            result = train_preset(name, data, out, args.steps, flags)
        print(json.dumps({"program": name, "flags": flags, **result}))


if __name__ == "__main__":
    main()
