"""The README and the pages in docs/ name commands, options, files and presets that exist."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nanogpt.cli.main import COMMANDS
from nanogpt.models import GPT, GPTConfig
from nanogpt.runs.checkpoint import Checkpoint, save_checkpoint
from nanogpt.runs.presets import PRESETS
from nanogpt.studies.scaling import RECIPES
from nanogpt.text.corpora import CORPORA
from nanogpt.text.tokenizers import CharTokenizer

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
DOCUMENTS += sorted((ROOT / "docs").rglob("*.md"))
PAGES = {page.relative_to(ROOT).as_posix(): page.read_text("utf-8") for page in DOCUMENTS}
Command = Callable[..., tuple[int, str, str]]


def blocks(language: str) -> list[str]:
    """The code blocks of the README in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


COMMANDS_SHOWN = [
    line.partition("#")[0].split()[1:]
    for block in blocks("sh")[1:]
    for line in block.splitlines()
    if line.startswith("nanogpt ")
]


def test_the_first_block_is_the_two_commands() -> None:
    assert blocks("sh")[0].splitlines() == [
        'pip install -e ".[shakespeare]" && nanogpt train',
        'pip install -e ".[dev]" && pytest',
    ]


@pytest.mark.parametrize("arguments", COMMANDS_SHOWN, ids=" ".join)
def test_every_command_and_its_flags_exist(nanogpt: Command, arguments: list[str]) -> None:
    command, *rest = arguments
    assert command in COMMANDS
    if command == "presets":
        return
    if command == "train" and rest and not rest[0].startswith("-"):
        assert rest[0] in PRESETS
    status, help_, _ = nanogpt(command, "--help")
    assert status == 0
    for flag in (word for word in rest if word.startswith("--")):
        assert flag == "--help" or re.search(rf"{flag}\b", help_), flag


def test_every_command_is_shown() -> None:
    assert {arguments[0] for arguments in COMMANDS_SHOWN} == set(COMMANDS)


def test_every_flag_mentioned_anywhere_exists(nanogpt: Command) -> None:
    known = {"--check"}  # of ruff
    for benchmark in (ROOT / "benchmarks").glob("*.py"):
        known |= set(re.findall(r"(?<=add_argument\(\")--[a-z-]+", benchmark.read_text("utf-8")))
    known |= {"--train.stps"}  # a mistake, in errors.md
    studies = (("study", "ladder"), ("study", "scaling"))
    for command in (("train",), ("sample",), ("eval",), ("inspect",), *studies):
        known |= set(re.findall(r"--[a-z][\w.-]+", nanogpt(*command, "--help")[1]))
    for text in PAGES.values():
        assert set(re.findall(r"(?<=[\s`])--[a-z][\w.-]+", text)) <= known


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize("page", DOCUMENTS, ids=list(PAGES))
def test_every_file_mentioned_exists(page: Path) -> None:
    text = page.read_text("utf-8")
    for file in re.findall(r"`((?:nanogpt|benchmarks|docs|tests|lessons)/[\w/.-]+\.\w+)`", text):
        assert (ROOT / file).exists(), file
    for link in re.findall(r"\]\((?!http)([^)#]+)(?:#[^)]*)?\)", text):
        assert (page.parent / link).exists(), link


def test_the_presets_are_those_there_are() -> None:
    rows = re.findall(
        r"^\| `([\w-]+)` \| .* \| ([\d,]+) \| ([\d,]+) of (\d+) × (\d+) \|",
        PAGES["docs/presets.md"],
        re.M,
    )
    assert [row[0] for row in rows] == list(PRESETS)
    for name, _, *numbers in rows:
        steps, batch_size, block_size = (int(number.replace(",", "")) for number in numbers)
        config = PRESETS[name].config
        assert (config.train.steps, config.train.batch_size) == (steps, batch_size)
        assert config.model.block_size == block_size


def test_the_corpora_are_those_there_are() -> None:
    page = PAGES["docs/corpora.md"]
    for name, corpus in CORPORA.items():
        assert f"| `{name}` |" in page
        assert corpus.sha256 in page
        assert corpus.url is None or corpus.url in page


def test_the_recipes_are_those_of_the_study() -> None:
    for name, recipe in RECIPES.items():
        row = f"| {name} | {recipe.dropout:g} | {recipe.weight_decay:g} |"
        assert row in PAGES["docs/studies.md"]


@pytest.mark.parametrize("code", blocks("python"))
def test_the_python_runs(code: str) -> None:
    alphabet = "\n :" + "".join(map(chr, range(ord("A"), ord("Z") + 1)))
    config = GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=8, vocab_size=len(alphabet))
    save_checkpoint(Path("runs/tiny/best"), Checkpoint(GPT(config), CharTokenizer(alphabet), 1))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(done.stdout) == 200


NO_TEST_OF_ITS_OWN = {"cli/arguments", "runs/failures", "runs/keeper", "text/glyphs"}
"""Tested through the modules that use them."""


def test_every_module_has_its_test() -> None:
    modules = {
        file.relative_to(ROOT / "nanogpt").with_suffix("").as_posix()
        for file in (ROOT / "nanogpt").rglob("*.py")
        if not file.stem.startswith("__")
    }
    tests = {
        file.relative_to(ROOT / "tests").with_suffix("").as_posix().replace("test_", "")
        for file in (ROOT / "tests").rglob("test_*.py")
    }
    assert modules - NO_TEST_OF_ITS_OWN <= tests
