"""The ladder from counting characters to a GPT: what each piece buys, at one budget.

Every rung adds one thing to the one before it, sees the same batches of the same text as often, and
is measured on the same validation split.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace

import torch

from ..api import load
from ..data import Data, to_int64
from ..models import GPTConfig, ModelConfig, ModernConfig, PlainConfig
from ..optim import OptimConfig
from ..runs.config import RunConfig, TrainConfig
from ..system.files import dump_json, write_atomically
from ..text import corpora
from ..text.corpora import SPLITS
from ..text.encoding import get_tokenizer
from ..train import Reporter
from .ngrams import NGrams
from .plots import draw_ladder
from .trial import make_directory, run_trial, stop_on_disk_error

LADDER_COMMAND = "nanogpt study ladder"
NGRAM_RUNGS = ("unigram", "bigram", "trigram")
SAMPLE_WIDTH = 60
"""Characters of a sample, at most."""


@dataclass(frozen=True)
class LadderConfig:
    """What the rungs are made of, and how long they are trained."""

    small: GPTConfig
    """Of the rungs before the GPT: four blocks, of which the first have one."""
    whole: GPTConfig
    """Deeper and wider: from here on."""
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
    # Made for two cores; for a GPU see the second.
    "cpu": LadderConfig(
        small=GPTConfig(n_layer=4, n_head=4, n_embd=64, block_size=64),
        whole=GPTConfig(n_layer=6, n_head=4, n_embd=128, block_size=64),
        dropout=0.1,
        optim=_optim,
        muon=_muon,
        train=TrainConfig(
            steps=1000, batch_size=12, eval_every=500, eval_first=False, compile=False
        ),
    ),
    "cuda": LadderConfig(
        small=GPTConfig(n_layer=4, n_head=6, n_embd=192, block_size=256),
        whole=GPTConfig(n_layer=6, n_head=6, n_embd=384, block_size=256),
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
    """What came of a rung."""

    name: str
    adds: str
    """What it has that the one before has not."""
    val_loss: float
    """The lowest, in nats per token."""
    bits_per_byte: float
    parameters: int
    seconds: float
    """Of training, evaluations included, or of counting."""
    sample: str


@dataclass(frozen=True)
class Ladder:
    """All of it, and what it was made with."""

    data: str
    device: str
    budget: str
    rungs: list[Rung]


def plan_rungs(size: LadderConfig) -> Iterator[tuple[str, str, ModelConfig, OptimConfig]]:
    """The rungs that are trained: name, what is new, model, optimizer."""
    small, whole, optim = size.small, size.whole, size.optim
    plain = PlainConfig(**{**asdict(small), "n_layer": 1, "n_head": 1})
    heads = replace(plain, n_head=small.n_head)
    thinks = replace(heads, feed_forward=True)
    deep = replace(thinks, n_layer=small.n_layer)
    n = small.n_layer
    yield "one-head", "attention: one head looks back", plain, optim
    yield "many-heads", f"{small.n_head} heads of the same size together", heads, optim
    yield "feed-forward", "a feed-forward layer behind them", thinks, optim
    yield "blocks", f"{n} such blocks, one after the other", deep, optim
    yield "residuals", "residual connections", replace(deep, residual=True), optim
    yield "layer-norm", "layer norm", small, optim
    yield "dropout", f"dropout {size.dropout}", replace(small, dropout=size.dropout), optim
    wide = replace(whole, dropout=size.dropout)
    shape = f"{wide.n_layer} blocks, {wide.n_embd} wide: the GPT"
    yield "gpt", shape, wide, optim
    shared = {k: v for k, v in asdict(wide).items() if k not in ("bias", "n_head")}
    modern = ModernConfig(n_head=max(1, wide.n_head // 2), **shared)
    yield "modern", "modern parts", modern, optim
    yield "muon", "Muon instead of Adam", modern, size.muon


def run_ladder(
    base: RunConfig,
    size: LadderConfig,
    reporter: Reporter,
    on_rung: Callable[[Rung], None],
) -> Ladder:
    """Make every rung that is not there yet, in directories below base.out; tells of each.

    base says what all have in common. Writes ladder.json, ladder.md and ladder.svg. Raises what
    train() raises.
    """
    assert base.out is not None
    out, rungs = make_directory(base.out), []

    def add(rung: Rung) -> None:
        rungs.append(rung)
        on_rung(rung)

    corpus = corpora.load_corpus(base.data, progress=reporter.preparing)
    tokenizer = get_tokenizer(base.tokenizer, corpus, base.val_fraction, reporter.preparing)
    data = Data(corpus, tokenizer, "cpu", base.val_fraction, reporter.preparing)
    data.require(size.small.block_size)
    train, val = (to_int64(data.splits[name].tokens) for name in SPLITS)
    start = int(val[0])
    for n, name in enumerate(NGRAM_RUNGS, 1):
        began = time.perf_counter()
        ngrams = NGrams(train, n, tokenizer.vocab_size)
        loss = ngrams.loss(val)
        seconds = time.perf_counter() - began
        written = ngrams.sample(start, 4 * SAMPLE_WIDTH, torch.Generator().manual_seed(base.seed))
        add(
            Rung(
                name=name,
                adds=("how often", "after the one before", "after the two before")[n - 1],
                val_loss=loss,
                bits_per_byte=data.splits["val"].bits_per_byte(loss),
                parameters=ngrams.parameters,
                seconds=round(seconds, 3),
                sample=find_longest_line(tokenizer.decode(written)),
            )
        )
    for name, adds, model, optim in plan_rungs(size):
        config = replace(base, name=name, out=out / name, model=model, optim=optim)
        found = run_trial(config, LADDER_COMMAND, reporter)
        best = load(out / name, "cpu")
        text = best.generate("", max_new_tokens=4 * SAMPLE_WIDTH, temperature=1.0, seed=base.seed)
        add(
            Rung(
                name=name,
                adds=adds,
                val_loss=found.val_loss,
                bits_per_byte=found.bits_per_byte,
                parameters=found.parameters,
                seconds=found.seconds,
                sample=find_longest_line(text),
            )
        )
    T = size.small.block_size
    ladder = Ladder(
        data=base.data,
        device=found.device,
        budget=f"{base.train.steps:,} steps of {base.train.batch_size} × {T} tokens",
        rungs=rungs,
    )
    with stop_on_disk_error(out):
        write_atomically(out / "ladder.json", dump_json(asdict(ladder)))
        write_atomically(out / "ladder.md", format_table(ladder).encode())
        draw_ladder(out / "ladder.svg", [(rung.name, rung.val_loss) for rung in rungs])
    return ladder


def find_longest_line(text: str) -> str:
    """The longest line of a text, cut to SAMPLE_WIDTH characters."""
    return max((line.strip() for line in text.splitlines()), key=len, default="")[:SAMPLE_WIDTH]


def format_table(ladder: Ladder) -> str:
    """The ladder in Markdown."""
    lines = [
        "| rung | adds | validation loss | gain | bits a byte | parameters | seconds | writes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    before = None
    for rung in ladder.rungs:
        gain = "" if before is None else f"{before - rung.val_loss:+.4f}"
        before = rung.val_loss
        sample = rung.sample.replace("|", "\\|").replace("`", "'")
        lines.append(
            f"| {rung.name} | {rung.adds} | {rung.val_loss:.4f} | {gain} "
            f"| {rung.bits_per_byte:.4f} | {rung.parameters:,} | {rung.seconds:,.1f} "
            f"| `{sample}` |"
        )
    said = f"{ladder.data}, {ladder.budget}, {ladder.device}"
    return "\n".join(lines) + f"\n\n{said}\n"
