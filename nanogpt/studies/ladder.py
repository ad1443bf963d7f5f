"""The ladder study: what each part of a GPT contributes.

A rung is one model of the ladder. The first rungs count n-grams; the later rungs are trained. Each
trained rung except the first adds or changes one part of the previous rung. All trained rungs use
the same batches for the same number of steps, and all rungs are evaluated on the same validation
split.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from ..api import load
from ..data import Data, to_int64
from ..models import GPTConfig, ModelConfig, ModernConfig, PlainConfig
from ..optim import OptimConfig
from ..runs.config import RunConfig, TrainConfig
from ..runs.directory import find_tokenizer
from ..runs.reporter import Reporter
from ..runs.start import require_tokens
from ..system.files import dump_json, write_output
from ..text import corpora
from ..text.corpora import SPLITS
from ..text.encoding import get_tokenizer
from ..text.kneser_ney import MAX_ORDER, KneserNey, choose_order
from ..text.ngrams import Integers, NGramCounts
from .plots import draw_ladder
from .trial import make_directory, run_trial, stop_on_disk_error

LADDER_COMMAND = "nanogpt study ladder"
KNESER_NEY = "kneser-ney"
COUNTED_RUNGS = {
    "unigram": "counts of each token",
    "bigram": "counts after the previous token",
    "trigram": "counts after the previous two tokens",
    KNESER_NEY: f"counts after up to {MAX_ORDER - 1} tokens, smoothed",
}
"""The rungs that only count n-grams: their names, and the parts that they add."""
Weigh = Callable[[list[int]], NDArray[np.number]]
"""Returns the weight (V,) of each possible next token, given the tokens so far."""
SAMPLE_WIDTH = 60
"""Maximum number of characters in a sample."""


@dataclass(frozen=True)
class LadderConfig:
    """The models of the rungs, and their training settings."""

    small: GPTConfig
    """The shape of the rungs `one-head` to `dropout`; the rungs before `blocks` have one block."""
    large: GPTConfig
    """The deeper and wider shape of the rungs from `gpt` on."""
    dropout: float
    optim: OptimConfig
    muon: OptimConfig
    train: TrainConfig


_optim = OptimConfig(lr=2e-3, min_lr=0.0, warmup=100, beta2=0.99)
_muon = OptimConfig(
    optimizer="muon",
    lr=0.01,
    muon_lr=0.03,
    schedule="linear",
    min_lr=0.0,
    warmup=0,
    beta2=0.95,
    momentum=0.9,
    weight_decay=0.3,
    grad_clip=0.0,
)

LADDER_CONFIGS = {
    # These models are small enough for two CPU cores.
    "cpu": LadderConfig(
        small=GPTConfig(n_layer=4, n_head=4, n_embd=64, block_size=64),
        large=GPTConfig(n_layer=6, n_head=4, n_embd=128, block_size=64),
        dropout=0.1,
        optim=_optim,
        muon=_muon,
        train=TrainConfig(
            steps=1000, batch_size=12, eval_every=500, eval_first=False, compile=False
        ),
    ),
    "cuda": LadderConfig(
        small=GPTConfig(n_layer=4, n_head=6, n_embd=192, block_size=256),
        large=GPTConfig(n_layer=6, n_head=6, n_embd=384, block_size=256),
        dropout=0.2,
        optim=_optim,
        muon=replace(_muon, lr=5e-3, muon_lr=0.02, weight_decay=1.2),
        train=TrainConfig(
            steps=1000, batch_size=64, eval_every=100, eval_first=False, compile=False
        ),
    ),
}


@dataclass(frozen=True)
class Rung:
    """The result of one rung."""

    name: str
    adds: str
    """The part that the previous rung does not have."""
    val_loss: float
    """Lowest validation loss, in nats per token."""
    bits_per_byte: float | None
    parameters: int
    seconds: float
    """Time for training and evaluation, or for counting n-grams and evaluation."""
    sample: str


@dataclass(frozen=True)
class Ladder:
    """The result of the study."""

    data: str
    device: str
    budget: str
    """Steps, batch size and block size of all trained rungs."""
    rungs: list[Rung]


def plan_rungs(config: LadderConfig) -> Iterator[tuple[str, str, ModelConfig, OptimConfig]]:
    """For each trained rung, yield its name, the part that it adds, its model and its optimizer."""
    small, optim = config.small, config.optim
    one_head = PlainConfig(**{**asdict(small), "n_layer": 1, "n_head": 1})
    many_heads = replace(one_head, n_head=small.n_head)
    feed_forward = replace(many_heads, feed_forward=True)
    blocks = replace(feed_forward, n_layer=small.n_layer)
    yield "one-head", "one attention head", one_head, optim
    yield (
        "many-heads",
        f"{small.n_head} heads with the same total number of channels",
        many_heads,
        optim,
    )
    yield "feed-forward", "a feed-forward layer after attention", feed_forward, optim
    yield "blocks", f"{small.n_layer} blocks", blocks, optim
    yield "residuals", "residual connections", replace(blocks, residual=True), optim
    yield "layer-norm", "layer norm", small, optim
    yield "dropout", f"dropout {config.dropout}", replace(small, dropout=config.dropout), optim
    gpt = replace(config.large, dropout=config.dropout)
    yield "gpt", f"{gpt.n_layer} blocks of {gpt.n_embd} channels", gpt, optim
    shared = {k: v for k, v in asdict(gpt).items() if k not in ("bias", "n_head")}
    modern = ModernConfig(n_head=max(1, gpt.n_head // 2), **shared)
    yield "modern", "modern architecture", modern, optim
    yield "muon", "Muon instead of AdamW", modern, config.muon


def run_ladder(
    base: RunConfig,
    config: LadderConfig,
    reporter: Reporter,
    on_rung: Callable[[Rung], None],
) -> Ladder:
    """Run all rungs, and call `on_rung` with each result.

    `base` contains the settings that the rungs share. Each trained rung has a subdirectory of
    base.out. Rungs that an earlier call finished are not trained again. Writes ladder.json,
    ladder.md and ladder.svg. Raises UserError, Stopped or Interrupted.
    """
    assert base.out is not None
    out, rungs = make_directory(base.out), []

    def add(rung: Rung) -> None:
        rungs.append(rung)
        on_rung(rung)

    corpus = corpora.load_corpus(base.data, base.column, base.separator, reporter.preparing)
    kind = find_tokenizer(base.tokenizer)
    tokenizer = get_tokenizer(kind, corpus, base.val_fraction, reporter.preparing)
    data = Data(corpus, tokenizer, "cpu", base.val_fraction, reporter.preparing)
    require_tokens(data.splits.items(), config.small.block_size, option=None)
    train, val = (to_int64(data.splits[name].tokens).numpy() for name in SPLITS)
    for n, (name, adds) in enumerate(COUNTED_RUNGS.items(), 1):
        start_time = time.perf_counter()
        loss, weigh, parameters = count_rung(name, n, train, val, tokenizer.vocab_size)
        seconds = time.perf_counter() - start_time
        generator = torch.Generator().manual_seed(base.seed)
        sample = sample_tokens(weigh, int(val[0]), 4 * SAMPLE_WIDTH, generator)
        add(
            Rung(
                name=name,
                adds=adds,
                val_loss=loss,
                bits_per_byte=data.splits["val"].bits_per_byte(loss),
                parameters=parameters,
                seconds=round(seconds, 3),
                sample=find_longest_line(tokenizer.decode(sample)),
            )
        )
    for name, adds, model, optim in plan_rungs(config):
        run_config = replace(base, name=name, out=out / name, model=model, optim=optim)
        trial = run_trial(run_config, LADDER_COMMAND, reporter)
        trained = load(out / name, "cpu")
        text = trained.generate(
            "", max_new_tokens=4 * SAMPLE_WIDTH, temperature=1.0, seed=base.seed
        )
        add(
            Rung(
                name=name,
                adds=adds,
                val_loss=trial.val_loss,
                bits_per_byte=trial.bits_per_byte,
                parameters=trial.parameters,
                seconds=trial.seconds,
                sample=find_longest_line(text),
            )
        )
    T = config.small.block_size
    ladder = Ladder(
        data=base.data,
        device=trial.device,
        budget=f"{base.train.steps:,} steps of {base.train.batch_size} × {T} tokens",
        rungs=rungs,
    )
    with stop_on_disk_error(out):
        write_output(out / "ladder.json", dump_json(asdict(ladder)))
        write_output(out / "ladder.md", format_table(ladder).encode())
        draw_ladder(out / "ladder.svg", [(rung.name, rung.val_loss) for rung in rungs])
    return ladder


def count_rung(
    name: str, n: int, train: Integers, val: Integers, V: int
) -> tuple[float, Weigh, int]:
    """Count the n-grams of `train` for a rung of COUNTED_RUNGS.

    Returns three values: the loss on `val`; a function that returns the weight of each possible
    next token; and the number of n-grams.
    """
    if name == KNESER_NEY:
        model = KneserNey(train, choose_order(V), V)
        return model.loss(val), model.next_probabilities, len(model)
    counts = NGramCounts(train, n, V)
    loss = counts.loss(NGramCounts(val, n, V))
    return loss, lambda tokens: counts.count_followers(tokens) + 1.0, len(counts)


def sample_tokens(weigh: Weigh, start: int, length: int, generator: torch.Generator) -> list[int]:
    """Sample a sequence of tokens (length,) after the token `start`."""
    tokens = [start] * MAX_ORDER
    for _ in range(length):
        weights = torch.from_numpy(weigh(tokens)).double()  # (V,)
        tokens.append(int(torch.multinomial(weights, 1, generator=generator)))
    return tokens[-length:]


def find_longest_line(text: str) -> str:
    """Return the longest line of a text, truncated to SAMPLE_WIDTH characters."""
    return max((line.strip() for line in text.splitlines()), key=len, default="")[:SAMPLE_WIDTH]


def format_bits(bits_per_byte: float | None) -> str:
    """Format bits per byte; return a dash if they are unknown (see Split.bits_per_byte())."""
    return "–" if bits_per_byte is None else f"{bits_per_byte:.4f}"


def format_table(ladder: Ladder) -> str:
    """Return the ladder as a Markdown table."""
    lines = [
        "| rung | adds | validation loss | gain | bits per byte | parameters | seconds | sample |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    previous_loss = None
    for rung in ladder.rungs:
        gain = "" if previous_loss is None else f"{previous_loss - rung.val_loss:+.4f}"
        previous_loss = rung.val_loss
        sample = rung.sample.replace("|", "\\|").replace("`", "'")
        lines.append(
            f"| {rung.name} | {rung.adds} | {rung.val_loss:.4f} | {gain} "
            f"| {format_bits(rung.bits_per_byte)} | {rung.parameters:,} | {rung.seconds:,.1f} "
            f"| `{sample}` |"
        )
    return "\n".join(lines) + f"\n\n{ladder.data}, {ladder.budget}, {ladder.device}\n"
