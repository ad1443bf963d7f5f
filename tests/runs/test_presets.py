"""Each preset has its documented size, and each device has its default preset."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nanogpt.errors import UserError
from nanogpt.models import GPTConfig, build
from nanogpt.runs.presets import PRESETS, default_preset_name
from nanogpt.text.tokenizers import FIXED_SIZES
from tests.cli.answers import Command

PARAMETERS = {
    "bigram": 65 * 65,
    "tiny": 809_856,
    "tiny-fast": 819_712,
    "laptop": 1_512_000,
    "baby": 10_770_816,
    "baby-fast": 10_667_520,
    "best": 9_520_134,
    "gpt2": 124_439_808,
    "gpt2-fast": 162_130_944,
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_its_documented_number_of_parameters(name: str) -> None:
    config = PRESETS[name].config
    assert config.name == name
    vocab_size = FIXED_SIZES.get(config.tokenizer, config.model.vocab_size)
    with torch.device("meta"):
        model = build(replace(config.model, vocab_size=vocab_size))
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


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


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["gpt2", "gpt2-fast"])
def test_gpt2_trains_on_files_in_the_layout_of_its_dataset(
    preset: str, nanogpt: Command, text: str, small: list[str]
) -> None:
    """The files have the columns of FineWeb-Edu; the model and the batch are smaller."""
    parquet = pytest.importorskip("pyarrow.parquet")
    arrow = pytest.importorskip("pyarrow")
    Path("sample/10BT").mkdir(parents=True)
    for number in range(2):
        rows = [{"text": text, "id": f"<urn:uuid:{i}>", "token_count": 9} for i in range(2)]
        file = f"sample/10BT/00{number}_00000.parquet"
        parquet.write_table(arrow.Table.from_pylist(rows), file)
    flags = ["--data", "sample/10BT", "--tokenizer", "bpe:300", "--val-fraction", "0.1", *small]
    status, out, err = nanogpt("train", preset, *flags, "--train.accumulation", 2)
    assert (status, err) == (0, "")
    assert "sample/10BT" in out
