"""nanoGPT and nanogpt on Tiny Shakespeare, one after the other on this machine.

    python benchmarks/versus_nanogpt.py CHECKOUT --recipe cpu     # two CPU cores: about 5 minutes
    python benchmarks/versus_nanogpt.py CHECKOUT --recipe gpu     # one large GPU: about 6 minutes

CHECKOUT is a clone of github.com/karpathy/nanoGPT; it is copied, not changed. Its train.py runs as
it is, in a process of its own, except that each checkpoint that it would write after an evaluation
is kept in memory, with the time. When it has ended, all of them are measured by our protocol: the
whole validation split, windows that do not overlap, float32. Ours is `nanogpt train PRESET`, a
process of its own too. Seconds count from process start, evaluations included; memory is the peak
of the whole process. Results go to the JSON file that --save names.
"""

import argparse
import json
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from nanogpt import corpora
from nanogpt.data import Data
from nanogpt.devices import describe
from nanogpt.evaluate import evaluate
from nanogpt.tokenizers import CharTokenizer

RECIPES = {
    # nanoGPT's README, "I only have a macbook"; its compile is off there too.
    "cpu": (
        "tiny",
        "--device=cpu --compile=False --eval_iters=20 --log_interval=1 --block_size=64 "
        "--batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 "
        "--lr_decay_iters=2000 --dropout=0.0",
    ),
    "gpu": ("baby", ""),
}


def theirs(checkout: Path, flags: str) -> dict[str, Any]:
    """Train with nanoGPT in a copy of its checkout."""
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / "nanoGPT"
        shutil.copytree(checkout, copy, ignore=shutil.ignore_patterns(".git"))
        folder = copy / "data" / "shakespeare_char"
        (folder / "input.txt").write_text(corpora.load("tinyshakespeare"), encoding="utf-8")
        subprocess.run([sys.executable, "prepare.py"], cwd=folder, check=True, stdout=sys.stderr)
        command = [sys.executable, __file__, str(copy), "--child", str(time.time())]
        output, wall, memory = timed([*command, f"--flags={flags}"])
        found: dict[str, Any] = json.loads(output.splitlines()[-1])
    # Our evaluation of its checkpoints is no part of its run.
    return {**found, "seconds": wall - found.pop("measuring"), "megabytes": memory}


def child(copy: Path, flags: str, began: float) -> None:
    """Be nanoGPT's train.py; afterwards print what its checkpoints are worth."""
    kept: list[tuple[int, float, dict[str, Tensor], dict[str, Any]]] = []

    def keep(checkpoint: dict[str, Any], _: str) -> None:
        weights = {
            name.removeprefix("_orig_mod."): tensor.cpu().clone()
            for name, tensor in checkpoint["model"].items()
        }
        seconds = time.time() - began
        kept.append((checkpoint["iter_num"], seconds, weights, checkpoint["model_args"]))

    os.chdir(copy)
    sys.path.insert(0, str(copy))
    sys.argv = ["train.py", "config/train_shakespeare_char.py", *flags.split()]
    sys.argv.append("--always_save_checkpoint=True")
    torch.save = keep  # type: ignore[assignment]
    with redirect_stdout(sys.stderr):
        program = runpy.run_path("train.py")
    ended = time.time()

    class Logits(nn.Module):
        """nanoGPT's model behind our contract: it gives all logits only when given targets."""

        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model, self.config = model, model.config

        def forward(self, tokens: Tensor) -> Tensor:
            logits: Tensor = self.model(tokens, tokens)[0]
            return logits

    text = corpora.load("tinyshakespeare")
    device = program["device"]
    data = Data(text, CharTokenizer(text), device)
    evaluations = []
    for step, seconds, weights, model_args in kept:
        model = program["GPT"](program["GPTConfig"](**model_args)).to(device)
        model.load_state_dict(weights)
        loss = evaluate(Logits(model), data).loss  # type: ignore[arg-type]
        evaluations.append({"step": step, "seconds": seconds, "val_loss": loss})
    best = min(evaluations, key=lambda e: e["val_loss"])
    measuring = time.time() - ended
    print(json.dumps({"best": best, "evaluations": evaluations, "measuring": measuring}))


def ours(preset: str, flags: list[str]) -> dict[str, Any]:
    """Train with nanogpt."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "run"
        began = time.time()
        command = [sys.executable, "-m", "nanogpt", "train", preset, "--out", str(out), *flags]
        output, wall, memory = timed(command)
        print(output, file=sys.stderr)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        before_loop = (out / "best" / "config.json").stat().st_mtime - began
        evaluations = [
            {key: line[key] for key in ("step", "seconds", "val_loss")}
            for line in lines
            if "val_loss" in line
        ]
        best = min(evaluations, key=lambda e: e["val_loss"])
        before_loop -= best["seconds"]
        for evaluation in evaluations:
            evaluation["seconds"] += before_loop
    return {"best": best, "evaluations": evaluations, "seconds": wall, "megabytes": memory}


def timed(command: list[str]) -> tuple[str, float, float]:
    """Run a command: its standard output, its seconds, its peak memory in MB."""
    began = time.time()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed")
    return output, time.time() - began, usage.ru_maxrss / 1024


def main() -> None:
    """Alternate between the two, and print what came of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--recipe", choices=RECIPES, default="cpu")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--ours", default="", help="further flags of nanogpt train")
    parser.add_argument("--save", type=Path)
    parser.add_argument("--child", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--flags", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        return child(args.checkout, args.flags, args.child)

    preset, flags = RECIPES[args.recipe]
    runs: dict[str, list[dict[str, Any]]] = {"nanoGPT": [], f"nanogpt {preset}": []}
    for _ in range(args.repeats):
        runs["nanoGPT"].append(theirs(args.checkout, flags))
        runs[f"nanogpt {preset}"].append(ours(preset, args.ours.split()))

    device = describe(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    print(f"{device}, torch {torch.__version__}, median of {args.repeats}")
    print(f"{'':14}{'best val loss':>14}{'step':>7}{'s to best':>11}{'s whole':>9}{'MB':>7}")
    for name, results in runs.items():
        middle = [
            median(result["best"][key] for result in results)
            for key in ("val_loss", "step", "seconds")
        ]
        middle += [median(result[key] for result in results) for key in ("seconds", "megabytes")]
        loss, step, to_best, whole, memory = middle
        print(f"{name:14}{loss:14.4f}{step:7.0f}{to_best:11.1f}{whole:9.1f}{memory:7.0f}")
    if args.save:
        record = {"device": device, "torch": torch.__version__, "runs": runs}
        args.save.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
