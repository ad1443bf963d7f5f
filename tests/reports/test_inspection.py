"""The page of an inspection has the values that the model computes."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from nanogpt.errors import UserError
from nanogpt.models import (
    BigramConfig,
    GPTConfig,
    Model,
    ModelConfig,
    ModernConfig,
    PlainConfig,
    build,
)
from nanogpt.reports import inspection
from nanogpt.reports.inspection import Inspection, inspect_text, project_to_plane, render_page
from nanogpt.text.bpe import HubTokenizer
from nanogpt.text.tokenizers import ByteTokenizer, CharTokenizer
from tests.families import end_of_word

Command = Callable[..., tuple[int, str, str]]
LETTERS = CharTokenizer("\n abcdefgh</script>")
V = LETTERS.vocab_size
MODELS: dict[str, ModelConfig] = {
    "gpt": GPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=16, vocab_size=V),
    "modern": ModernConfig(n_layer=3, n_head=1, n_embd=16, block_size=16, vocab_size=V),
    "skips": ModernConfig(n_layer=3, n_head=1, n_embd=16, block_size=16, vocab_size=V, skips=True),
    "plain": PlainConfig(n_layer=1, n_head=4, n_embd=16, block_size=16, vocab_size=V),
    "bigram": BigramConfig(vocab_size=V, block_size=16),
}
TEXT = "bad cab\nhead"


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Model:
    """A model of each kind; its large random weights make the probabilities clearly different."""
    model = build(MODELS[request.param])
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.4)
    return model.eval()


def read_data(inspection: Inspection) -> dict[str, Any]:
    """Read the data in the page of an inspection."""
    raw = re.search(r'id="data">(.*?)</script>', render_page(inspection), re.DOTALL)
    assert raw
    data: dict[str, Any] = json.loads(raw[1])
    return data


def test_values_equal_those_of_the_model(model: Model) -> None:
    data = read_data(inspect_text(model, LETTERS, TEXT, "a title"))
    ids = torch.tensor([LETTERS.encode(TEXT)])
    p = model(ids)[0].softmax(-1)
    assert "".join(data["tokens"]).replace("·", " ").replace("↵", "\n") == TEXT
    for t, predictions in enumerate(data["predictions"]):
        best = p[t].topk(len(predictions)).values.tolist()
        assert [prediction["p"] for prediction in predictions] == pytest.approx(best, abs=1e-4)
        top = LETTERS.decode([int(p[t].argmax())]).replace(" ", "·").replace("\n", "↵")
        assert predictions[0]["token"] == top
    probabilities = [p[t, ids[0, t + 1]].item() for t in range(len(TEXT) - 1)]
    assert data["probabilities"] == pytest.approx(probabilities, abs=1e-4)
    loss = torch.nn.functional.cross_entropy(model(ids)[0, :-1], ids[0, 1:])
    assert data["loss"] == pytest.approx(loss.item(), rel=1e-4)
    order = p[:-1].argsort(descending=True)
    ranks = [row.tolist().index(target) + 1 for row, target in zip(order, ids[0, 1:], strict=True)]
    assert data["ranks"] == ranks
    assert data["lens_probabilities"][-1] == data["probabilities"]
    assert [prediction["p"] for prediction in data["lens_predictions"][-1]] == pytest.approx(
        p.max(-1).values.tolist(), abs=1e-4
    )
    if isinstance(model.config, BigramConfig):
        assert (len(data["lens_predictions"]), data["attention"]) == (1, [])
        return
    assert len(data["lens_predictions"]) == model.config.n_layer + 1
    weights = model.attention_weights(ids)[:, 0]
    assert len(data["attention"]) == len(weights)
    for layer, heads in enumerate(data["attention"]):
        for head, rows in enumerate(heads):
            for t, row in enumerate(rows):
                expected = weights[layer, head, t, : t + 1].tolist()
                assert row == pytest.approx(expected, abs=1e-4)


def test_logit_lens_equals_the_model_with_fewer_blocks() -> None:
    model = build(MODELS["modern"]).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.4)
    result = inspect_text(model, LETTERS, TEXT, "")
    ids = torch.tensor([LETTERS.encode(TEXT)])
    blocks = model.get_submodule("blocks")
    for layer in range(3, -1, -1):
        assert isinstance(blocks, torch.nn.ModuleList)
        model.blocks = blocks[:layer]
        p = model(ids)[0].softmax(-1)
        expected = p.max(-1).values.tolist()
        lens = [prediction.p for prediction in result.lens_predictions[layer]]
        assert lens == pytest.approx(expected, abs=1e-4)
        probabilities = p[:-1].gather(1, ids[0, 1:, None])[:, 0].tolist()
        assert result.lens_probabilities[layer] == pytest.approx(probabilities, abs=1e-4)


def test_plane_has_the_largest_variance() -> None:
    basis = torch.linalg.qr(torch.randn(6, 6)).Q
    inside = torch.randn(50, 6) * torch.tensor([5.0, 2.0, 0.1, 0.1, 0.1, 0.1])
    places, explained = project_to_plane(inside @ basis.T + 7)
    covariance = torch.cov((inside @ basis.T).T)
    largest = torch.linalg.eigvalsh(covariance).flip(0)
    torch.testing.assert_close(places.var(dim=0), largest[:2], rtol=1e-3, atol=0)
    assert explained == pytest.approx((largest[:2].sum() / largest.sum()).item(), rel=1e-3)
    assert project_to_plane(torch.ones(3, 1))[0].shape == (3, 2)


def test_text_cannot_end_the_script() -> None:
    result = inspect_text(build(MODELS["gpt"]), LETTERS, "</script>", "</script><b>")
    assert render_page(result).count("</script>") == 2
    data = read_data(result)
    assert "".join(data["tokens"]) == "</script>"


def test_model_reads_tokens_that_are_not_shown(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "abcdefgh bad cab"
    whole = inspect_text(model, LETTERS, "head" + text, "")  # 20 tokens, but block_size is 16
    assert ("".join(whole.tokens), whole.n_hidden) == (text.replace(" ", "·"), 0)
    assert not any(weight for layer in whole.hidden_attention for head in layer for weight in head)
    monkeypatch.setattr(inspection, "SHOWN_TOKENS", 6)
    end = inspect_text(model, LETTERS, "head" + text, "")
    assert (end.tokens, end.n_hidden) == (whole.tokens[10:], 10)
    assert (end.predictions, end.lens_predictions) == (
        whole.predictions[10:],
        [row[10:] for row in whole.lens_predictions],
    )
    assert (end.probabilities, end.ranks) == (whole.probabilities[10:], whole.ranks[10:])
    for layers in zip(end.attention, end.hidden_attention, whole.attention, strict=True):
        for rows, earlier, expected in zip(*layers, strict=True):
            assert rows == [row[10:] for row in expected[10:]]
            sums = [sum(row[:10]) for row in expected[10:]]
            assert earlier == pytest.approx(sums, abs=2e-3)


def test_plane_of_a_large_vocabulary_has_text_and_predictions() -> None:
    model = build(GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=8, vocab_size=256))
    result = inspect_text(model, ByteTokenizer(), "cab", "")
    plotted = {point.token for point in result.embedding}
    predicted = {prediction.token for row in result.predictions for prediction in row}
    assert plotted == {*"cab"} | predicted
    assert (result.vocab_size, len(result.embedding) < 40) == (256, True)


def test_incomplete_characters_are_shown_in_hexadecimal() -> None:
    model = build(GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=8, vocab_size=256))
    assert inspect_text(model, ByteTokenizer(), "é\0", "").tokens == ["\\xc3", "\\xa9", "\\u0000"]


def test_one_token_is_enough() -> None:
    result = inspect_text(build(MODELS["gpt"]), LETTERS, "a", "")
    assert (result.probabilities, result.attention[0][0]) == ([], [[1.0]])


def test_unknown_character_is_a_user_error() -> None:
    with pytest.raises(UserError, match="'Q'"):
        inspect_text(build(MODELS["gpt"]), LETTERS, "Q", "")


def test_a_text_without_tokens_is_refused(model: Model) -> None:
    """The tokenizer drops spaces and has no token for unknown text."""
    hub = end_of_word()
    hub.model.unk_token = None
    tokenizer = HubTokenizer(json.loads(hub.to_str()))
    for text in ("", " ", "\n\n", "😀"):
        with pytest.raises(UserError, match="has no tokens: the tokenizer drops it"):
            inspect_text(model, tokenizer, text, "title")
    model = build(replace(model.config, vocab_size=tokenizer.vocab_size))
    assert len(inspect_text(model, tokenizer, "to be", "title").tokens) == 2
