"""The models: build one from its configuration, describe it, count its operations."""

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
"""The configuration class of each kind of model, by its name in a run directory."""


def build(config: ModelConfig) -> Model:
    """A newly initialised model of the shape `config`, on the current default device."""
    match config:
        case PlainConfig():  # before GPTConfig, its base class
            return Plain(config)
        case GPTConfig():
            return GPT(config)
        case ModernConfig():
            return Modern(config)
        case BigramConfig():
            return Bigram(config)


def to_json(config: ModelConfig) -> dict[str, Any]:
    """The JSON object of a model: its kind and all fields of its configuration."""
    kind = next(name for name, cls in KINDS.items() if type(config) is cls)
    return {"kind": kind, **asdict(config)}


def flops_per_token(model: Model) -> int:
    """Floating-point operations of a training step per token: 6N + 12LCT.

    Chowdhery et al. 2022 (PaLM), appendix B. N is the number of parameters in matrix products;
    lookup tables do not count. The forward pass takes 2N operations, a multiplication and an
    addition for each parameter. In each of L blocks, attention takes 2CT for the scores and 2CT for
    the weighted mean of the values; masked ones are counted. The backward pass takes twice as many.
    """
    config = model.config
    if isinstance(config, BigramConfig):
        return 0
    parameters = model.named_parameters()
    N = sum(p.numel() for name, p in parameters if name not in model.lookup_tables)
    return 6 * N + 12 * config.n_layer * config.n_embd * config.block_size
