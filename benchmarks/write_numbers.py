"""Write the generated parts of README.md and docs/ from the files in benchmarks/results.

    python benchmarks/write_numbers.py           # write
    python benchmarks/write_numbers.py --check   # only list outdated pages; exit 1 if there are any

A generated part of a page is the text between `<!-- results: NAME -->` and `<!-- end -->`. The
function NAME of this module returns this text. tests/test_numbers.py checks that all pages
agree with the results.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean, median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import lowest_text
import scaling_text
import torch
from tables import (
    Result,
    checkpoints_table,
    corpora_table,
    distillation_table,
    get_losses,
    get_median_loss,
    get_median_seconds,
    get_sampling_ratio,
    get_throughput_ratio,
    make_table,
    preset_samples,
    presets_table,
    sampling_table,
    throughput_table,
    versus_table,
    vocabularies_table,
)

from nanogpt.models import BigramConfig, GPTConfig, Model, ModernConfig, build, flops_per_token
from nanogpt.runs.presets import PRESETS
from nanogpt.text.tokenizers import FIXED_SIZES

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PART = re.compile(r"(<!-- results: ([\w-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
VOCABULARY = 65
"""The number of different characters in Tiny Shakespeare."""
HEART = {
    "models/bigram.py": "the baseline: predict a character from the previous character",
    "models/gpt.py": "the model: attention, feed-forward, residual blocks, embeddings",
    "data.py": "tokens, two splits, blocks, batches",
    "optim.py": "AdamW, the learning-rate schedule, weight averaging",
    "evaluate.py": "the loss of a whole split, bits per byte",
    "step.py": "one optimizer step: forward, loss, backward, clip, update",
    "train.py": "the loop: step, log, checkpoint, evaluate, keep the best weights, stop",
    "generate.py": "generation: fill the cache with the prompt, then sample tokens one by one",
}


def read_result(name: str) -> Any:
    """Read the content of a result file."""
    return json.loads((RESULTS / name).read_text("utf-8"))


def read_preset(name: str) -> Result:
    """Read a preset's runs; add the runs with the same settings from the nanoGPT comparison."""
    files = sorted(RESULTS.glob(f"preset_{name}_*.json"))
    if not files:  # only the comparison with nanoGPT measured this preset
        comparison = read_result("versus_nanogpt_h100.json")
        runs = comparison["runs"][f"nanogpt {name}"]
        return {"preset": name, "hardware": comparison["device"], "runs": runs}
    result: Result = read_result(files[0].name)
    kind = files[0].stem.rpartition("_")[2]
    compared = read_result(f"versus_nanogpt_{kind}.json")["runs"].get(f"nanogpt {name}", [])
    settings = [(result["steps"], run["precision"]) for run in result["runs"][:1]]
    result["compared"] = [
        run
        for run in compared
        if (run["evaluations"][-1]["step"], run["precision"]) in settings
        and run not in result["runs"]
    ]
    return result


def read_presets() -> list[Result]:
    """The runs of all presets except `gpt2` and `gpt2-fast`, in the order of PRESETS."""
    return [read_preset(name) for name in PRESETS if not name.startswith("gpt2")]


def read_markdown(name: str) -> str:
    """Read a table in Markdown that a study saved with its results."""
    return (RESULTS / name).read_text("utf-8").strip() + "\n"


def build_preset(name: str) -> Model:
    """Build the model of a preset on the meta device, with the vocabulary of its text."""
    config = PRESETS[name].config
    vocab_size = FIXED_SIZES.get(config.tokenizer, VOCABULARY)
    with torch.device("meta"):
        return build(replace(config.model, vocab_size=vocab_size))


def summary() -> str:
    """The table in the README that compares nanogpt with nanoGPT."""
    rates = read_result("sampling_cuda.json")
    rows = []
    for name, preset_name, hardware in (
        ("versus_nanogpt_cpu.json", "tiny-fast", "two CPU cores"),
        ("versus_nanogpt_cuda.json", "baby-fast", "one GPU"),
    ):
        result = read_result(name)
        theirs = get_median_seconds(result, "nanoGPT")
        ours = get_median_seconds(result, f"nanogpt {preset_name}")
        loss = get_median_loss(result, "nanoGPT")
        is_reached = loss <= result["target"]
        note = "" if is_reached else f"not reached; lowest loss {loss:.4f} after "
        rows.append(
            [
                f"time to a validation loss of {result['target']}",
                hardware,
                f"{note}{theirs:.1f} s",
                f"{ours:.1f} s (`{preset_name}`)",
                f"{'' if is_reached else 'more than '}{theirs / ours:.1f} times as fast",
            ]
        )
    # `result` is now the comparison on a GPU.
    loss, best = get_median_loss(result, "nanoGPT"), mean(get_losses(read_preset("best")))
    cells = f"{loss:.4f}", f"{best:.4f} (`best`)", f"{loss - best:.4f} lower"
    rows.append(["lowest validation loss", "one GPU", *cells])
    preset, target = read_preset("laptop"), result["target"]
    loss, seconds = mean(get_losses(preset)), median(run["seconds"] for run in preset["runs"])
    rows.append(
        [
            "lowest loss in three minutes",
            "two CPU cores; nanoGPT: one A100",
            f"{target} (its README)",
            f"{loss:.4f} in {seconds:.0f} s (`laptop`)",
            f"{target - loss:.4f} lower",
        ]
    )
    text = rates["rows"]["baby, 1 text"]
    rows.append(
        [
            "generation of one text",
            "one GPU",
            f"{text['nanoGPT']['median']:,.0f} tokens/s",
            f"{text['nanogpt']['median']:,.0f} tokens/s",
            f"{get_sampling_ratio(rates, 'baby, 1 text', 'nanoGPT'):.1f} times as fast",
        ]
    )
    return make_table(["", "hardware", "nanoGPT", "nanogpt", ""], rows)


def first_run() -> str:
    """The time that `nanogpt train` without arguments takes, and the loss that it reaches."""
    result = read_preset("tiny")
    seconds = median(run["seconds"] for run in result["runs"])
    return (
        f"`nanogpt train` trains a small GPT on Tiny Shakespeare and prints a text that the GPT "
        f"generates.\nThe command takes about {round(seconds, -1):.0f} seconds on two CPU cores, "
        f"reaches a validation loss of about\n{mean(get_losses(result)):.2f} nats per character, "
        f"and downloads nothing. `pytest` runs the tests.\n"
    )


def heart() -> str:
    """The table of the files that are the heart of nanogpt, with the lines of each."""
    lines = {file: len((ROOT / "nanogpt" / file).read_text("utf-8").splitlines()) for file in HEART}
    rows = [
        [f"[nanogpt/{file}](nanogpt/{file})", str(lines[file]), topic]
        for file, topic in HEART.items()
    ]
    return make_table(
        ["file", "lines", "topic"], [*rows, ["total", f"{sum(lines.values()):,}", ""]]
    )


def versus() -> str:
    """The comparisons with nanoGPT, one table for each machine."""
    files = sorted(RESULTS.glob("versus_nanogpt_*.json"))
    return "\n".join(versus_table(read_result(file.name)) for file in files)


def lowest() -> str:
    """The lowest loss of one model, and of an ensemble."""
    losses = get_losses(read_preset("best"))
    return lowest_text.describe(losses, read_result("distillation.json"))


def lowest_in_short() -> str:
    """The lowest loss of one model and of its students, in two sentences."""
    losses = get_losses(read_preset("best"))
    return lowest_text.summarise(losses, read_result("distillation.json"))


def distillation() -> str:
    """The table of the distillation study."""
    return distillation_table(read_result("distillation.json"))


def bigram() -> str:
    """The difference in loss between the bigram and the presets."""
    counted = next(r for r in read_result("ladder.json")["rungs"] if r["name"] == "bigram")
    losses = {name: mean(get_losses(read_preset(name))) for name in ("tiny", "baby", "best")}
    gains = ", ".join(
        f"{counted['val_loss'] - loss:.2f} for `{name}`" for name, loss in losses.items()
    )
    return (
        f"A bigram that only counts character pairs has a validation loss of "
        f"{counted['val_loss']:.4f} nats per character.\nThe presets have lower losses, by "
        f"{gains}.\n"
    )


def describe_preset(name: str) -> list[str]:
    """The row of a preset in the table of preset_list()."""
    config, model = PRESETS[name].config, PRESETS[name].config.model
    if isinstance(model, BigramConfig):
        shape = f"a table, {VOCABULARY} × {VOCABULARY}"
    else:
        assert isinstance(model, GPTConfig | ModernConfig)
        kind = "modern, " if isinstance(model, ModernConfig) else ""
        shape = f"{kind}{model.n_layer} layers, {model.n_head} heads, {model.n_embd} channels"
    parameters = sum(parameter.numel() for parameter in build_preset(name).parameters())
    return [
        f"`{name}`",
        shape,
        str(model.block_size),
        f"{parameters:,}",
        f"{config.train.steps:,}",
        f"{config.train.batch_size} × {model.block_size}",
        PRESETS[name].purpose,
    ]


def preset_list() -> str:
    """The presets and their settings."""
    head = ["preset", "model", "context", "parameters", "steps", "tokens per step", "purpose"]
    return make_table(head, [describe_preset(name) for name in PRESETS])


def presets() -> str:
    """The losses, times and samples of the presets."""
    return f"{presets_table(read_presets())}\n{preset_samples(read_presets())}"


def operations() -> str:
    """The operations per token in a training step, for all presets except `bigram`."""
    models = {f"`{name}`": build_preset(name) for name in PRESETS if name != "bigram"}
    rows = []
    for name, model in models.items():
        N = sum(p.numel() for n, p in model.named_parameters() if n not in model.lookup_tables)
        rows.append([name, f"{N:,}", f"{flops_per_token(model) / 1e6:.1f} million"])
    return make_table(["", "N", "operations per token"], rows)


def throughput() -> str:
    """The training speed of nanogpt and nanoGPT."""
    result = read_result("throughput.json")
    ratio = get_throughput_ratio(result)
    float8 = get_throughput_ratio(result, "nanogpt in float8")
    batches = max(len(rates) for rates in result["gpt2"]["rates"].values())
    comment = " (each program at its fastest batch size in the table)" if batches > 1 else ""
    return (
        f"{throughput_table(result)}\nWith GPT-2's shape, nanogpt trains {ratio:.3f} times as fast "
        f"as nanoGPT; in [float8](#float8),\n{float8:.3f} times as fast{comment}.\n"
    )


def sampling() -> str:
    """The generation speed, compared with nanoGPT and `transformers`."""
    gpu, cpu = read_result("sampling_cuda.json"), read_result("sampling_cpu.json")
    many = gpu["rows"]["baby, 64 texts"]["nanogpt"]["median"]
    return (
        f"{sampling_table(gpu)}\n{sampling_table(cpu)}\n"
        f"With a model of the shape of `baby`, nanogpt generates one text "
        f"{get_sampling_ratio(gpu, 'baby, 1 text', 'nanoGPT'):.1f} times as fast as nanoGPT on "
        f"a\nGPU and {get_sampling_ratio(cpu, 'baby, 1 text', 'nanoGPT'):.1f} times as fast on two "
        f"CPU cores. nanoGPT has no cache: it sends the whole context through\nthe model for each "
        f"token. With a model of the shape of GPT-2, nanogpt generates one text "
        f"{get_sampling_ratio(gpu, 'GPT-2, 1 text', 'transformers'):.1f} times as fast\n"
        f"as `generate()` of `transformers` with a static cache. With the shape of `baby`, "
        f"nanogpt\ngenerates {many:,.0f} tokens per second for 64 texts in one batch; the goal is "
        f"200,000.\n"
    )


def corpora() -> str:
    """The time and memory that a large text needs."""
    return corpora_table(read_result("corpora.json"))


def vocabularies() -> str:
    """The comparison of tokenizers."""
    result = read_result("vocabularies.json")

    def gain(same: str) -> float:
        bits = {
            kind: mean(
                run["bits_per_byte"]
                for run in result["runs"]
                if (run["same"], run["tokenizer"]) == (same, kind)
            )
            for kind in ("char", "bpe:2048")
        }
        return float(bits["char"] - bits["bpe:2048"])

    return (
        f"{vocabularies_table(result)}\nCompared with characters, a vocabulary of 2,048 "
        f"byte-pair tokens lowers the loss\n"
        f"by {gain('body'):.2f} bits per byte with the same body, and by {gain('size'):.2f} with "
        f"the same size.\n"
    )


def ladder() -> str:
    """The table of the ladder study, from counting to a GPT."""
    return read_markdown("ladder.md")


def scaling() -> str:
    """The tables of the scaling study."""
    return read_markdown("scaling/scaling.md")


def scaling_findings() -> str:
    """The conclusions of the scaling study."""
    return scaling_text.findings(read_result("scaling/scaling.json"))


def checkpoint_cost() -> str:
    """The time that training waits for checkpoints."""
    return checkpoints_table([read_result(f"checkpoints_{kind}.json") for kind in ("cpu", "cuda")])


PARTS: dict[str, Callable[[], str]] = {
    part.__name__: part
    for part in (
        summary,
        first_run,
        heart,
        versus,
        lowest,
        lowest_in_short,
        bigram,
        preset_list,
        presets,
        operations,
        throughput,
        sampling,
        corpora,
        vocabularies,
        ladder,
        distillation,
        scaling,
        scaling_findings,
        checkpoint_cost,
    )
}


def render(page: str) -> str:
    """Return a page with updated generated parts. Raises KeyError if a part is unknown."""
    return PART.sub(lambda part: f"{part[1]}{PARTS[part[2]]()}{part[4]}", page)


def find_pages() -> list[Path]:
    """Return the paths of README.md and docs/*.md; no other page can have generated parts."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def main() -> None:
    """Update the pages that differ from the results; with --check, only list these pages."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="only list the pages that differ")
    args = parser.parse_args()
    pages = {page: page.read_text("utf-8") for page in find_pages()}
    differing = [page for page, text in pages.items() if render(text) != text]
    for page in differing:
        print(page.relative_to(ROOT))
        if not args.check:
            page.write_text(render(pages[page]), encoding="utf-8", newline="\n")
    sys.exit(1 if args.check and differing else 0)


if __name__ == "__main__":
    main()
