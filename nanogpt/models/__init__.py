"""The models, and how a configuration becomes one."""

from dataclasses import asdict
from typing import Any

from .bigram import Bigram, BigramConfig
from .gpt import GPT, GPTConfig
from .modern import Modern, ModernConfig

ModelConfig = GPTConfig | ModernConfig | BigramConfig
Model = GPT | Modern | Bigram

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
    "build",
    "to_json",
]

KINDS: dict[str, type[ModelConfig]] = {
    "gpt": GPTConfig,
    "modern": ModernConfig,
    "bigram": BigramConfig,
}
"""The name under which a run on disk records each kind of model."""


def build(config: ModelConfig) -> Model:
    """A freshly initialised model of the shape that config describes, on the CPU in float32."""
    match config:
        case GPTConfig():
            return GPT(config)
        case ModernConfig():
            return Modern(config)
        case BigramConfig():
            return Bigram(config)


def to_json(config: ModelConfig) -> dict[str, Any]:
    """What a run on disk records of a model: its kind, and every field of its configuration."""
    kind = next(name for name, cls in KINDS.items() if isinstance(config, cls))
    return {"kind": kind, **asdict(config)}
