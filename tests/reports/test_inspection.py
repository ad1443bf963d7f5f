"""The page shows what the model computes."""

import json
import re
from collections.abc import Callable

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
from nanogpt.text.tokenizers import ByteTokenizer, CharTokenizer

Command = Callable[..., tuple[int, str, str]]
LETTERS = CharTokenizer("\n abcdefgh</script>")
V = LETTERS.vocab_size
MODELS: dict[str, ModelConfig] = {
    "gpt": GPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=16, vocab_size=V),
    "modern": ModernConfig(n_layer=3, n_head=1, n_embd=16, block_size=16, vocab_size=V),
    "plain": PlainConfig(n_layer=1, n_head=4, n_embd=16, block_size=16, vocab_size=V),
    "bigram": BigramConfig(vocab_size=V, block_size=16),
}
TEXT = "bad cab\nhead"


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Model:
    """One of each kind, with numbers that differ from position to position."""
    made = build(MODELS[request.param])
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.4)
    return made.eval()


def shown(found: Inspection) -> Inspection:
    """What the page made of it has in it."""
    raw = re.search(r'id="data">(.*?)</script>', render_page(found), re.DOTALL)
    assert raw
    data: dict[str, object] = json.loads(raw[1])
    return data  # type: ignore[return-value]


def test_its_numbers_are_those_of_the_model(model: Model) -> None:
    data = json.loads(json.dumps(shown(inspect_text(model, LETTERS, TEXT, "a title"))))
    ids = torch.tensor([LETTERS.encode(TEXT)])
    p = model(ids)[0].softmax(-1)
    assert "".join(data["tokens"]).replace("␣", " ").replace("↵", "\n") == TEXT
    for t, guesses in enumerate(data["following"]):
        best = p[t].topk(len(guesses)).values.tolist()
        assert [guess["p"] for guess in guesses] == pytest.approx(best, abs=1e-4)
        top = LETTERS.decode([int(p[t].argmax())]).replace(" ", "␣").replace("\n", "↵")
        assert guesses[0]["token"] == top
    given = [p[t, ids[0, t + 1]].item() for t in range(len(TEXT) - 1)]
    assert data["given"] == pytest.approx(given, abs=1e-4)
    loss = torch.nn.functional.cross_entropy(model(ids)[0, :-1], ids[0, 1:])
    assert data["loss"] == pytest.approx(loss.item(), rel=1e-4)
    order = p[:-1].argsort(descending=True)
    ranks = [row.tolist().index(came) + 1 for row, came in zip(order, ids[0, 1:], strict=True)]
    assert data["ranks"] == ranks
    assert data["lens_given"][-1] == data["given"]
    assert [guess["p"] for guess in data["lens"][-1]] == pytest.approx(
        p.max(-1).values.tolist(), abs=1e-4
    )
    if isinstance(model.config, BigramConfig):
        assert (len(data["lens"]), data["attention"]) == (1, [])
        return
    assert len(data["lens"]) == model.config.n_layer + 1
    weights = model.attention_weights(ids)[:, 0]
    assert len(data["attention"]) == len(weights)
    for layer, heads in enumerate(data["attention"]):
        for head, rows in enumerate(heads):
            for t, row in enumerate(rows):
                expected = weights[layer, head, t, : t + 1].tolist()
                assert row == pytest.approx(expected, abs=1e-4)


def test_the_lens_is_the_model_cut_short() -> None:
    model = build(MODELS["modern"]).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.4)
    found = inspect_text(model, LETTERS, TEXT, "")
    ids = torch.tensor([LETTERS.encode(TEXT)])
    blocks = model.get_submodule("blocks")
    for layer in range(3, -1, -1):
        assert isinstance(blocks, torch.nn.ModuleList)
        model.blocks = blocks[:layer]
        p = model(ids)[0].softmax(-1)
        expected = p.max(-1).values.tolist()
        assert [guess.p for guess in found.lens[layer]] == pytest.approx(expected, abs=1e-4)
        came = p[:-1].gather(1, ids[0, 1:, None])[:, 0].tolist()
        assert found.lens_given[layer] == pytest.approx(came, abs=1e-4)


def test_the_plane_is_that_of_the_largest_variance() -> None:
    basis = torch.linalg.qr(torch.randn(6, 6)).Q
    inside = torch.randn(50, 6) * torch.tensor([5.0, 2.0, 0.1, 0.1, 0.1, 0.1])
    places, explained = project_to_plane(inside @ basis.T + 7)
    covariance = torch.cov((inside @ basis.T).T)
    largest = torch.linalg.eigvalsh(covariance).flip(0)
    torch.testing.assert_close(places.var(dim=0), largest[:2], rtol=1e-3, atol=0)
    assert explained == pytest.approx((largest[:2].sum() / largest.sum()).item(), rel=1e-3)
    assert project_to_plane(torch.ones(3, 1))[0].shape == (3, 2)


def test_no_text_can_end_the_script() -> None:
    found = inspect_text(build(MODELS["gpt"]), LETTERS, "</script>", "</script><b>")
    assert render_page(found).count("</script>") == 2
    data = json.loads(json.dumps(shown(found)))
    assert "".join(data["tokens"]) == "</script>"


def test_what_is_not_shown_is_read(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "abcdefgh bad cab"
    whole = inspect_text(model, LETTERS, "head" + text, "")  # it has a context of 16
    assert ("".join(whole.tokens), whole.hidden) == (text.replace(" ", "␣"), 0)
    assert not any(weight for layer in whole.earlier for head in layer for weight in head)
    monkeypatch.setattr(inspection, "SHOWN_TOKENS", 6)
    end = inspect_text(model, LETTERS, "head" + text, "")
    assert (end.tokens, end.hidden) == (whole.tokens[10:], 10)
    assert (end.following, end.lens) == (whole.following[10:], [row[10:] for row in whole.lens])
    assert (end.given, end.ranks) == (whole.given[10:], whole.ranks[10:])
    for layers in zip(end.attention, end.earlier, whole.attention, strict=True):
        for rows, earlier, expected in zip(*layers, strict=True):
            assert rows == [row[10:] for row in expected[10:]]
            sums = [sum(row[:10]) for row in expected[10:]]
            assert earlier == pytest.approx(sums, abs=2e-3)


def test_of_many_tokens_those_of_the_text_and_the_likely_are_in_the_plane() -> None:
    model = build(GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=8, vocab_size=256))
    found = inspect_text(model, ByteTokenizer(), "cab", "")
    shown = {place.token for place in found.embedding}
    assert shown == {*"cab"} | {guess.token for row in found.following for guess in row}
    assert (found.vocabulary, len(found.embedding) < 40) == (256, True)


def test_half_characters_are_shown() -> None:
    model = build(GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=8, vocab_size=256))
    assert inspect_text(model, ByteTokenizer(), "é\0", "").tokens == ["\\xc3", "\\xa9", "\\u0000"]


def test_one_token_is_enough() -> None:
    found = inspect_text(build(MODELS["gpt"]), LETTERS, "a", "")
    assert (found.given, found.attention[0][0]) == ([], [[1.0]])


def test_an_unknown_character_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match="'Q'"):
        inspect_text(build(MODELS["gpt"]), LETTERS, "Q", "")
