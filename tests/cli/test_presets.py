"""The command `nanogpt presets`."""

import re

from nanogpt.runs.presets import PRESETS

from .answers import Command


def test_every_preset_is_listed(nanogpt: Command) -> None:
    status, out, _ = nanogpt("presets")
    assert status == 0
    for name, preset in PRESETS.items():
        assert re.search(rf"{name} +.*{preset.config.train.steps:,}", out)
