"""The README and the pages in docs/ name commands, options, files and presets that exist."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name

import pytest

from nanogpt.cli.main import COMMANDS
from nanogpt.models import GPT, GPTConfig
from nanogpt.runs.checkpoint import Checkpoint, save_checkpoint
from nanogpt.runs.presets import PRESETS
from nanogpt.studies.scaling import RECIPES
from nanogpt.system.devices import PEAKS
from nanogpt.text.corpora import CORPORA
from nanogpt.text.tokenizers import CharTokenizer

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
DOCUMENTS += sorted((ROOT / "docs").rglob("*.md"))
PAGES = {page.relative_to(ROOT).as_posix(): page.read_text("utf-8") for page in DOCUMENTS}
Command = Callable[..., tuple[int, str, str]]


def blocks(language: str) -> list[str]:
    """Return the README's code blocks in this language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


COMMANDS_SHOWN = [
    line.partition("#")[0].split()[1:]
    for block in blocks("sh")[1:]
    for line in block.splitlines()
    if line.startswith("nanogpt ")
]


def test_the_first_block_has_the_two_commands() -> None:
    assert blocks("sh")[0].splitlines() == [
        'pip install -e ".[shakespeare]" && nanogpt train',
        'pip install -e ".[dev]" && pytest',
    ]


@pytest.mark.parametrize("arguments", COMMANDS_SHOWN, ids=" ".join)
def test_every_command_of_the_readme_exists_with_its_flags(
    nanogpt: Command, arguments: list[str]
) -> None:
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


def test_the_readme_shows_every_command() -> None:
    assert {arguments[0] for arguments in COMMANDS_SHOWN} == set(COMMANDS)


def test_every_flag_in_a_document_exists(nanogpt: Command) -> None:
    # These flags belong to ruff, to lessons/build.py, and to two examples of mistakes.
    known = {"--check", "--notebooks", "--train.stps", "--run"}
    # These flags belong to torchrun, sbatch, srun, tensorboard and trackio.
    known |= {"--standalone", "--nproc-per-node", "--master-port", "--nnodes", "--node-rank"}
    known |= {"--master-addr", "--nodes", "--ntasks-per-node", "--cpus-per-task", "--gpus-per-node"}
    known |= {"--kill-on-bad-exit", "--logdir", "--project"}
    for benchmark in (ROOT / "benchmarks").glob("*.py"):
        known |= set(re.findall(r"add_argument\(\s*\"(--[a-z-]+)", benchmark.read_text("utf-8")))
    studies = (("study", "ladder"), ("study", "scaling"), ("study", "distillation"))
    modern = ("train", "tiny-fast")  # the other presets of a CPU have other options of the model
    for command in (*((name,) for name in COMMANDS if name != "study"), *studies, modern):
        known |= set(re.findall(r"--[a-z][\w.-]+", nanogpt(*command, "--help")[1]))
    for text in PAGES.values():
        assert set(re.findall(r"(?<=[\s`])--[a-z][\w.-]+", text)) <= known


def test_the_readme_has_at_most_150_lines() -> None:
    assert len(README.splitlines()) <= 150


def test_the_first_link_after_the_quick_start_is_gpt_py() -> None:
    after = README.partition("```sh\n")[2].partition("```\n")[2]
    link = re.search(r"\]\(([^)]+)\)", after)
    assert link
    assert link[1] == "gpt.py"


def make_anchor(heading: str) -> str:
    """Return the anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("page", DOCUMENTS, ids=list(PAGES))
def test_every_file_and_link_in_a_document_exists(page: Path) -> None:
    text = page.read_text("utf-8")
    packages = "nanogpt|benchmarks|docs|tests|lessons"
    for file in re.findall(rf"`((?:{packages})/[\w/.-]+\.\w+)`", text):
        assert (ROOT / file).exists() or "NAME" in file, file
    for file, anchor in re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]*))?\)", text):
        target = page.parent / file if file else page
        assert target.exists(), file
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text("utf-8"), re.MULTILINE)
            assert anchor in map(make_anchor, headings), f"{file}#{anchor}"


def test_the_page_on_speed_has_every_known_peak() -> None:
    rows = re.findall(r"^\| (.+) \| ([\d,]+) × 10¹² \|$", PAGES["docs/speed.md"], re.MULTILINE)
    peaks = {
        name: float(peak.replace(",", "")) * 1e12
        for names, peak in rows
        for name in names.split(", ")
    }
    assert set(peaks.values()) == set(PEAKS.values())
    for name, peak in peaks.items():
        found = [value for pattern, value in PEAKS.items() if re.fullmatch(pattern, name)]
        assert found == [peak], name


def test_the_page_on_corpora_has_every_corpus() -> None:
    page = PAGES["docs/corpora.md"]
    for name, corpus in CORPORA.items():
        assert f"| `{name}` |" in page
        assert corpus.sha256 in page
        assert corpus.url is None or corpus.url in page


def test_the_page_on_studies_has_every_recipe() -> None:
    for name, recipe in RECIPES.items():
        row = f"| {name} | {recipe.dropout:g} | {recipe.weight_decay:g} |"
        assert row in PAGES["docs/studies.md"]


@pytest.mark.slow
@pytest.mark.parametrize("code", blocks("python"))
def test_the_python_example_runs(code: str) -> None:
    alphabet = "\n :" + "".join(map(chr, range(ord("A"), ord("Z") + 1)))
    config = GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=8, vocab_size=len(alphabet))
    save_checkpoint(Path("runs/tiny/best"), Checkpoint(GPT(config), CharTokenizer(alphabet), 1))
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert len(process.stdout) == 100


ANSWERS = ["apart", "compare", "copied", "counting", "generate", "look", "question", "train"]
TESTED_ELSEWHERE = {
    **{
        f"interop/{name}": "interop/test_export"
        for name in ("card", "extras", "hub_tokenizer", "huggingface", "llama_cpp", "onnx")
    },
    "interop/modeling_nanogpt": "interop/test_export",
    "cli/export": "interop/test_export",
    **dict.fromkeys(("interop/importing", "cli/import_model"), "interop/test_import"),
    "runs/starting": "interop/test_import",
    **{f"lab/answers/{name}": "lab/test_answers" for name in ANSWERS},
    "lab/server": "lab/test_answers",
    "cli/hooks": "cli/test_arguments",
    "cli/messages": "cli/test_arguments",
    "cli/values": "cli/test_arguments",
    "models/ensemble": "test_evaluate",
    "muon": "test_optim",
    "runs/background": "runs/test_checkpoint",
    "runs/keeper": "test_resume",
    "runs/reading": "runs/test_checkpoint",
    "runs/reporter": "test_train",
    "runs/run": "runs/test_start",
    "runs/sharing": "fast/test_parallel",
    "runs/teachers": "test_distillation",
    "system/agreement": "system/test_distributed",
    "system/cores": "system/test_devices",
    "version": "test_init",
}
"""Modules without a test file of their own, and the test files that cover them."""


def test_every_module_has_a_test_file() -> None:
    modules = {
        file.relative_to(ROOT / "nanogpt").with_suffix("").as_posix()
        for file in (ROOT / "nanogpt").rglob("*.py")
        if not file.stem.startswith("__")
    }
    tests = {
        file.relative_to(ROOT / "tests").with_suffix("").as_posix()
        for file in (ROOT / "tests").rglob("test_*.py")
    }
    for module in modules:
        folder, _, name = module.rpartition("/")
        own = f"{folder}/test_{name}" if folder else f"test_{name}"
        assert TESTED_ELSEWHERE.get(module, own) in tests, module


def test_every_name_that_a_test_replaces_exists() -> None:
    """Also in tests that need a GPU, which most machines skip."""
    names = [
        name
        for file in Path(__file__).parent.rglob("test_*.py")
        for name in re.findall(r'setattr\(\s*"(nanogpt\.[\w.]+)"', file.read_text("utf-8"))
    ]
    assert len(names) > 20
    for name in names:
        resolve_name(name)
