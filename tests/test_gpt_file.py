"""gpt.py, the GPT in one file: its output, and its agreement with the package."""

import ast
import io
import math
import os
import re
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch

import gpt
from nanogpt.data import Data
from nanogpt.evaluate import evaluate
from nanogpt.generate import Sampling, generate
from nanogpt.models import GPT, GPTConfig
from nanogpt.text.corpora import make_corpus
from nanogpt.text.tokenizers import CharTokenizer

FILE = Path(gpt.__file__)
SHAPE: dict[str, Any] = {
    "vocab_size": 11,
    "block_size": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 24,
}


def make_models(**shape: Any) -> tuple[Any, GPT]:
    """The model of gpt.py with random weights, and the package's GPT with the same weights."""
    ours = gpt.GPT(**shape)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_(std=0.3)
    package = GPT(GPTConfig(**shape))
    package.load_state_dict(ours.state_dict())
    return ours, package.eval()


def make_data(text: str) -> Data:
    return Data(make_corpus(text), CharTokenizer(text))


def count_bigram_loss(text: str) -> float:
    """Use dictionaries to compute the validation loss of a bigram model with add-one smoothing."""
    cut, V = int(0.9 * len(text)), len(set(text))
    train, val = text[:cut], text[cut:]
    pairs, firsts = Counter(pairwise(train)), Counter(train[:-1])
    losses = [-math.log((pairs[a, b] + 1) / (firsts[a] + V)) for a, b in pairwise(val)]
    return sum(losses) / len(losses)


def run_shortened(*args: object, **settings: object) -> subprocess.CompletedProcess[str]:
    """Run gpt.py in a new process with other settings."""
    lines = ["import gpt, sys", *(f"gpt.{name} = {value!r}" for name, value in settings.items())]
    return subprocess.run(
        [sys.executable, "-c", "\n".join([*lines, "gpt.main(sys.argv[1:])"]), *map(str, args)],
        env=os.environ | {"PYTHONPATH": str(FILE.parent), "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )


def find_number(pattern: str, out: str) -> float:
    match = re.search(pattern, out)
    assert match, pattern
    return float(match[1])


def test_file_is_short_and_imports_only_torch_and_the_standard_library() -> None:
    source = FILE.read_text("utf-8")
    assert len(source.splitlines()) <= 220
    modules = set[str]()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name.partition(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            modules.add(str(node.module).partition(".")[0])
    assert modules - sys.stdlib_module_names == {"torch"}


def test_script_prints_examples_and_losses_and_generated_text(text: str, text_file: Path) -> None:
    result = run_shortened(
        text_file, steps=120, warmup=10, n_layer=1, n_embd=32, block_size=32, device="cpu"
    )
    assert (result.returncode, result.stderr) == (0, "")
    V = len(set(text))
    assert f"{len(text):,} characters, {V} different ones" in result.stdout

    examples = re.findall(r"when the input is ('.*'), the target is ('.*')\n", result.stdout)
    contexts = [ast.literal_eval(context) for context, _ in examples]
    extended = [
        context + ast.literal_eval(target)
        for context, (_, target) in zip(contexts, examples, strict=True)
    ]
    assert [len(context) for context in contexts] == list(range(1, 9))
    assert contexts[1:] == extended[:-1]
    assert extended[-1] in text

    guess = find_number(r"loss ln \d+ = (\S+)", result.stdout)
    start = find_number(r"GPT before training: validation loss (\S+)", result.stdout)
    end = find_number(r"GPT after 120 steps: validation loss (\S+)", result.stdout)
    assert guess == pytest.approx(math.log(V), abs=0.005)
    assert start == pytest.approx(math.log(V), abs=0.1)
    assert end < start - 0.5
    assert find_number(r"step +100: training loss (\S+)", result.stdout) < start
    bigram = find_number(r"bigram: validation loss (\S+)", result.stdout)
    assert bigram == pytest.approx(count_bigram_loss(text), abs=0.005)

    generated = re.split(r"validation loss \d+\.\d+\n", result.stdout)[-1].removesuffix("\n")
    assert len(generated) == 1 + 500
    assert generated[0] == text[0]
    assert set(generated) <= set(text)


@pytest.mark.slow
def test_same_seed_prints_the_same_output(
    text_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"steps": 3, "n_layer": 1, "n_embd": 16, "block_size": 16, "device": "cpu"}
    outputs = []
    for seed in (1, 1, 2):
        for name, value in {**settings, "seed": seed}.items():
            monkeypatch.setattr(gpt, name, value)
        gpt.main([str(text_file)])
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != outputs[2]


def test_text_is_downloaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    urls = []

    def urlopen(url: str, timeout: float) -> io.BytesIO:
        urls.append(url)
        return io.BytesIO("First Citizen: é".encode())

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    assert gpt.read_text([]) == gpt.read_text([]) == "First Citizen: é"
    assert urls == [gpt.URL]
    Path("mine.txt").write_text("mine")
    assert gpt.read_text(["mine.txt"]) == "mine"


def test_without_a_network_gpt_py_names_the_command_that_writes_the_text(
    monkeypatch: pytest.MonkeyPatch, nanogpt: Callable[..., tuple[int, str, str]]
) -> None:
    def urlopen(url: str, timeout: float) -> None:
        raise URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    with pytest.raises(SystemExit, match="no network") as error:
        gpt.read_text([])
    assert not Path("input.txt").exists()
    command = re.search(r"nanogpt (data \S+ --save \S+)", str(error.value))
    assert command
    assert nanogpt(*command[1].split())[0] == 0
    assert gpt.read_text([]).startswith("First Citizen:\nBefore we proceed")


def test_decode_reverses_encode(text: str) -> None:
    alphabet = "".join(sorted(set(text)))
    tokens = gpt.encode(text, alphabet)
    assert tokens.tolist() == CharTokenizer(text).encode(text)
    assert gpt.decode(tokens, alphabet) == text


def test_targets_are_inputs_shifted_by_one() -> None:
    tokens = torch.arange(100, 110)
    inputs, targets = gpt.get_batch(tokens, batch_size=200, block_size=4)
    assert inputs.shape == targets.shape == (200, 4)
    assert torch.equal(targets, inputs + 1)
    assert set(inputs[:, 0].tolist()) == set(range(100, 106))  # every possible start


def test_logits_equal_those_of_the_package() -> None:
    ours, package = make_models(**SHAPE)
    for T in (1, 5, 16):
        tokens = torch.randint(11, (3, T))
        with torch.no_grad():
            assert torch.allclose(ours(tokens), package(tokens), rtol=1e-5, atol=1e-5)


def test_initial_weights_have_the_mean_and_std_of_the_package() -> None:
    shape = SHAPE | {"n_layer": 4, "n_embd": 128}
    ours, package = gpt.GPT(**shape), GPT(GPTConfig(**shape))
    for name, parameter in package.named_parameters():
        weights = ours.state_dict()[name]
        assert weights.std().item() == pytest.approx(parameter.std().item(), rel=0.1), name
        assert weights.mean().item() == pytest.approx(parameter.mean().item(), abs=0.01), name


@pytest.mark.parametrize("length", [6000, 5290, 5300, 150])
def test_evaluation_equals_that_of_the_package(text: str, length: int) -> None:
    text = text[:length]  # the validation split has 599, 528, 529 or 14 targets, in blocks of 16
    data = make_data(text)
    ours, package = make_models(**SHAPE | {"vocab_size": len(set(text))})
    split = data.splits["val"]
    loss = gpt.evaluate(ours, split.tokens.long())
    assert loss == pytest.approx(evaluate(package, split).loss, rel=1e-6)


def test_greedy_text_equals_that_of_the_package() -> None:
    ours, package = make_models(**SHAPE)
    prompt = [3, 1, 4]
    count = 16 - len(prompt) + 1  # the last token is predicted from a full context
    expected = [
        step.tokens[0] for step in generate(package, [prompt], count, Sampling(temperature=0))
    ]
    tokens = gpt.generate(ours, torch.tensor([prompt]), count, temperature=0)
    assert tokens.tolist() == [prompt + expected]
    assert len(set(expected)) > 1


def test_generation_uses_only_the_last_block_size_tokens() -> None:
    ours, _ = make_models(**SHAPE)
    prompts = torch.randint(11, (50, 40))
    tokens = gpt.generate(ours, prompts, 1, temperature=0)
    assert torch.equal(tokens[:, :-1], prompts)
    with torch.no_grad():
        expected = ours(prompts[:, -16:])[:, -1].argmax(-1)
    assert torch.equal(tokens[:, -1], expected)


def test_generation_samples_at_the_temperature() -> None:
    ours, _ = make_models(**SHAPE)
    prompt = torch.randint(11, (1, 8))
    with torch.no_grad():
        p = (ours(prompt)[0, -1] / 2).softmax(-1)
    tokens = gpt.generate(ours, prompt.expand(4000, -1), 1, temperature=2)
    frequencies = torch.bincount(tokens[:, -1], minlength=11) / 4000
    assert torch.allclose(frequencies, p, atol=0.03)
