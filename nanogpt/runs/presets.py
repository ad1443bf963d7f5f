"""Presets: named configurations. Except `baby` and `gpt2`, each is derived from another preset."""

from dataclasses import dataclass, replace

from ..errors import UserError, suggest_nearest
from ..models import BigramConfig, GPTConfig, ModernConfig
from ..optim import OptimConfig
from ..system.devices import pick_device
from .config import RunConfig, TrainConfig


@dataclass(frozen=True)
class Preset:
    """A configuration and its purpose."""

    config: RunConfig
    purpose: str
    """A short phrase for lists of presets."""


# This is the configuration train_shakespeare_char of Karpathy's nanoGPT, with a shorter schedule.
# With the schedule of nanoGPT (--train.steps 5000 --optim.min-lr 1e-4), the model overfits after a
# third of the steps. Here training ends at about that point, with a learning rate of 0: it takes
# less time and gives a lower loss (docs/log.md).
_baby = RunConfig(
    name="baby",
    model=GPTConfig(n_layer=6, n_head=6, n_embd=384, block_size=256, dropout=0.2),
    optim=OptimConfig(lr=1e-3, min_lr=0.0, warmup=100, beta2=0.99, weight_decay=0.1),
    train=TrainConfig(steps=2000, batch_size=64, eval_every=250),
)

_tiny = replace(
    _baby,
    name="tiny",
    model=GPTConfig(n_layer=4, n_head=4, n_embd=128, block_size=64),
    # A short run needs a high learning rate, but no dropout, because the model hardly overfits.
    optim=replace(_baby.optim, lr=5e-3, schedule="linear", warmup=200, weight_decay=0.4),
    train=replace(_baby.train, steps=2400, batch_size=32, eval_every=600),
)

# Uses Muon, a learning rate that falls from the first step to the last, and bfloat16 on CPUs that
# support it. The only evaluation is at the end, because an evaluation takes as long as 50 steps.
_tiny_fast = replace(
    _tiny,
    name="tiny-fast",
    model=ModernConfig(n_layer=4, n_head=2, n_embd=128, block_size=64, activation="swiglu"),
    optim=OptimConfig(
        optimizer="muon",
        lr=0.03,
        muon_lr=0.08,
        schedule="linear",
        min_lr=0.0,
        warmup=0,
        beta1=0.8,
        beta2=0.95,
        momentum=0.75,
        weight_decay=0.0,
        grad_clip=0.0,
    ),
    train=TrainConfig(steps=112, batch_size=16, order="epochs", eval_every=112, eval_first=False),
)

# The lowest loss that three minutes on two CPU cores can buy. A long context lowers the loss more
# than a larger model.
_laptop = replace(
    _tiny_fast,
    name="laptop",
    model=ModernConfig(n_layer=6, n_head=2, n_embd=144, block_size=384),
    optim=replace(
        _tiny_fast.optim,
        lr=5e-3,
        muon_lr=0.035,
        beta1=0.9,
        beta2=0.98,
        momentum=0.9,
        normalise_rows=True,
        cautious_decay=True,
        weight_decay=0.25,
        ema=0.99,
    ),
    train=replace(_tiny_fast.train, steps=1300, batch_size=8, eval_every=1300),
)

# Like tiny-fast, but for a GPU. Only weight decay limits overfitting, because dropout takes time.
# The model is not compiled, because compilation would take longer than these few steps.
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

# A deep and narrow model with U-Net skips. Dropout, weight decay, weight averaging and a mean
# teacher limit overfitting.
_best = replace(
    _baby_fast,
    name="best",
    model=ModernConfig(
        n_layer=12,
        n_head=2,
        n_embd=256,
        block_size=256,
        dropout=0.2,
        activation="swiglu",
        skips=True,
    ),
    optim=replace(
        _baby_fast.optim,
        lr=5e-3,
        muon_lr=0.03,
        beta1=0.9,
        cooldown=0.6,
        normalise_rows=True,
        cautious_decay=True,
        weight_decay=1.2,
        ema=0.998,
    ),
    train=replace(
        _baby_fast.train,
        steps=3500,
        eval_every=500,
        log_every=50,
        mean_teacher=0.3,
        compile=True,
    ),
)

_bigram = replace(
    _baby,
    name="bigram",
    precision="float32",
    model=BigramConfig(block_size=64),
    # A bigram table needs no weight decay. Rare pairs seldom get gradients, so they need a high
    # learning rate.
    optim=replace(_baby.optim, lr=0.1, warmup=200, weight_decay=0.0),
    train=replace(_baby.train, steps=1000, batch_size=256, eval_every=250),
)

# GPT-2 with 124M parameters (Radford et al. 2019). The settings of AdamW are those with which Brown
# et al. 2020 (arXiv:2005.14165, table 2.1 and appendix B) trained GPT-3 of this size. The steps use
# each token of the text about once.
_gpt2 = RunConfig(
    name="gpt2",
    data="hf:HuggingFaceFW/fineweb-edu:sample-10BT",
    tokenizer="gpt2",
    val_fraction=0.0005,
    model=GPTConfig(n_layer=12, n_head=12, n_embd=768, block_size=1024),
    optim=OptimConfig(lr=6e-4, min_lr=6e-5, warmup=700, beta2=0.95, weight_decay=0.1),
    train=TrainConfig(
        steps=19_000, batch_size=512, accumulation=16, order="epochs", eval_every=500
    ),
)

# A modern model with as many blocks and channels as gpt2, trained with Muon. On the source code of
# Linux, it needs a quarter of the steps of gpt2 for the same loss (docs/log/gpt2.md). Whether half
# of the steps are enough for web texts is not measured.
_gpt2_fast = replace(
    _gpt2,
    name="gpt2-fast",
    train=replace(_gpt2.train, steps=9500, eval_every=250),
    model=ModernConfig(n_layer=12, n_head=6, n_embd=768, block_size=1024),
    optim=OptimConfig(
        optimizer="muon",
        lr=5e-3,
        muon_lr=0.03,
        schedule="linear",
        min_lr=0.0,
        warmup=0,
        beta2=0.95,
        momentum=0.95,
        weight_decay=0.1,
        grad_clip=0.0,
    ),
)

PRESETS = {
    "bigram": Preset(_bigram, "the baseline: predicts a character from the previous character"),
    "tiny": Preset(_tiny, "a small GPT for a laptop; the default without a CUDA GPU"),
    "tiny-fast": Preset(_tiny_fast, "a modern GPT as large as tiny, tuned to train fast on a CPU"),
    "laptop": Preset(_laptop, "the lowest loss that a laptop reaches in about three minutes"),
    "baby": Preset(_baby, "a GPT of 10.8M parameters; the default on a CUDA GPU"),
    "baby-fast": Preset(_baby_fast, "a modern GPT as large as baby, tuned to train fast on a GPU"),
    "best": Preset(_best, "a deep, strongly regularised GPT, tuned for the lowest loss on a GPU"),
    "gpt2": Preset(_gpt2, "GPT-2 with 124M parameters, on texts of the web; for several GPUs"),
    "gpt2-fast": Preset(
        _gpt2_fast, "a modern GPT with as many blocks as gpt2, tuned to train fast"
    ),
}


def default_preset_name(device: str) -> str:
    """Return the name of the default preset for `device` (auto, cpu, cuda, cuda:N or mps).

    Raises UserError if this machine does not have that device.
    """
    return "baby" if pick_device(device).type == "cuda" else "tiny"


def get_preset(name: str) -> Preset:
    """Return the preset with this name. Raises UserError if it does not exist."""
    if name not in PRESETS:
        suggestion, presets = suggest_nearest(name, PRESETS), ", ".join(PRESETS)
        advice = f"{suggestion} The" if suggestion else "the"
        raise UserError(f"there is no preset {name!r}: {advice} presets are {presets}")
    return PRESETS[name]
