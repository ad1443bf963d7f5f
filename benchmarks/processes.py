"""Train on one GPU and on several, and compare the speed, the memory and the losses.

    python benchmarks/processes.py DIR OUT --nanogpt CHECKOUT --processes 1 2

DIR has the tokens that `python benchmarks/kernel.py text` writes; CHECKOUT is a clone of nanoGPT.
Each run gets a directory in OUT. The option --only chooses runs by the beginnings of their names;
several calls with the same OUT add to the same result.

Models of GPT-2's size process 32 blocks of 1,024 tokens per process and step. The batches of the
other presets are the same for any number of processes, except for "baby, larger batch", with 64
blocks of 256 tokens per process. The rate of a run is the median over the lines of metrics.jsonl
that are not next to an evaluation. The measured memory is the peak of torch's allocator in the
training steps, the largest of all processes; the computed memory is that of `nanogpt explain`.
`agreement` trains small models in float32, with small buckets of gradients, and compares all losses
of 50 steps with those of one process. nanoGPT trains with its script train.py, with the same shape,
batch and tokens. The script prints a table, and saves OUT/result.json.
"""

import argparse
import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from common import save_result
from kernel import CONTEXT, NANOGPT, copy_nanogpt

BATCH = 32
"""The blocks that each process gets in a step, for models of GPT-2's size."""
SHARD, RECOMPUTE = "--train.shard", "--train.recompute"
TIMED = ["--train.no-eval-first", "--train.eval-every", "1000000", "--sample-tokens", "0"]
SMALL = ["--model.n-layer", "4", "--model.n-embd", "192", "--train.batch-size", "32"]
SMALL += ["--precision", "float32", "--train.steps", "50", "--train.log-every", "1"]
SMALL += ["--train.eval-every", "25", "--sample-tokens", "0", "--optim.warmup", "5"]
ADAMW = ["baby", "--model.dropout", "0", "--train.accumulation", "2", "--optim.ema", "0.9", *SMALL]
MUON = ["baby-fast", "--train.compile", *SMALL]
AGREEMENT = {"AdamW": ADAMW, "Muon": MUON}
"""Models of which all losses are compared with those of one process."""


def gpt2_runs(data: Path, processes: int, steps: int) -> dict[str, list[str]]:
    """Return the options of the runs with models of GPT-2's size, by name."""
    flags = ["--data", str(data), "--tokenizer", str(data / "tokenizer.json"), *TIMED]
    flags += ["--train.batch-size", str(BATCH * processes), "--train.accumulation", "1"]
    flags += ["--train.log-every", "20", "--train.steps", str(steps)]
    runs = {}
    for preset in ("gpt2", "gpt2-fast"):
        runs[preset] = [preset, *flags]
        runs[f"{preset} {RECOMPUTE}"] = [preset, *flags, RECOMPUTE]
        if processes > 1:
            runs[f"{preset} {SHARD}"] = [preset, *flags, SHARD]
            runs[f"{preset} {SHARD} {RECOMPUTE}"] = [preset, *flags, SHARD, RECOMPUTE]
    return runs


def make_runs(data: Path, processes: int, steps: int) -> dict[str, list[str]]:
    """Return the options of all runs with some number of processes, by name."""
    runs = gpt2_runs(data, processes, steps)
    for preset in ("baby", "baby-fast", "tiny", "tiny-fast"):
        runs[preset] = [preset, *TIMED, "--train.log-every", "100", "--train.steps", "2001"]
    larger = ["--train.batch-size", str(64 * processes)]
    runs["baby, larger batch"] = [*runs["baby"], *larger]
    for name, flags in AGREEMENT.items():
        runs[f"agreement {name}"] = flags
        if processes > 1:
            runs[f"agreement {name} {SHARD}"] = [*flags, SHARD]
            runs[f"agreement {name} {SHARD} {RECOMPUTE}"] = [*flags, SHARD, RECOMPUTE]
    return runs


def torchrun(processes: int) -> list[str]:
    """Return the beginning of a command that starts processes."""
    if processes == 1:
        return [sys.executable]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*launcher, "--nproc-per-node", str(processes)]


def measure(out: Path, processes: int, flags: list[str]) -> dict[str, Any]:
    """Train in new processes; return the rate, the memory and the losses."""
    out.mkdir(parents=True)
    command = [*torchrun(processes), __file__, "inside", str(out), "train", *flags]
    with (out / "output.txt").open("w") as file:
        subprocess.run([*command, "--out", str(out / "run")], stdout=file, stderr=file, check=True)
    records = [json.loads(line) for line in (out / "run/metrics.jsonl").read_text().splitlines()]
    rates = [
        (b["tokens"] - a["tokens"]) / (b["seconds"] - a["seconds"])
        for a, b in pairwise(records)
        if "val_loss" not in a and "val_loss" not in b
    ]
    peaks = [json.loads(file.read_text()) for file in out.glob("peak-*.json")]
    return {
        "rate": median(rates[1:]),
        "measured": max((peak["measured"] for peak in peaks), default=0),
        "computed": max((peak["computed"] for peak in peaks), default=0),
        "losses": [r[key] for r in records for key in ("train_loss", "val_loss") if key in r],
    }


def train_inside(out: Path, arguments: list[str]) -> None:
    """Run nanogpt in this process; write the memory of its training steps after each group."""
    import torch

    from nanogpt import train
    from nanogpt.cli.main import main as run_nanogpt
    from nanogpt.fast import parallel
    from nanogpt.runs.memory import count_memory
    from nanogpt.runs.run import Run
    from nanogpt.step import Stepper
    from nanogpt.system import distributed

    if out.name.startswith("agreement"):
        parallel.BUCKET_BYTES = 300_000  # the models are small, but need several buckets
    make_stepper = vars(train)["make_stepper"]

    def make_measured(run: Run, on_message: Any) -> Stepper:
        stepper: Stepper = make_stepper(run, on_message)
        take = stepper.take
        torch.cuda.reset_peak_memory_stats()

        def take_measured(*args: Any) -> torch.Tensor:
            results = take(*args)
            lines = count_memory(run.config, run.device, run.precision, distributed.size())
            peak = {
                "measured": torch.cuda.max_memory_allocated(),
                "computed": lines[-1].value,
            }
            (out / f"peak-{distributed.rank()}.json").write_text(json.dumps(peak))
            return results

        vars(stepper)["take"] = take_measured
        return stepper

    if torch.cuda.is_available():
        vars(train)["make_stepper"] = make_measured
    run_nanogpt(arguments)


def measure_nanogpt_script(checkout: Path, data: Path, out: Path, processes: int) -> float:
    """Return the tokens per second of nanoGPT's train.py."""
    settings = {
        **NANOGPT,
        "dataset": "kernel",
        "out_dir": out.resolve(),
        "batch_size": BATCH,
        "gradient_accumulation_steps": processes,  # of all processes together
        "max_iters": 80,
        "eval_interval": 1000000,
        "eval_iters": 1,
    }
    command = [*torchrun(processes), "train.py", "config/train_shakespeare_char.py"]
    command += [f"--{name}={value}" for name, value in settings.items()]
    with copy_nanogpt(checkout, data) as copy:
        process = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=True)
    times = [float(ms) for ms in re.findall(r"time ([\d.]+)ms", process.stdout)]
    return BATCH * CONTEXT * processes / (median(times[-50:]) / 1000)


def print_table(result: dict[str, Any]) -> None:
    """Print the rates and the memory of all runs as a Markdown table, and compare the losses."""
    print("| run | processes | tokens per second | memory | computed |\n" + "| --- " * 5 + "|")
    for name, by_processes in result.items():
        for processes, run in by_processes.items():
            if "agreement" not in name:
                keys = [key for key in ("measured", "computed") if run.get(key)]
                memory = [f"{run[key] / 1e6:,.0f} MB" for key in keys] or ["", ""]
                print(f"| {name} | {processes} | {run['rate']:,.0f} | {' | '.join(memory)} |")
    for name in AGREEMENT:
        alone = result.get(f"agreement {name}", {}).get("1")
        for other in [n for n in result if alone and n.startswith(f"agreement {name}")]:
            for processes, run in result[other].items():
                pairs = zip(alone["losses"], run["losses"], strict=True)
                print(f"{other}, {processes}: {max(abs(a - b) for a, b in pairs):.1e}")


def main() -> None:
    """Parse the command line, make the runs, and print the table."""
    if sys.argv[1:2] == ["inside"]:
        train_inside(Path(sys.argv[2]), sys.argv[3:])
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, metavar="DIR")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--nanogpt", type=Path, metavar="CHECKOUT")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=121, help="steps of models of GPT-2's size")
    parser.add_argument("--only", nargs="+", default=[""], metavar="NAME")
    args, flags = parser.parse_known_args()
    file = args.out / "result.json"
    result: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    for processes in args.processes:
        for name, options in make_runs(args.data, processes, args.steps).items():
            if name.startswith(tuple(args.only)):
                out = args.out / f"{re.sub('[^A-Za-z0-9]+', '-', name)}-{processes}"
                run = measure(out, processes, [*options, *flags])
                result.setdefault(name, {})[str(processes)] = run
                print(f"{name}, {processes}: {run['rate']:,.0f}", file=sys.stderr, flush=True)
                save_result(file, result)
        if args.nanogpt and "nanoGPT".startswith(tuple(args.only)):
            out = args.out / f"nanoGPT-{processes}"
            rate = measure_nanogpt_script(args.nanogpt, args.data, out, processes)
            result.setdefault("nanoGPT", {})[str(processes)] = {"rate": rate}
            save_result(file, result)
    print_table(result)


if __name__ == "__main__":
    main()
