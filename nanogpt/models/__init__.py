"""The models, and how a configuration becomes one."""

from .bigram import Bigram, BigramConfig
from .gpt import GPT, GPTConfig

ModelConfig = GPTConfig | BigramConfig
Model = GPT | Bigram

__all__ = [
    "GPT",
    "KINDS",
    "Bigram",
    "BigramConfig",
    "GPTConfig",
    "Model",
    "ModelConfig",
    "build",
    "kind",
]

KINDS: dict[str, type[ModelConfig]] = {"gpt": GPTConfig, "bigram": BigramConfig}
"""The name under which a run on disk records each kind of model."""


def build(config: ModelConfig) -> Model:
    """A freshly initialised model of the shape that config describes, on the CPU in float32."""
    match config:
        case GPTConfig():
            return GPT(config)
        case BigramConfig():
            return Bigram(config)


def kind(config: ModelConfig) -> str:
    """The name of config's kind in KINDS."""
    return next(name for name, cls in KINDS.items() if isinstance(config, cls))
