"""The presets: each builds, and has the size that it is known for."""

import pytest

from nanogpt.models import GPTConfig, build
from nanogpt.runs.presets import PRESETS, default_preset

PARAMETERS = {
    "bigram": 65 * 65,
    "tiny": 809_856,
    "tiny-fast": 803_328,
    "baby": 10_770_816,
    "baby-fast": 10_667_520,
    "best": 9_470_976,
}


@pytest.mark.parametrize("name", PRESETS)
def test_it_has_the_size_it_is_known_for(name: str) -> None:
    config = PRESETS[name].config
    assert config.name == name
    assert sum(p.numel() for p in build(config.model).parameters()) == PARAMETERS[name]


def test_baby_is_the_shape_of_nanogpts() -> None:
    config = PRESETS["baby"].config
    shape = GPTConfig(n_layer=6, n_head=6, n_embd=384, block_size=256, vocab_size=65, dropout=0.2)
    assert config.model == shape
    assert (config.train.batch_size, config.optim.lr, config.optim.beta2) == (64, 1e-3, 0.99)


def test_every_kind_of_device_has_its_default() -> None:
    assert {kind: default_preset(kind) for kind in ("cpu", "cuda", "mps")} == {
        "cpu": "tiny",
        "cuda": "baby",
        "mps": "tiny",
    }
