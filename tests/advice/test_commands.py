"""A user who follows the advice in a command-line error does not get the same error again."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers as library
import torch

from nanogpt.errors import UserError
from nanogpt.generate import Sampling
from nanogpt.generate import generate as generate_tokens
from nanogpt.models import GPT, GPTConfig
from nanogpt.text.corpora import load_corpus
from nanogpt.text.download import cache_stream
from nanogpt.text.tokenizers import make_tokenizer

from .cases import NO_DEVICE, RESUME, STOP, TRAIN, Case, Command, check


def cache_text(directory: str, variable: str = "NANOGPT_CACHE") -> object:
    """Set the environment variable `variable` to `directory`, then copy a text into the cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(variable, directory)
        return cache_stream(io.BytesIO(b"text"), "standard input")


def encode_with(unknown_token: str | None) -> Callable[[], object]:
    """Return a function that encodes a word that the tokenizer does not know."""
    model = library.models.WordLevel({"a": 0, "[UNK]": 1}, unk_token=unknown_token or "none")

    def act() -> object:
        Path("level.json").write_text(library.Tokenizer(model).to_str())
        return make_tokenizer("level.json", [], []).encode("b")

    return act


def generate_from(prompt: list[int]) -> Callable[[], object]:
    model = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=2, block_size=4, vocab_size=3))
    return lambda: [*generate_tokens(model, [prompt], 1, Sampling(), 1)]


def sample_interactively(*options: str) -> Callable[[], object]:
    def act() -> object:
        command = [sys.executable, "-m", "nanogpt", "sample", "--interactive", *options]
        answer = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if answer.returncode:
            raise UserError(answer.stderr.removeprefix("nanogpt: ").strip())
        return answer

    return act


def rename(new: str) -> Callable[[], object]:
    """Return a function that renames the file in the directory `odd name`, then reads the file."""

    def act() -> object:
        (file,) = Path("odd name").iterdir()
        return load_corpus(str(file.rename(file.with_name(new))))

    return act


COMMANDS = [
    Case("there is no command", "trian", "{0} --help", r"did you mean (\w+)"),
    Case(
        "there is no preset",
        f"train tinny {STOP}",
        f"train {{0}} {STOP}",
        r"did you mean (\w+)",
        NO_DEVICE,
    ),
    Case(
        "there is no option --train.stps",
        f"train --train.stps 3 {STOP}",
        f"train {{0}} 3 {STOP}",
        r"did you mean (\S+)\?",
        NO_DEVICE,
    ),
    Case("there is no option -x; see nanogpt study", "study -x", "{0}", r"see nanogpt (.+ --help)"),
    Case("there is no option -x", "tokenize -x", "{0}", "not an option: nanogpt (.+)"),
    Case("there is no option --run", "sample --run tiny", "sample tiny"),
    Case("unexpected argument", "presets all", "presets"),
    Case(
        "--train.steps needs a value",
        f"train --name --json {STOP}",
        f"train {{0}}--json {STOP}",
        r"as in (--name=)VALUE",
        NO_DEVICE,
    ),
    Case("--out is empty", f"train --out '' {STOP}", f"train {STOP}", "", NO_DEVICE),
    Case(
        "--train.steps is 'many'",
        f"train --train.steps many {STOP}",
        f"train --train.steps 3 {STOP}",
        "",
        NO_DEVICE,
    ),
    Case(
        "--precision is",
        f"train --precision float64 {STOP}",
        f"train --precision {{0}} {STOP}",
        r"one of \w+, (\w+)",
        NO_DEVICE,
    ),
    Case("--resume keeps", f"{RESUME} tiny", RESUME),
    Case("--seed is 1", f"{RESUME} --seed 1", RESUME),
    Case("--train.steps is 10", f"{RESUME} --train.steps 10", f"{RESUME} --train.steps 23"),
    Case("--model.vocab-size is", f"{TRAIN} --model.vocab-size 99", TRAIN),
    Case(
        "sample_tokens",
        f"train tiny --sample-tokens -1 {STOP}",
        f"train tiny --sample-tokens 0 {STOP}",
        "",
        NO_DEVICE,
    ),
    Case("--interactive", sample_interactively("--json"), sample_interactively()),
    Case(
        "there is no tokenizer",
        "tokenize --tokenizer gpt4 abd",
        "tokenize --tokenizer {0} abd --data words.txt",
        "use (char)",
    ),
    Case(
        "there is no tokenizer", f"{TRAIN} --tokenizer gpt4", f"{TRAIN} --tokenizer tiny", "a (run)"
    ),
    Case("this machine has no", "sample --device cuda", "sample --device {0}", "use (cpu)"),
    Case("cannot read", "sample --prompt-file nothing.txt", "sample --prompt-file prompt.txt"),
    Case("/dev/zero", "data /dev/zero", "data words.txt"),
    Case("the path", rename(os.fsdecode(b"bad\xff.txt")), rename("good.txt")),
    Case(
        "data/owt contains tokens",
        f"{TRAIN} --data tokens",
        f"{TRAIN} --data tokens --tokenizer runs/tiny/best/{{0}}",
        r"the (tokenizer\.json) that encoded",
    ),
    Case("data/owt contains tokens", "data tokens", "data words.txt", "give (a text)"),
    Case(
        "data/owt has two splits",
        "eval --data tokens --split all",
        "eval --data tokens --split {0}",
        r"choose (\w+) or",
    ),
    Case("data/owt/val.bin does not", "eval --data odd", "eval --data tokens"),
    Case(
        "data/owt/val.bin has the token",
        f"{TRAIN} --data bytes --tokenizer tiny",
        f"{TRAIN} --data bytes --tokenizer byte",
    ),
    Case("the stop string", "sample --stop é", "sample --stop a"),
    Case("the tokenizer cannot encode", encode_with(None), encode_with("[UNK]")),
    Case(
        "my.json is not a tokenizer",
        "tokenize --tokenizer empty.json abd",
        "tokenize --tokenizer runs/tiny/best/{0} abd",
        r"name a (tokenizer\.json)",
    ),
    Case("there is no run 'two'", "sample two", "sample {0}", r"runs/: (\S+?),?( |$)"),
    Case(
        "there is no run 'two'; the runs in runs/: runs/tiny; the presets",
        "explain two --device cpu",
        "explain {0} --device cpu",
        r"the presets: (\w+)",
    ),
    Case("runs/two is not a run", "sample runs", "sample runs/tiny"),
    Case(
        "runs/tiny already holds",
        f"{TRAIN} --out runs/tiny",
        f"{TRAIN} {{0}}",
        r"such as (--out \S+),",
    ),
    Case(
        "runs/tiny already holds",
        f"{TRAIN} --out runs/tiny",
        f"{RESUME} {{0}}",
        "with (--resume .+)",
    ),
    Case("results contains", f"{TRAIN} --out src", f"{TRAIN} {{0}} new", "with (--out)"),
    Case(
        "cannot write in runs/tiny: Permission denied",
        f"{TRAIN} --out words.txt/x",
        f"{TRAIN} {{0}} new/x",
        "with (--out)",
    ),
    Case(
        "runs/a and runs/b were",
        "eval tiny other",
        "eval tiny other {0} words.txt",
        "with (--data)",
    ),
    Case(
        "runs/a and runs/b have different tokenizers",
        "eval tiny bytes --data words.txt",
        "eval bytes",
    ),
    Case("runs/a and runs/b have different block", "eval tiny short", "eval short"),
    Case("there is no study 'laddr'", "study laddr", "study {0} --help", r"did you mean (\w+)"),
    Case("there is no study 'all'", "study all", "study {0} --help", r"use one of (\w+)"),
    Case("nanogpt study needs", "study", "study {0} --help", r"use one of (\w+)"),
    Case(
        "--sizes is 3",
        f"study scaling --sizes 3 {STOP}",
        f"study scaling --sizes {{0}} {STOP}",
        r"at least (\d)",
        NO_DEVICE,
    ),
    Case(
        "processes is 0",
        "explain tiny --device cpu --processes 0",
        "explain tiny --device cpu --processes {0}",
        r"at least (\d)",
    ),
    Case(
        "--at-a-time",
        f"study scaling --at-a-time 0 {STOP}",
        f"study scaling --at-a-time {{0}} {STOP}",
        r"at least (\d)",
        NO_DEVICE,
    ),
    Case("runs is a directory", "inspect --out runs", "inspect {0} page.html", "with (--out)"),
    Case(
        "input.txt already",
        "data words.txt --save prompt.txt",
        "data words.txt {0} new.txt",
        "with (--save)",
    ),
    Case(
        "cannot write input",
        "data words.txt --save no/new.txt",
        "data words.txt {0} new.txt",
        "with (--save)",
    ),
    Case(
        "cannot write page", "inspect --out no/page.html", "inspect {0} page.html", "with (--out)"
    ),
    Case(
        "--optim.muon-lr has no effect",
        f"train tiny --optim.muon-lr 0.1 {STOP}",
        f"train {STOP}",
        "",
        NO_DEVICE,
    ),
    Case(
        "training a model with 198",
        f"{TRAIN} --model.n-embd 2000000000",
        f"{TRAIN} {{0}} 8",
        "a smaller --model.n-layer or (--model.n-embd)",
    ),
    Case(
        "training a model with 10",
        f"{TRAIN} --train.batch-size 1000000000",
        f"{TRAIN} {{0}} 8",
        "a smaller (--train.batch-size)",
    ),
    Case("generating 1,000", "sample --samples 1000000000", "sample --samples 2"),
    Case(
        "cannot write the tokens",
        lambda: cache_text("words.txt"),
        lambda variable: cache_text("cache", variable),
        "(NANOGPT_CACHE)",
    ),
    Case("a prompt has no tokens", generate_from([]), generate_from([0])),
]
"""Most of these cases use the command line and trained runs."""


@pytest.mark.slow
@pytest.mark.usefixtures("world")
@pytest.mark.parametrize("case", COMMANDS, ids=lambda case: case.row[:40])
def test_the_advice_of_the_command_line_works(nanogpt: Command, case: Case) -> None:
    if case.row == "this machine has no" and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    check(nanogpt, case)
