"""Each preset has its documented size, and each device has its default preset."""

import pytest
import torch

from nanogpt.errors import UserError
from nanogpt.models import GPTConfig, build
from nanogpt.runs.presets import PRESETS, default_preset_name

PARAMETERS = {
    "bigram": 65 * 65,
    "tiny": 809_856,
    "tiny-fast": 819_712,
    "laptop": 1_512_000,
    "baby": 10_770_816,
    "baby-fast": 10_667_520,
    "best": 9_520_134,
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_its_documented_number_of_parameters(name: str) -> None:
    config = PRESETS[name].config
    assert config.name == name
    assert sum(p.numel() for p in build(config.model).parameters()) == PARAMETERS[name]


def test_baby_has_the_settings_of_karpathys_nanogpt_for_shakespeare() -> None:
    config = PRESETS["baby"].config
    shape = GPTConfig(n_layer=6, n_head=6, n_embd=384, block_size=256, vocab_size=65, dropout=0.2)
    assert config.model == shape
    assert (config.train.batch_size, config.optim.lr, config.optim.beta2) == (64, 1e-3, 0.99)


@pytest.mark.parametrize(
    ("device", "preset"), [("cpu", "tiny"), ("cuda", "baby"), ("cuda:1", "baby"), ("mps", "tiny")]
)
def test_the_default_preset_suits_the_device(
    monkeypatch: pytest.MonkeyPatch, device: str, preset: str
) -> None:
    monkeypatch.setattr("nanogpt.runs.presets.pick_device", torch.device)
    assert default_preset_name(device) == preset


def test_the_default_preset_of_auto_suits_the_device_that_is_picked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for kind, preset in (("cpu", "tiny"), ("cuda", "baby"), ("mps", "tiny")):
        monkeypatch.setattr(
            "nanogpt.runs.presets.pick_device", {"auto": torch.device(kind)}.__getitem__
        )
        assert default_preset_name("auto") == preset


def test_the_default_preset_of_an_unknown_device_is_refused() -> None:
    with pytest.raises(UserError, match="there is no device 'gpu'"):
        default_preset_name("gpu")
