"""The models, and functions that build a model, describe it and count its operations."""

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
"""The configuration class of each kind of model. The keys are the names in saved files."""


def build(config: ModelConfig) -> Model:
    """Return a newly initialised model with this configuration, on the default device of torch."""
    match config:
        case PlainConfig():  # must come before its base class, GPTConfig
            return Plain(config)
        case GPTConfig():
            return GPT(config)
        case ModernConfig():
            return Modern(config)
        case BigramConfig():
            return Bigram(config)


def to_json(config: ModelConfig) -> dict[str, Any]:
    """Return a JSON object that describes a model: its kind and its configuration."""
    kind = next(name for name, cls in KINDS.items() if type(config) is cls)
    return {"kind": kind, **asdict(config)}


def flops_per_token(model: Model) -> int:
    """Return the number of floating-point operations per token in a training step: 6N + 12LCT.

    The formula is from Chowdhery et al. 2022 (PaLM), appendix B. N is the number of parameters
    outside lookup tables. The forward pass takes 2N operations for these N parameters: one
    multiplication and one addition for each. In each of L blocks, attention over T positions with C
    channels takes 2CT operations for the scores and 2CT for the weighted mean of the values. These
    4CT operations include masked positions. The backward pass takes twice as many operations as the
    forward pass.
    """
    config = model.config
    if isinstance(config, BigramConfig):
        return 0
    parameters = model.named_parameters()
    N = sum(p.numel() for name, p in parameters if name not in model.lookup_tables)
    return 6 * N + 12 * config.n_layer * config.n_embd * config.block_size
