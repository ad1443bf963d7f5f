"""Makes the tables of the results, in Markdown, from the content of result files."""

from collections.abc import Iterable, Sequence
from itertools import product
from statistics import mean, median, stdev
from typing import Any

Result = dict[str, Any]


def make_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def get_seconds_to(target: float, run: Result) -> float:
    """Return the seconds until a run reaches the target loss; otherwise, until its lowest loss."""
    for evaluation in run["evaluations"]:
        if evaluation["val_loss"] <= target:
            return float(evaluation["seconds"])
    return float(run["best"]["seconds"])


def get_median_seconds(result: Result, program: str) -> float:
    """The median of get_seconds_to() over the runs of a program in a comparison."""
    return float(median(get_seconds_to(result["target"], run) for run in result["runs"][program]))


def get_median_loss(result: Result, program: str) -> float:
    """Take the lowest validation loss of each run of a program, and return the median."""
    return float(median(run["best"]["val_loss"] for run in result["runs"][program]))


def get_runs(result: Result) -> list[Result]:
    """The runs of a preset, and the runs with the same settings from the nanoGPT comparison."""
    return [*result["runs"], *result.get("compared", [])]


def get_losses(result: Result) -> list[float]:
    """The lowest validation loss of each run of a preset."""
    return [run["best"]["val_loss"] for run in get_runs(result)]


def versus_table(result: Result) -> str:
    """Make the table that compares nanogpt with nanoGPT on one machine; its values are medians."""
    target, runs = result["target"], result["runs"]
    first = get_median_seconds(result, "nanoGPT")
    head = [
        f"{result['device']}, torch {result['torch']}",
        "precision",
        "lowest validation loss",
        "step of the lowest loss",
        "last loss",
        "unseen text",
        f"seconds to {target}",
        "ratio",
        "seconds, whole process",
        "peak memory",
    ]
    rows = []
    for program, results in runs.items():
        loss, seconds = get_median_loss(result, program), get_median_seconds(result, program)
        unseen = [run["unseen"] for run in results if "unseen" in run]
        rows.append(
            [
                program,
                results[0].get("precision", ""),
                f"{loss:.4f}",
                f"{median(run['best']['step'] for run in results):,.0f}",
                f"{median(run['evaluations'][-1]['val_loss'] for run in results):.4f}",
                f"{median(unseen):.4f}" if unseen else "",
                f"{seconds:.1f}" + ("" if loss <= target else " (not reached)"),
                f"{first / seconds:.1f}",
                f"{median(run['seconds'] for run in results):.1f}",
                f"{median(run['megabytes'] for run in results):,.0f} MB",
            ]
        )
    repeats = len(runs["nanoGPT"])
    note = f"Medians of {repeats} runs." if repeats > 1 else "One run of each program."
    return f"{make_table(head, rows)}\n{note}\n"


def presets_table(results: Iterable[Result]) -> str:
    """Make the table of presets, with mean losses and the median seconds of the whole process."""
    head = [
        "preset",
        "hardware",
        "seconds",
        "runs",
        "validation loss",
        "range",
        "last",
        "unseen text",
    ]
    rows = []
    for result in results:
        runs, losses = get_runs(result), get_losses(result)
        precision = runs[0].get("precision")
        unseen = [run["unseen"] for run in runs if "unseen" in run]
        rows.append(
            [
                f"`{result['preset']}`",
                f"{result['hardware']}, {precision}" if precision else result["hardware"],
                f"{median(run['seconds'] for run in result['runs']):.0f}",
                str(len(runs)),
                f"{mean(losses):.4f}",
                f"{min(losses):.4f} to {max(losses):.4f}" if len(losses) > 1 else "",
                f"{mean(run['evaluations'][-1]['val_loss'] for run in runs):.4f}",
                f"{mean(unseen):.4f}" if unseen else "",
            ]
        )
    return make_table(head, rows)


def preset_samples(results: Iterable[Result], lines: int = 6) -> str:
    """The first `lines` lines of a sample from each preset."""
    return "\n".join(
        f"A sample of `{result['preset']}`:\n\n```\n"
        + "\n".join(result["runs"][0]["sample"].strip().splitlines()[:lines])
        + "\n```\n"
        for result in results
        if "sample" in result["runs"][0]
    )


def throughput_table(result: Result) -> str:
    """Make the table of training speeds, in median tokens per second."""
    peak = result["peak"]

    def row(name: str, rate: float, flops: int) -> list[str]:
        return [name, f"{rate:,.0f}", f"{rate * flops / peak:.0%}" if peak else ""]

    baby = median(result["baby"]["rates"])
    milliseconds = 1000 * 64 * 256 / baby
    name = f"`baby`, 64 × 256: {milliseconds:.2f} ms per step"
    rows = [row(name, baby, result["baby"]["flops"])]
    for program, sizes in result["gpt2"]["rates"].items():
        for size, rates in sizes.items():
            name = f"{program}, GPT-2 124M, {size} × 1,024"
            rows.append(row(name, median(rates), result["gpt2"]["flops"]))
    head = [f"{result['device']}, torch {result['torch']}", "tokens per second", "MFU"]
    return make_table(head, rows)


def get_throughput_ratio(result: Result, program: str = "nanogpt") -> float:
    """The throughput of a program divided by that of nanoGPT, each at its fastest batch size."""
    best = {
        name: max(median(rates) for rates in sizes.values())
        for name, sizes in result["gpt2"]["rates"].items()
    }
    return float(best[program] / best["nanoGPT"])


def sampling_table(result: Result) -> str:
    """Make the table of generation speeds, in median tokens per second."""
    rows = []
    for name, programs in result["rows"].items():
        first = next(iter(programs.values()))["median"]
        for program, rate in programs.items():
            ratio = f"{rate['median'] / first:.1f}" if len(programs) > 1 else ""
            rows.append([name, program, f"{rate['median']:,.0f}", ratio])
    head = [f"{result['device']}, torch {result['torch']}", "program", "tokens per second", "ratio"]
    return make_table(head, rows)


def get_sampling_ratio(result: Result, row: str, program: str) -> float:
    """The rate of nanogpt divided by the rate of another program."""
    rates = result["rows"][row]
    return float(rates["nanogpt"]["median"] / rates[program]["median"])


def corpora_table(result: Result) -> str:
    """Make the table of the time and memory that a large text needs."""
    first, second, training = result["first"], result["second"], result["training"]
    parts = ", ".join(f"{first[key]:.1f}" for key in ("read_s", "learn_s", "encode_s"))
    head = [f"{result['megabytes']:,} MB of text, `--tokenizer {result['tokenizer']}`", ""]
    rows = [
        [
            "first start, with an empty cache",
            f"{first['seconds']:.1f} s, {first['megabytes_per_second']:.1f} MB/s",
        ],
        ["parts of the first start: reading, training the tokenizer, encoding", f"{parts} s"],
        [
            "peak memory of the first start, and the part that the libraries need",
            f"{first['peak_mb']:.0f} MB, {first['imported_mb']:.0f} MB",
        ],
        ["second start, with the tokens in the cache", f"{second['seconds']:.2f} s"],
        ["training on tokens from the cache", f"{training['mapped']:,.0f} tokens/s"],
        ["training on tokens in memory", f"{training['in_memory']:,.0f} tokens/s"],
        [
            "ratio of the two rates, cache / memory",
            f"{training['mapped'] / training['in_memory']:.3f}",
        ],
    ]
    repeats = f"{result['repeats']} repeats of 20 steps each"
    note = f"Measured on {result['device']}. The training rates are medians of {repeats}."
    return f"{make_table(head, rows)}\n{note}\n"


VOCABULARIES = ("char", "byte", "bpe:512", "bpe:2048", "bpe:8192")


def vocabularies_table(result: Result) -> str:
    """Make the table of tokenizers; vocabularies.py explains "same body" and "same size"."""
    rows = []
    for same, kind in product(("body", "size"), VOCABULARIES):
        runs = [run for run in result["runs"] if (run["same"], run["tokenizer"]) == (same, kind)]
        run, bits = runs[0], [run["bits_per_byte"] for run in runs]
        rows.append(
            [
                same,
                f"`{kind}`",
                f"{run['bytes_per_token']:.2f}",
                str(run["n_embd"]),
                f"{run['parameters']:,}",
                f"{run['steps']:,}",
                f"{mean(run['best_step'] for run in runs):,.0f}",
                f"{mean(bits):.4f}" + (f" ± {stdev(bits):.4f}" if len(bits) > 1 else ""),
            ]
        )
    head = [
        "same",
        "tokenizer",
        "bytes per token",
        "channels",
        "parameters",
        "steps",
        "step of the lowest loss",
        "bits per byte",
    ]
    note = f"{result['device']}, {result['seeds']} seeds, ± standard deviation"
    return f"{make_table(head, rows)}\n{note}\n"


def checkpoints_table(results: Iterable[Result]) -> str:
    """Make the table of the time that training waits for checkpoints."""
    rows = []
    for result in results:
        cost = result["checkpoint"]
        rows.append(
            [
                f"`{result['preset']}`, {result['device']}",
                f"{cost['megabytes of last']:.1f} MB",
                f"{cost['pause in ms']:.1f} ms",
                f"{cost['share of training']:.1%}",
            ]
        )
    return make_table(
        ["", "size of `last/`", "pause per checkpoint", "share of training time"], rows
    )


def distillation_table(result: Result) -> str:
    """Make the table of the distillation study."""
    rows = []
    for group in result["groups"]:
        losses, unseen = group["losses"], group["unseen"]
        last = group["last_losses"]
        rows.append(
            [
                group["name"],
                f"{group['parameters'] / 1e6:.1f}M",
                f"{len(losses)}",
                f"**{mean(losses):.4f}** ({min(losses):.4f} to {max(losses):.4f})",
                f"{mean(last):.4f}",
                f"**{group['ensemble_loss']:.4f}**",
                f"{group['agreement']:.1%}",
                f"{mean(unseen['losses']):.4f}",
                f"{unseen['ensemble_loss']:.4f}",
                f"{group['train_loss']:.4f}",
                f"{group['seconds']:,.0f} s",
            ]
        )
    head = [
        *("models", "parameters", "seeds", "loss", "last step", "ensemble", "agreement"),
        *("unseen text", "ensemble, unseen text", "training text", "training time"),
    ]
    note = f"{result['budget']}, {result['device']}"
    return f"{make_table(head, rows)}\n{note}\n"
