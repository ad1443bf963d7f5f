"""nanogpt: a GPT that one person can read in one sitting, and train in minutes.

>>> from nanogpt import GPT, GPTConfig
>>> model = GPT(GPTConfig(n_layer=4, n_head=4, n_embd=128, block_size=64))
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .checkpoint import load as load
    from .evaluate import evaluate as evaluate
    from .generate import generate as generate
    from .models import GPT as GPT
    from .models import Bigram as Bigram
    from .models import BigramConfig as BigramConfig
    from .models import GPTConfig as GPTConfig
    from .models import build as build
    from .presets import PRESETS as PRESETS
    from .tokenizers import CharTokenizer as CharTokenizer
    from .train import train as train

__version__ = "0.1.0"

# Names are imported when first used: `nanogpt --help` should not wait for torch.
_HOMES = {
    "load": "checkpoint",
    "evaluate": "evaluate",
    "generate": "generate",
    "GPT": "models",
    "Bigram": "models",
    "BigramConfig": "models",
    "GPTConfig": "models",
    "build": "models",
    "PRESETS": "presets",
    "CharTokenizer": "tokenizers",
    "train": "train",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
