"""The Python API: load a run by its name, and generate a completion of a prompt."""

import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest
import torch

import nanogpt
from nanogpt import api, load
from nanogpt.api import GenerationConfig, GenerationOptions
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


def test_a_run_is_loaded_by_path_or_name_or_as_the_newest(run: Path) -> None:
    texts = {load(name).generate("ab") for name in (run, "runs/tiny", "tiny", run / "best", None)}
    assert len(texts) == 1
    assert load(run).step == 7


def test_a_prompt_gives_a_completion(run: Path) -> None:
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


def test_a_lower_precision_does_not_change_the_weights(run: Path) -> None:
    nano = load(run, device="cpu", precision="bfloat16")
    assert len(nano.generate("ab", max_new_tokens=20)) == 20
    assert next(nano.model.parameters()).dtype == torch.float32
    options = GenerationConfig(max_new_tokens=20, temperature=0)
    exact = load(run, device="cpu").complete(["ab"], options, logprobs=True).finish()[0]
    low_precision = nano.complete(["ab"], options, logprobs=True).finish()[0]
    assert low_precision.logprobs[0] == pytest.approx(exact.logprobs[0], abs=0.05)
    assert low_precision.logprobs[0] != exact.logprobs[0]


def test_the_api_raises_user_errors(run: Path) -> None:
    with pytest.raises(UserError, match="there is no run"):
        api.load("nope")
    with pytest.raises(UserError, match="the tokenizer does not know the character 'x'"):
        load(run).generate("x")
    with pytest.raises(UserError, match="top_p is 2"):
        load(run).generate("a", top_p=2)
    says = "there is no option topk: did you mean top_k or stop or top_p? The options are "
    for generate in (load(run).generate, load(run).stream):
        with pytest.raises(UserError, match=re.escape(says)):
            generate("a", topk=2)  # type: ignore[call-overload, call-arg]


def test_the_keyword_options_are_the_fields_of_the_configuration() -> None:
    hints = get_type_hints(GenerationConfig)
    assert get_type_hints(GenerationOptions) == {
        name: hint for name, hint in hints.items() if name != "samples"
    }
    assert {field.name for field in fields(GenerationConfig)} == set(hints)


SCRIPT = """
from nanogpt import GPT, GPTConfig, PRESETS, CharTokenizer, load

model = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=8))
parameters: int = sum(p.numel() for p in model.parameters())
trained = load("tiny")
one: str = trained.generate("ROMEO:", max_new_tokens=5, top_k=3, stop=["x"])
many: list[str] = trained.generate(["a", "b"], temperature=0)
several: list[str] = trained.generate("a", samples=3)
for piece in trained.stream("a", seed=1):
    print(piece.upper())
ids: list[int] = CharTokenizer("abc").encode("cab")
steps: int = PRESETS["tiny"].config.train.steps
"""
WRONG = SCRIPT + 'load("tiny").generate("a", top_q=3)\nload("tiny").generate("a", top_k="3")\n'


@pytest.mark.slow
def test_a_users_script_passes_a_strict_type_check() -> None:
    for script, wrong_lines in ((SCRIPT, set()), (WRONG, {"script.py:14", "script.py:15"})):
        Path("script.py").write_text(script)
        command = [sys.executable, "-m", "mypy", "--strict", "script.py"]
        environment = {**os.environ, "MYPYPATH": str(Path(nanogpt.__file__).parent.parent)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        lines = done.stdout.splitlines()
        errors = {line.partition(": error: ")[0] for line in lines if ": error: " in line}
        assert errors == wrong_lines, done.stdout
