"""Runs by name, each derived from another."""

from dataclasses import dataclass, replace

from ..errors import UserError, suggest_nearest
from ..models import BigramConfig, GPTConfig, ModernConfig
from ..optim import OptimConfig
from ..system.devices import pick_device
from .config import RunConfig, TrainConfig


@dataclass(frozen=True)
class Preset:
    """A run, and what it is for."""

    config: RunConfig
    purpose: str


# nanoGPT's train_shakespeare_char, the run that everybody compares with, but for the schedule.
# nanoGPT's own, --train.steps 5000 --optim.min-lr 1e-4, overfits after a third of its steps; here
# the cosine ends about there, and at 0, for a lower loss in less time (docs/log.md).
_baby = RunConfig(
    name="baby",
    model=GPTConfig(n_layer=6, n_head=6, n_embd=384, block_size=256, dropout=0.2),
    optim=OptimConfig(lr=1e-3, min_lr=0.0, warmup=100, beta2=0.99, weight_decay=0.1),
    train=TrainConfig(steps=2000, batch_size=64, eval_every=250),
)

_tiny = replace(
    _baby,
    name="tiny",
    precision="float32",  # every machine computes in it, so that all see the same numbers
    model=GPTConfig(n_layer=4, n_head=4, n_embd=128, block_size=64),
    # So short a run sees little of the text twice: it wants a high rate and no dropout.
    optim=replace(_baby.optim, lr=5e-3, warmup=200),
    train=replace(_baby.train, steps=2400, batch_size=12, eval_every=300),
)

# Muon, a rate that falls from the first step to the last, and products in half the bytes where the
# processor has them. One evaluation, at the end: it takes as long as 50 steps (docs/log.md).
_tiny_fast = replace(
    _tiny,
    name="tiny-fast",
    precision="auto",
    model=ModernConfig(n_layer=4, n_head=2, n_embd=128, block_size=64),
    optim=OptimConfig(
        optimizer="muon",
        lr=0.03,
        muon_lr=0.05,
        schedule="linear",
        min_lr=0.0,
        warmup=0,
        beta1=0.8,
        beta2=0.95,
        momentum=0.85,
        weight_decay=0.0,
        grad_clip=0.0,
    ),
    train=TrainConfig(steps=130, batch_size=16, order="epochs", eval_every=130, eval_first=False),
)

# What tiny-fast does, on a GPU. Decay alone keeps it from learning by heart, as dropout takes time.
# Not compiled: that takes longer than these steps.
_baby_fast = replace(
    _baby,
    name="baby-fast",
    model=ModernConfig(n_layer=6, n_head=3, n_embd=384, block_size=256),
    optim=replace(
        _tiny_fast.optim, lr=5e-3, muon_lr=0.05, beta1=0.8, momentum=0.9, weight_decay=1.0
    ),
    train=replace(
        _tiny_fast.train, steps=230, batch_size=64, eval_every=230, log_every=46, compile=False
    ),
)

# Deep and narrow, with everything that keeps it from learning the text by heart.
_best = replace(
    _baby_fast,
    name="best",
    model=ModernConfig(n_layer=12, n_head=2, n_embd=256, block_size=256, dropout=0.3),
    optim=replace(
        _baby_fast.optim,
        lr=5e-3,
        muon_lr=0.03,
        beta1=0.9,
        cooldown=0.6,
        weight_decay=0.6,
        ema=0.998,
    ),
    train=replace(_baby_fast.train, steps=3500, eval_every=500, log_every=50, compile=True),
)

_bigram = replace(
    _tiny,
    name="bigram",
    model=BigramConfig(block_size=64),
    # Counting needs no regularisation, and rare pairs want large steps.
    optim=replace(_tiny.optim, lr=0.1, weight_decay=0.0),
    train=replace(_tiny.train, steps=1000, batch_size=256, eval_every=250),
)

PRESETS = {
    "bigram": Preset(_bigram, "the baseline: a table of which character follows which"),
    "tiny": Preset(_tiny, "a small GPT for a laptop; the default on a CPU"),
    "tiny-fast": Preset(_tiny_fast, "the same size, modern: the least time to a loss on a CPU"),
    "baby": Preset(_baby, "a GPT of 10.8M parameters for a GPU; the default there"),
    "baby-fast": Preset(_baby_fast, "the same size, modern: the least time to a loss on a GPU"),
    "best": Preset(_best, "deep, narrow and much restrained: the least loss on a GPU"),
}


def default_preset_name(device: str) -> str:
    """The name of the preset that suits a device: auto, cpu, cuda, cuda:N or mps.

    Raises UserError if this machine does not have that device.
    """
    return "baby" if pick_device(device).type == "cuda" else "tiny"


def get_preset(name: str) -> Preset:
    """The preset of that name. Raises UserError."""
    if name not in PRESETS:
        close, known = suggest_nearest(name, PRESETS), f"he presets are {', '.join(PRESETS)}"
        advice = f"{close} T{known}" if close else f"t{known}"
        raise UserError(f"there is no preset {name!r}: {advice}")
    return PRESETS[name]
