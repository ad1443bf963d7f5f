"""The evaluation protocol, compared with a plain loop over the text."""

import math
from dataclasses import replace

import pytest
import torch

from nanogpt.data import Data, Split, to_int64
from nanogpt.evaluate import cross_entropy, evaluate
from nanogpt.models import GPT, GPTConfig
from nanogpt.models.ensemble import Ensemble
from nanogpt.text.corpora import make_corpus
from nanogpt.text.tokenizers import CharTokenizer

CONFIG = GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=16, vocab_size=11, dropout=0.5)


@pytest.fixture
def data(text: str) -> Data:
    return Data(make_corpus(text), CharTokenizer(text))


@pytest.fixture
def model(data: Data, text: str) -> GPT:
    model = GPT(replace(CONFIG, vocab_size=len(set(text))))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def test_the_loss_is_the_mean_of_minus_log_p_over_all_tokens(model: GPT, data: Data) -> None:
    model.eval()
    tokens = data.splits["val"].tokens.tolist()
    total = 0.0
    for start in range(0, len(tokens) - 1, 16):
        window = tokens[start : start + 17]
        p = model(torch.tensor([window[:-1]])).softmax(-1)[0]
        total -= sum(math.log(p[i, token].item()) for i, token in enumerate(window[1:]))
    found = evaluate(model, data.splits["val"])
    assert found.tokens == len(tokens) - 1 == 599
    assert found.loss == pytest.approx(total / 599, rel=1e-5)
    assert found.bits_per_byte == pytest.approx(total / 599 / math.log(2), rel=1e-5)


def test_batch_size_and_dropout_do_not_change_the_loss(
    model: GPT, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.train()
    loss = evaluate(model, data.splits["val"]).loss
    assert model.training  # evaluate() restores training mode
    without = GPT(replace(model.config, dropout=0.0))
    without.load_state_dict(model.state_dict())
    assert evaluate(without, data.splits["val"]).loss == loss

    windows = Split.windows
    monkeypatch.setattr(Split, "windows", lambda self, _, block: windows(self, 1, block))
    assert evaluate(model, data.splits["val"]).loss == pytest.approx(loss, abs=1e-6)


def test_bits_per_byte_depend_on_the_number_of_bytes_not_of_characters() -> None:
    text = "é" * 40 + "à" * 40
    data = Data(make_corpus(text), CharTokenizer(text))
    found = evaluate(GPT(replace(CONFIG, vocab_size=2, block_size=4)), data.splits["train"])
    assert found.bits_per_byte == pytest.approx(found.loss / math.log(2) / 2)


def test_the_loss_is_computed_in_float32() -> None:
    logits = torch.randn(2, 3, 5).bfloat16()
    targets = torch.randint(5, (2, 3))
    expected = -logits.float().log_softmax(-1).gather(-1, targets[..., None]).mean()
    loss = cross_entropy(logits, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)


def test_an_ensemble_has_the_mean_of_the_probabilities(model: GPT, data: Data) -> None:
    other = GPT(model.config)
    models = [model.eval(), other.eval()]
    tokens = data.splits["val"].tokens[:40].long().view(4, 10)
    p = torch.stack([one(tokens).softmax(-1) for one in models]).mean(0)
    torch.testing.assert_close(Ensemble(models)(tokens), p.log())
    both = evaluate(Ensemble(models), data.splits["val"]).loss
    apart = [evaluate(one, data.splits["val"]).loss for one in models]
    assert both < sum(apart) / 2  # by Jensen's inequality
    assert evaluate(Ensemble([model, model]), data.splits["val"]).loss == pytest.approx(apart[0])


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (2, 3, 4)])
def test_the_cross_entropy_takes_any_number_of_dimensions(shape: tuple[int, ...]) -> None:
    logits, targets = torch.randn(*shape, 7), torch.randint(7, shape)
    expected = -logits.log_softmax(-1).gather(-1, targets[..., None]).mean()
    torch.testing.assert_close(cross_entropy(logits, targets), expected)


def test_any_token_ids_can_be_evaluated(model: GPT, data: Data) -> None:
    """Bits per byte need the text of the tokens, which is not known for plain ids."""
    ids = to_int64(data.splits["val"].tokens)
    found, expected = evaluate(model, Split(ids)), evaluate(model, data.splits["val"])
    assert (found.loss, found.tokens) == (expected.loss, expected.tokens)
    assert found.bits_per_byte is None
