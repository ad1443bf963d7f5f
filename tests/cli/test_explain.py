"""The command `nanogpt explain`."""

import json
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from nanogpt.models import PlainConfig, build
from nanogpt.runs.config import RunConfig
from nanogpt.runs.run import Description, Versions
from tests.marks import slow

from .answers import Command, assert_refused


def test_tables_and_json_have_the_same_values(nanogpt: Command) -> None:
    status, table, _ = nanogpt("explain", "tiny", "--device", "cpu", "--model.n-layer", 2)
    assert status == 0
    status, out, _ = nanogpt("explain", "tiny", "--device", "cpu", "--model.n-layer", 2, "--json")
    answer = json.loads(out)
    assert set(answer) == {"parameters", "memory", "operations", "time", "peaks"}
    assert answer["peaks"] == []  # there is a single process
    for line in answer["parameters"]:
        assert re.search(rf"{re.escape(line['part'])}.*{line['value']:,}", table)
    largest = answer["memory"][-1]["value"]
    assert f"{largest / 1e6:,.1f} MB" in table


@pytest.mark.parametrize("tokenizer", ["char", slow("byte"), slow("bpe:300")])
def test_the_vocabulary_follows_from_the_tokenizer(
    nanogpt: Command, text_file: Path, small: list[str], tokenizer: str
) -> None:
    size = "--model.n-embd", 16, "--precision", "float32"
    flags = "--data", text_file, "--tokenizer", tokenizer, *size
    _, out, _ = nanogpt("explain", "tiny", *flags, "--json")
    assert nanogpt("train", "tiny", *flags, "--train.steps", 1, "--sample-tokens", 0)[0] == 0
    description = json.loads(Path("runs/tiny/run.json").read_text())
    assert json.loads(out)["parameters"][-1]["value"] == description["parameters"]
    _, table, _ = nanogpt("explain", "tiny", *flags)
    V = description["config"]["model"]["vocab_size"]
    assert "tiny on cpu in float32: L = 4 (layers), C = 16 (channels)" in " ".join(table.split())
    assert f"V = {V} (vocabulary)" in " ".join(table.split())
    assert_refused(nanogpt("explain", "tiny", "--data", "nowhere.txt"), "nowhere.txt")


def test_a_run_can_be_explained(nanogpt: Command, text_file: Path, small: list[str]) -> None:
    assert nanogpt("train", "tiny", "--data", text_file, *small)[0] == 0
    description = json.loads(Path("runs/tiny/run.json").read_text())
    _, out, _ = nanogpt("explain", "runs/tiny", "--json")
    assert json.loads(out)["parameters"][-1]["value"] == description["parameters"]
    status, _, err = nanogpt("explain", "tinny")
    assert (status, err.count("\n")) == (2, 1)
    assert "did you mean tiny" in err
    says = "there is no run 'nowhere'; the runs in runs/: runs/tiny; the presets: bigram, tiny, "
    assert_refused(nanogpt("explain", "nowhere"), says)


def test_a_model_with_parts_left_out_can_be_explained(nanogpt: Command) -> None:
    config = PlainConfig(n_layer=1, n_head=1, n_embd=8, block_size=8)
    Path("runs/one/best").mkdir(parents=True)
    description = Description(RunConfig(model=config), "", 0, 0.0, "cpu", "float32", Versions())
    written = {**asdict(description), "config": description.config.to_json()}
    Path("runs/one/run.json").write_text(json.dumps(written))
    status, out, _ = nanogpt("explain", "runs/one", "--json")
    assert status == 0
    parameters = sum(p.numel() for p in build(config).parameters())
    assert json.loads(out)["parameters"][-1]["value"] == parameters


LARGEST = 2**31 - 1
HUGE = {
    "--model.n-layer": LARGEST,
    "--model.n-embd": LARGEST - 1,
    "--model.n-head": LARGEST // 2,
    "--model.vocab-size": LARGEST,
    "--model.block-size": LARGEST,
    "--train.batch-size": LARGEST,
    "--train.accumulation": LARGEST,
    "--train.steps": LARGEST,
}
"""The largest values of the settings that determine the size of a run."""


@pytest.mark.parametrize("preset", ["tiny", slow("baby"), slow("tiny-fast"), slow("best")])
@pytest.mark.parametrize("json_flag", [(), slow(("--json",))])
def test_the_largest_run_is_explained_in_readable_numbers(
    nanogpt: Command, preset: str, json_flag: tuple[str, ...]
) -> None:
    huge = [str(word) for pair in HUGE.items() for word in pair]
    status, out, err = nanogpt("explain", preset, *huge, *json_flag)
    assert (status, err) == (0, "")
    if json_flag:
        assert json.loads(out)["parameters"][-1]["value"] > 2**63
    else:
        assert max(map(len, re.findall(r"[\d,.]+", out))) <= len("2,147,483,647")


SETTINGS = [[f"{flag}={HUGE[flag]}"] for flag in list(HUGE)[:1] + list(HUGE)[3:6]]
SETTINGS += [[f"--model.n-embd={LARGEST // 6 * 6}"]]
SETTINGS += [[f"{flag}={value}" for flag, value in HUGE.items()]]
SETTINGS += [[SETTINGS[-1][5], f"--precision={name}"] for name in ("float16", "bfloat16")]


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS)
def test_explain_needs_little_time_and_memory_for_every_size(settings: list[str]) -> None:
    measure = (
        "import sys, time, torch; from nanogpt.cli.explain import explain;"
        "from tests.platforms import peak_memory;"
        "start = time.process_time(); explain(sys.argv[1:]);"
        "print(time.process_time() - start, peak_memory(), file=sys.stderr)"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", measure, "baby", "--device", "cpu", *settings]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=root)
    assert done.returncode == 0, done.stderr
    seconds, peak = map(float, done.stderr.split())
    assert seconds < 10  # measured: at most 1.6 s
    assert peak < 500e6


def test_the_vocabulary_of_gpt2_needs_no_text(nanogpt: Command) -> None:
    for arguments in (["gpt2"], ["tiny", "--tokenizer", "gpt2", "--data", "hf:a/b"]):
        status, out, err = nanogpt("explain", *arguments, "--device", "cpu", "--json")
        assert (status, err) == (0, "")
        table, *_ = json.loads(out)["parameters"]
        assert table["part"] == "token embedding"
        assert table["value"] % 50_257 == 0


def test_processes_share_the_batch(nanogpt: Command) -> None:
    """A process of two needs the memory and the time of a single one with half the batch."""
    size = "explain", "tiny", "--device", "cpu", "--precision", "float32", "--model.n-layer", 2
    _, out, _ = nanogpt(*size, "--train.batch-size", 6, "--json")
    alone = {line["part"]: line["value"] for line in json.loads(out)["memory"]}
    two = *size, "--train.batch-size", 12, "--processes", 2
    status, out, _ = nanogpt(*two, "--json")
    assert status == 0
    answer = json.loads(out)
    memory = {line["part"]: line["value"] for line in answer["memory"]}
    assert memory.items() > {(part, alone[part]) for part in alone if part != "peak"}
    peaks = {line["part"]: line["value"] for line in answer["peaks"]}
    assert peaks["neither"] == memory["peak"]
    per_step = next(line for line in answer["time"] if line["part"] == "matrix products")
    assert per_step["formula"].startswith("operations per step / 2 / ")
    _, out, _ = nanogpt(*two, "--train.shard", "--json")
    memory = {line["part"]: line["value"] for line in json.loads(out)["memory"]}
    assert memory["weights"] * 2 == alone["weights"]
    assert peaks["--train.shard"] == memory["peak"]
    status, table, _ = nanogpt(*two)
    assert status == 0
    assert "do not include evaluations or communication" in " ".join(table.split())
    assert "--train.shard --train.recompute" in table


def test_processes_that_cannot_share_the_batch_are_refused(nanogpt: Command) -> None:
    refused = nanogpt("explain", "tiny", "--device", "cpu", "--processes", 7)
    assert_refused(refused, "--train.batch-size is 32: 7 processes")
    refused = nanogpt("explain", "tiny", "--device", "cpu", "--processes", 0)
    assert_refused(refused, "--processes is 0: it must be at least 1 and less than 2**31")
    refused = nanogpt("explain", "tiny", "--device", "cpu", "--train.shard")
    assert_refused(refused, "--train.shard has no effect: there is a single process")


def test_a_vocabulary_of_another_size_than_the_tokenizer_is_refused(
    nanogpt: Command, text_file: Path
) -> None:
    size = "--device", "cpu", "--model.vocab-size", 70
    assert_refused(nanogpt("explain", "gpt2", *size), "but the tokenizer has 50257 tokens")
    refused = nanogpt("explain", "tiny", "--tokenizer", "byte", *size)
    assert_refused(refused, "but the tokenizer has 256 tokens")
    refused = nanogpt("explain", "tiny", "--data", text_file, *size)
    assert_refused(refused, "--model.vocab-size is 70, but the tokenizer has")


def test_a_vocabulary_that_is_too_large_for_a_bigram_is_refused(nanogpt: Command) -> None:
    refused = nanogpt("explain", "bigram", "--tokenizer", "gpt2", "--device", "cpu")
    assert_refused(refused, "vocab_size is 50257, and the table of a bigram has vocab_size")


def test_the_advice_for_a_mean_teacher_is_accepted(nanogpt: Command) -> None:
    shared = "explain", "best", "--device", "cpu", "--processes", 2, "--train.shard"
    assert_refused(nanogpt(*shared), "or set --train.mean-teacher 0")
    assert nanogpt(*shared, "--train.mean-teacher", 0)[0] == 0


def test_a_bigram_has_no_blocks_to_recompute(nanogpt: Command) -> None:
    _, out, _ = nanogpt("explain", "bigram", "--device", "cpu", "--processes", 2, "--json")
    assert [line["part"] for line in json.loads(out)["peaks"]] == ["neither", "--train.shard"]


def test_a_run_that_starts_from_another_one_has_its_vocabulary(
    nanogpt: Command, text_file: Path, small: list[str]
) -> None:
    assert nanogpt("train", "tiny", "--data", text_file, *small)[0] == 0
    start = "explain", "tiny", "--device", "cpu", "--start-from", "runs/tiny", "--json"
    status, out, err = nanogpt(*start)
    assert (status, err) == (0, "")
    description = json.loads(Path("runs/tiny/run.json").read_text())
    assert json.loads(out)["parameters"][-1]["value"] == description["parameters"]
    assert nanogpt(*start, "--tokenizer", "byte")[0] == 0  # nobody gave --model.vocab-size
