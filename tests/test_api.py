"""The Python API: a run by its name, text in and text out."""

from pathlib import Path

import pytest
import torch

from nanogpt import api as trained
from nanogpt import load
from nanogpt.api import GenerationConfig
from nanogpt.errors import UserError
from nanogpt.models import GPT, GPTConfig
from nanogpt.runs.checkpoint import Checkpoint, save_checkpoint
from nanogpt.text.tokenizers import CharTokenizer


@pytest.fixture
def run() -> Path:
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=8, vocab_size=3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    save_checkpoint(Path("runs/tiny/best"), Checkpoint(model, CharTokenizer("abc"), 7))
    return Path("runs/tiny")


def test_a_run_is_loaded_by_what_a_person_would_call_it(run: Path) -> None:
    texts = {load(name).generate("ab") for name in (run, "runs/tiny", "tiny", run / "best", None)}
    assert len(texts) == 1
    assert load(run).step == 7


def test_text_in_text_out(run: Path) -> None:
    nano = load(run, device="cpu")
    text = nano.generate("ab", max_new_tokens=30, temperature=0.9)
    assert isinstance(text, str)
    assert len(text) == 30
    assert "".join(nano.stream("ab", max_new_tokens=30, temperature=0.9)) == text
    assert nano.generate("ab", max_new_tokens=30) == nano.generate(
        "ab", max_new_tokens=30, temperature=0.8
    )
    assert nano.generate(["ab", "c"], max_new_tokens=30, temperature=0.9)[0] == text
    assert nano.generate([]) == []
    several = nano.generate("ab", samples=3, max_new_tokens=30, temperature=0.9)
    assert several[0] == text
    assert len(set(several)) == 3
    assert nano.generate("ab", top_k=1, seed=1) == nano.generate("ab", temperature=0, seed=2)
    assert text.partition("c")[0] == nano.generate(
        "ab", max_new_tokens=30, temperature=0.9, stop="c"
    )


def test_lower_precision_is_for_writing_alone(run: Path) -> None:
    nano = load(run, device="cpu", precision="bfloat16")
    assert len(nano.generate("ab", max_new_tokens=20)) == 20
    assert next(nano.model.parameters()).dtype == torch.float32
    how = GenerationConfig(max_new_tokens=20, temperature=0)
    exact = load(run, device="cpu").complete(["ab"], how, logprobs=True).finish()[0]
    rough = nano.complete(["ab"], how, logprobs=True).finish()[0]
    assert rough.logprobs[0] == pytest.approx(exact.logprobs[0], abs=0.05)
    assert rough.logprobs[0] != exact.logprobs[0]


def test_errors_of_the_api_are_ours(run: Path) -> None:
    with pytest.raises(UserError, match="there is no run"):
        trained.load("nope")
    with pytest.raises(UserError, match="the tokenizer does not know the character 'x'"):
        load(run).generate("x")
    with pytest.raises(UserError, match="top_p is 2"):
        load(run).generate("a", top_p=2)
