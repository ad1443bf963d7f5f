"""The models, and how a configuration becomes one."""

from dataclasses import asdict
from typing import Any

from .bigram import Bigram, BigramConfig
from .gpt import GPT, GPTConfig
from .modern import Modern, ModernConfig
from .plain import Plain, PlainConfig

ModelConfig = GPTConfig | ModernConfig | PlainConfig | BigramConfig
Model = GPT | Modern | Plain | Bigram

__all__ = [
    "GPT",
    "KINDS",
    "Bigram",
    "BigramConfig",
    "GPTConfig",
    "Model",
    "ModelConfig",
    "Modern",
    "ModernConfig",
    "Plain",
    "PlainConfig",
    "build",
    "flops_per_token",
    "to_json",
]

KINDS: dict[str, type[ModelConfig]] = {
    "gpt": GPTConfig,
    "modern": ModernConfig,
    "plain": PlainConfig,
    "bigram": BigramConfig,
}
"""The name under which a run on disk records each kind of model."""


def build(config: ModelConfig) -> Model:
    """A freshly initialised model of the shape that config describes, on the CPU in float32."""
    match config:
        case PlainConfig():  # it is a GPTConfig, too
            return Plain(config)
        case GPTConfig():
            return GPT(config)
        case ModernConfig():
            return Modern(config)
        case BigramConfig():
            return Bigram(config)


def to_json(config: ModelConfig) -> dict[str, Any]:
    """What a run on disk records of a model: its kind, and every field of its configuration."""
    kind = next(name for name, cls in KINDS.items() if type(config) is cls)
    return {"kind": kind, **asdict(config)}


def flops_per_token(model: Model) -> int:
    """Operations of a training step for each token: 6N + 12LCT.

    Chowdhery et al. 2022 (PaLM), appendix B: every one of N parameters that tokens are multiplied
    with takes a multiplication and an addition forward and twice as many backward; so does each of
    T scores of length C in each of L blocks, and the mean of T values. Tables of which a token only
    reads a row are not in N; the half of the scores that the mask hides is counted, too.
    """
    config = model.config
    if isinstance(config, BigramConfig):
        return 0
    parameters = model.named_parameters()
    N = sum(p.numel() for name, p in parameters if name not in model.lookup_tables)
    return 6 * N + 12 * config.n_layer * config.n_embd * config.block_size
