"""Write every number of the README and of docs/ from the files in benchmarks/results.

    python benchmarks/write_numbers.py           # write
    python benchmarks/write_numbers.py --check   # only say which pages differ

A page marks a generated part with `<!-- results: NAME -->` and `<!-- end -->`. The function NAME
below returns what stands between the two marks. The tests compare the pages with the functions.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import presets as preset_runs
import versus_nanogpt

from nanogpt.runs.presets import PRESETS

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PART = re.compile(r"(<!-- results: ([\w-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
HEART = {
    "models/bigram.py": "the baseline: predict a character from the one before it",
    "models/gpt.py": "the model: attention, feed-forward, residual blocks, embeddings",
    "data.py": "tokens, two splits, blocks, batches",
    "optim.py": "AdamW, the learning-rate schedule, weight averaging",
    "evaluate.py": "the loss of a whole split, bits per byte",
    "step.py": "one optimizer step: forward, loss, backward, clip, update",
    "train.py": "the loop: step, log, checkpoint, evaluate, keep the best, stop",
    "generate.py": "generation: prefill, decode one token, sample it",
}


def read(name: str) -> Any:
    """A result file."""
    return json.loads((RESULTS / name).read_text("utf-8"))


def read_table(name: str) -> str:
    """A table that a benchmark wrote beside its results."""
    return (RESULTS / name).read_text("utf-8").strip() + "\n"


def count_parameters(name: str) -> int:
    """The parameters of a preset, from its result file."""
    (file,) = RESULTS.glob(f"preset_{name}_*.json")
    return int(read(file.name)["runs"][0]["parameters"])


def mean_loss(name: str) -> float:
    """The mean of the lowest validation losses of a preset's runs."""
    (file,) = RESULTS.glob(f"preset_{name}_*.json")
    return mean(run["best"]["val_loss"] for run in read(file.name)["runs"])


def time_to_target(record: dict[str, Any], program: str) -> float:
    """The median seconds to the target loss, or to the lowest loss if it was not reached."""
    runs = record["runs"][program]
    return float(median(versus_nanogpt.seconds_to(record["target"], run) for run in runs))


def lowest_loss(record: dict[str, Any], program: str) -> float:
    """The median of the lowest validation losses of a program."""
    return float(median(run["best"]["val_loss"] for run in record["runs"][program]))


def summary() -> str:
    """The four rows of the README."""
    cpu, gpu = read("versus_nanogpt_cpu.json"), read("versus_nanogpt_cuda.json")
    rates = read("sampling_cuda.json")["rows"]["baby, 1 text"]
    theirs, ours = (rates[name]["median"] for name in ("nanoGPT", "nanogpt"))
    rows = []
    for record, preset, hardware in (
        (cpu, "tiny-fast", "two CPU cores"),
        (gpu, "baby-fast", gpu["device"]),
    ):
        first = time_to_target(record, "nanoGPT")
        second = time_to_target(record, f"nanogpt {preset}")
        reached = lowest_loss(record, "nanoGPT") <= record["target"]
        note = "" if reached else f" (its lowest: {lowest_loss(record, 'nanoGPT'):.4f})"
        rows.append(
            f"| seconds to a loss of {record['target']}, {hardware} | {first:.1f}{note} "
            f"| {second:.1f}, `{preset}` | {first / second:.1f} times faster |"
        )
    best = mean_loss("best")
    lowest = lowest_loss(gpu, "nanoGPT")
    return "\n".join(
        [
            "| Tiny Shakespeare, characters | nanoGPT | nanogpt | |",
            "| --- | --- | --- | --- |",
            *rows,
            f"| lowest validation loss, one GPU | {lowest:.4f} | {best:.4f}, `best` "
            f"| {lowest - best:.4f} nats lower |",
            f"| generated tokens per second, one text, one GPU | {theirs:,.0f} | {ours:,.0f} "
            f"| {ours / theirs:.1f} times faster |",
            "",
        ]
    )


def heart() -> str:
    """The eight files with their lines."""
    lines = {file: len((ROOT / "nanogpt" / file).read_text("utf-8").splitlines()) for file in HEART}
    rows = [f"| `nanogpt/{file}` | {lines[file]} | {topic} |" for file, topic in HEART.items()]
    total = f"| together | {sum(lines.values()):,} | |"
    return "\n".join(["| file | lines | topic |", "| --- | --- | --- |", *rows, total, ""])


def versus() -> str:
    """The comparisons with nanoGPT, one table for each machine."""
    files = sorted(RESULTS.glob("versus_nanogpt_*.json"))
    return "\n".join(versus_nanogpt.table(read(file.name)) for file in files)


def lowest() -> str:
    """The lowest loss of one model, and of an ensemble."""
    record = read("ensemble_cuda.json")
    (file,) = RESULTS.glob("preset_best_*.json")
    losses = [run["best"]["val_loss"] for run in read(file.name)["runs"]]
    members = ", ".join(f"{loss:.4f}" for loss in record["members"])
    commands = "\n".join(record["commands"])
    return (
        f"`best` has a validation loss of {mean(losses):.4f}, the mean of {len(losses)} seeds "
        f"({min(losses):.4f} to {max(losses):.4f}).\n"
        f"An ensemble averages the probabilities of several runs. {len(record['members'])} runs of "
        f"`best` ({members})\nhave {record['loss']:.4f} together, on {record['device']}:\n\n"
        f"```sh\n{commands}\n```\n"
    )


def bigram() -> str:
    """How far the presets are below the bigram."""
    base = read("ladder.json")["rungs"][1]["val_loss"]
    baby = lowest_loss(read("versus_nanogpt_h100.json"), "nanogpt baby")
    gains = {
        "tiny": base - mean_loss("tiny"),
        "baby": base - baby,
        "best": base - mean_loss("best"),
    }
    shown = ", ".join(f"`{name}` {gain:.2f}" for name, gain in gains.items())
    return (
        f"The bigram has a validation loss of {base:.4f} nats per character. The presets are lower "
        f"by this many\nnats per character: {shown}.\n"
    )


def presets() -> str:
    """The presets' losses, times and samples."""
    return preset_runs.rows()


def throughput() -> str:
    """Training throughput beside nanoGPT's."""
    record = read("throughput.json")
    best = {
        program: max(median(rates) for rates in sizes.values())
        for program, sizes in record["gpt2"]["rates"].items()
    }
    ratio = best["nanogpt"] / best["nanoGPT"]
    table = read_table("throughput.md").partition("\n\n")[0]
    return f"{table}\n\nAt this batch size nanogpt is {ratio:.2f} times as fast as nanoGPT.\n"


def sampling() -> str:
    """Generation beside nanoGPT's and transformers'."""
    gpu, cpu = read("sampling_cuda.json")["rows"], read("sampling_cpu.json")["rows"]

    def ratio(rows: Any, row: str, other: str) -> str:
        return f"{rows[row]['nanogpt']['median'] / rows[row][other]['median']:.1f}"

    many = gpu["baby, 64 texts"]["nanogpt"]["median"]
    return (
        f"{read_table('sampling_cuda.md')}\n{read_table('sampling_cpu.md')}\n"
        f"On the GPU, nanogpt generates one text {ratio(gpu, 'baby, 1 text', 'nanoGPT')} times as "
        f"fast as nanoGPT. In the shape of\nGPT-2 it is "
        f"{ratio(gpu, 'GPT-2, 1 text', 'transformers')} times as fast as `generate()` of "
        f"transformers with a static cache. On two cores it\ngenerates one text "
        f"{ratio(cpu, 'baby, 1 text', 'nanoGPT')} times as fast as nanoGPT, which sends the whole "
        f"context through the model for each token.\n64 texts together reach {many:,.0f} tokens a "
        f"second; the goal is 200,000.\n"
    )


def corpora() -> str:
    """How long a large text takes."""
    return read_table("corpora.md")


def vocabularies() -> str:
    """Tokenizers compared."""
    return read_table("vocabularies.md")


def ladder() -> str:
    """The ladder from counting to a GPT."""
    return read_table("ladder.md")


def scaling() -> str:
    """The tables of the scaling study."""
    return read_table("scaling/scaling.md")


PARTS: dict[str, Callable[[], str]] = {
    function.__name__: function
    for function in (
        summary,
        heart,
        versus,
        lowest,
        bigram,
        presets,
        throughput,
        sampling,
        corpora,
        vocabularies,
        ladder,
        scaling,
    )
}


def render(text: str) -> str:
    """A page with every generated part written anew. Raises KeyError for an unknown part."""
    return PART.sub(lambda part: f"{part[1]}{PARTS[part[2]]()}{part[4]}", text)


def find_pages() -> list[Path]:
    """The pages that may have generated parts."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def main() -> None:
    """Write the pages, or say which differ."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if one differs")
    args = parser.parse_args()
    assert len(PRESETS) == len(list(RESULTS.glob("preset_*.json"))) + 1  # baby is in versus
    differing = [
        page for page in find_pages() if render(page.read_text("utf-8")) != page.read_text("utf-8")
    ]
    for page in differing:
        print(page.relative_to(ROOT))
        if not args.check:
            page.write_text(render(page.read_text("utf-8")), encoding="utf-8", newline="\n")
    sys.exit(1 if args.check and differing else 0)


if __name__ == "__main__":
    main()
