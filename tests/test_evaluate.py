"""The evaluation protocol against a plain loop over the text."""

import math
from dataclasses import replace

import pytest
import torch

from nanogpt.data import Data
from nanogpt.evaluate import cross_entropy, evaluate
from nanogpt.models import GPT, GPTConfig
from nanogpt.tokenizers import CharTokenizer

CONFIG = GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=16, vocab_size=11, dropout=0.5)


@pytest.fixture
def data(text: str) -> Data:
    return Data(text, CharTokenizer(text))


@pytest.fixture
def model(data: Data, text: str) -> GPT:
    model = GPT(replace(CONFIG, vocab_size=len(set(text))))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def test_the_loss_is_minus_log_p_over_every_token(model: GPT, data: Data) -> None:
    model.eval()
    tokens = data.splits["val"].tokens.tolist()
    total = 0.0
    for start in range(0, len(tokens) - 1, 16):
        window = tokens[start : start + 17]
        p = model(torch.tensor([window[:-1]])).softmax(-1)[0]
        total -= sum(math.log(p[i, token].item()) for i, token in enumerate(window[1:]))
    found = evaluate(model, data)
    assert found.tokens == len(tokens) - 1 == 599
    assert found.loss == pytest.approx(total / 599, rel=1e-5)
    assert found.bits_per_byte == pytest.approx(total / 599 / math.log(2), rel=1e-5)


def test_neither_batch_size_nor_dropout_matter(
    model: GPT, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.train()
    loss = evaluate(model, data).loss
    assert model.training  # it is left as it was
    without = GPT(replace(model.config, dropout=0.0))
    without.load_state_dict(model.state_dict())
    assert evaluate(without, data).loss == loss

    windows = Data.windows
    monkeypatch.setattr(
        Data, "windows", lambda self, split, _, block: windows(self, split, 1, block)
    )
    assert evaluate(model, data).loss == pytest.approx(loss, abs=1e-6)


def test_bits_per_byte_count_bytes() -> None:
    text = "é" * 40 + "à" * 40
    data = Data(text, CharTokenizer(text))
    found = evaluate(GPT(replace(CONFIG, vocab_size=2, block_size=4)), data, "train")
    assert found.bits_per_byte == pytest.approx(found.loss / math.log(2) / 2)


def test_the_loss_is_computed_in_float32() -> None:
    logits = torch.randn(2, 3, 5).bfloat16()
    targets = torch.randint(5, (2, 3))
    expected = -logits.float().log_softmax(-1).gather(-1, targets[..., None]).mean()
    loss = cross_entropy(logits, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)
