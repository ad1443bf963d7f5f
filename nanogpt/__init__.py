"""nanogpt: a GPT that one person can read in one sitting, and train in minutes.

>>> from nanogpt import GPT, GPTConfig
>>> model = GPT(GPTConfig(n_layer=4, n_head=4, n_embd=128, block_size=64))

>>> from nanogpt import load
>>> load("runs/tiny").generate("ROMEO:", max_new_tokens=200)  # doctest: +SKIP

The module `nanogpt.train` trains a model, and `nanogpt.evaluate` measures its loss.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .version import VERSION

if TYPE_CHECKING:
    from .api import load as load
    from .models import GPT as GPT
    from .models import Bigram as Bigram
    from .models import BigramConfig as BigramConfig
    from .models import GPTConfig as GPTConfig
    from .models import Modern as Modern
    from .models import ModernConfig as ModernConfig
    from .models import build as build
    from .runs.presets import PRESETS as PRESETS
    from .text.tokenizers import CharTokenizer as CharTokenizer

__version__ = VERSION
__all__ = [
    "GPT",
    "PRESETS",
    "Bigram",
    "BigramConfig",
    "CharTokenizer",
    "GPTConfig",
    "Modern",
    "ModernConfig",
    "build",
    "load",
]


def __dir__() -> list[str]:
    """Return the names in this module, including public names that are not imported yet."""
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> object:
    """Import a public name when it is first used, so that `nanogpt --help` does not load torch."""
    if name in __all__:
        for module_name in ("models", "api", "runs.presets", "text.tokenizers"):
            module = import_module(f".{module_name}", __name__)
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
