"""A resumed run is checked as strictly as a new run; it reads weights and settings only once."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nanogpt.errors import UserError
from nanogpt.models import GPTConfig, ModernConfig
from nanogpt.muon import Muon
from nanogpt.optim import OptimConfig
from nanogpt.runs import reading
from nanogpt.runs.config import RunConfig, TrainConfig
from nanogpt.runs.directory import lock_run
from nanogpt.runs.run import load_run_text, read_run_config, read_saved_run
from nanogpt.runs.start import prepare_run, resume_run
from nanogpt.system.devices import Precision
from nanogpt.text.corpora import make_corpus
from nanogpt.train import resume_training, train
from tests.signing import change_json, sign


@pytest.fixture
def config(text_file: Path) -> RunConfig:
    return RunConfig(
        data=str(text_file),
        out=Path("run"),
        device="cpu",
        precision="float32",
        model=GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=16),
        train=TrainConfig(steps=10, batch_size=4, eval_every=5, log_every=2),
    )


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The checkpoint files that were read, in order, such as best/config.json."""
    files: list[str] = []

    def record(function: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(file: Path, *args: Any, **kwargs: Any) -> Any:
            files.append(f"{file.parent.name}/{file.name}")
            return function(file, *args, **kwargs)

        return recorded

    for name in ("read_limited", "compute_sha256"):  # compute_sha256 reads the safetensors files
        monkeypatch.setattr(reading, name, record(getattr(reading, name)))
    return files


def test_a_resumed_run_equals_the_saved_run(config: RunConfig) -> None:
    saved = train(config).run
    run = resume_run(Path("run"), read_run_config(Path("run")))
    assert (run.config, run.text_sha256, run.bigram_loss) == (
        saved.config,
        saved.text_sha256,
        saved.bigram_loss,
    )
    assert (run.state.step, run.state.tokens) == (10, 10 * 4 * 16)
    assert run.model.training
    for one, other in zip(run.model.parameters(), saved.model.parameters(), strict=True):
        assert torch.equal(one, other)
    # The resumed run lacks the last record, because it evaluates and records this step again.
    assert run.journal.records == saved.journal.records[:-1]
    assert run.journal.best == saved.journal.evaluations[-2].best()


def test_a_resume_reads_each_file_once_and_only_config_json_of_best(
    config: RunConfig, reads: list[str]
) -> None:
    train(config)
    reads.clear()
    saved = read_saved_run(Path("run"))
    resume_run(saved, saved.config)
    counts = Counter(file for file in reads if not file.endswith("SHA256SUMS"))
    last = ("config.json", "tokenizer.json", "model.safetensors")
    expected = [f"last/{name}" for name in (*last, "training.json", "training.safetensors")]
    assert counts == Counter([*expected, "best/config.json"])


def test_a_resume_from_a_path_reads_training_json_once(config: RunConfig, reads: list[str]) -> None:
    train(config)
    settings = read_run_config(Path("run"))
    reads.clear()
    resume_run(Path("run"), settings)
    assert reads.count("last/training.json") == 1


def test_the_command_reads_training_json_once(
    config: RunConfig, reads: list[str], nanogpt: Callable[..., tuple[int, str, str]]
) -> None:
    train(config)
    reads.clear()
    assert nanogpt("train", "--resume", "run", "--train.steps", 12)[0] == 0
    assert reads.count("last/training.json") == 1


def test_a_resume_needs_no_weights_of_the_best_checkpoint(config: RunConfig) -> None:
    """A resumed run needs only the loss of best/; a better checkpoint replaces all files there."""
    best = train(config).best
    Path("run/best/model.safetensors").unlink()
    Path("run/best/tokenizer.json").unlink()
    settings = read_run_config(Path("run"))
    longer = replace(settings, train=replace(settings.train, steps=20))
    result = resume_training(Path("run"), longer)
    assert result.run.journal.evaluations[0].val_loss is not None
    assert result.best.val_loss < best.val_loss
    assert Path("run/best/model.safetensors").exists()


def test_a_resume_refuses_a_damaged_best_loss(config: RunConfig) -> None:
    train(config)
    file = Path("run/best/config.json")
    file.write_text(file.read_text().replace("val_loss", "Val_loss"))
    with pytest.raises(UserError, match=r"run.best.config\.json is missing or damaged \(its SHA"):
        resume_run(Path("run"), read_run_config(Path("run")))
    lock_run(Path("run")).release()


def test_a_resume_knows_the_number_of_steps_that_was_planned(config: RunConfig) -> None:
    assert train(config).run.planned_steps == 10
    settings = replace(config, train=replace(config.train, steps=15))
    settings = replace(settings, model=read_run_config(Path("run")).model)
    run = resume_run(Path("run"), settings)
    assert (run.planned_steps, run.config.train.steps) == (10, 15)


def test_a_run_that_was_trained_further_since_it_was_read_is_read_again(config: RunConfig) -> None:
    train(config)
    saved = read_saved_run(Path("run"))
    assert saved.is_current()
    further = replace(saved.config, train=replace(saved.config.train, steps=12))
    resume_training(Path("run"), further)
    assert not saved.is_current()
    run = resume_run(saved, further)
    assert (run.state.step, run.state.tokens, run.planned_steps) == (12, 12 * 4 * 16, 12)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_muon_computes_at_the_precision_of_the_run(config: RunConfig, precision: Precision) -> None:
    model = ModernConfig(n_layer=1, n_head=2, n_embd=16, block_size=16)
    optim = OptimConfig("muon")
    run = prepare_run(replace(config, precision=precision, model=model, optim=optim))
    _, muon = run.state.optimizers
    assert isinstance(muon, Muon)
    assert muon.precision == getattr(torch, precision)


def test_run_json_describes_the_run(config: RunConfig, text: str) -> None:
    run = train(config).run
    saved = json.loads(Path("run/run.json").read_text())
    assert saved == json.loads(json.dumps(run.describe()))
    assert saved["text_sha256"] == make_corpus(text).facts.sha256
    assert saved["config"]["model"]["kind"] == "gpt"


def test_a_directory_without_a_checkpoint_can_be_used_for_a_new_run(config: RunConfig) -> None:
    prepare_run(config).lock.release()
    with pytest.raises(UserError, match=r"run/last.\S+ is missing or damaged \(No such file"):
        read_run_config(Path("run"))
    train(config)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tokens", "many", "tokens cannot be 'many'"),
        ("losses", None, "losses cannot be None"),
        ("lines", -1, "lines is -1: it must be at least 0 and less than"),
        (
            "scale",
            {"scale": 1, "steps": 10**13},
            "scale: steps is 10000000000000: it must be at least 0 and less than 2000",
        ),
        ("scale", {"scale": -1, "steps": 0}, r"scale: scale is -1\.0: it must be more than 0"),
        ("colour", "red", "unknown key 'colour'"),
        ("config", {"model": {"kind": "gpt"}, "train": {"steps": 0}}, "config: train: steps is 0"),
    ],
)
def test_training_json_is_read_strictly(
    config: RunConfig, key: str, value: object, message: str
) -> None:
    train(config)
    change_json(Path("run/last/training.json"), **{key: value})
    with pytest.raises(UserError, match=rf"training.json is missing or damaged \({message}"):
        read_run_config(Path("run"))


def test_the_text_of_a_run_must_not_change(config: RunConfig, text: str) -> None:
    train(config)
    corpus, val_fraction = load_run_text(Path("run"))
    assert (corpus.text(), val_fraction) == (text, 0.1)
    Path(config.data).write_text(text + "x")
    with pytest.raises(UserError, match=r"words\.txt is not the text that this run was trained on"):
        load_run_text(Path("run"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"more": 1}, "unknown key 'more'"),
        ({"config": []}, r"config cannot be \[\]"),
        ({"text_sha256": 3}, "text_sha256 cannot be 3"),
    ],
)
def test_run_json_is_read_strictly(
    config: RunConfig, change: dict[str, object], message: str
) -> None:
    train(config)
    change_json(Path("run/run.json"), **change)
    with pytest.raises(UserError, match=rf"run.json is missing or damaged \({message}"):
        load_run_text(Path("run"))


def test_a_resume_refuses_the_model_of_another_run(config: RunConfig) -> None:
    train(config)
    other = GPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=16)
    train(replace(config, out=Path("other"), model=other))
    for name in ("config.json", "model.safetensors"):
        shutil.copy(Path("other/last", name), Path("run/last", name))
    sign(Path("run/last"))
    with pytest.raises(UserError, match=r"its model differs from the one in training\.json"):
        resume_run(Path("run"), read_run_config(Path("run")))


def test_a_new_run_ignores_the_files_of_a_run_that_never_started(config: RunConfig) -> None:
    """The old run was killed before run.json was written."""
    Path("run").mkdir()
    Path("run/metrics.jsonl").write_text('{"step": 99}\n')
    Path("run/.pid").write_text("1\n")
    train(config)
    lines = Path("run/metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == [0, 2, 4, 5, 6, 8, 10]
    resume_run(Path("run"), read_run_config(Path("run"))).lock.release()


def test_prepare_run_applies_the_setting_deterministic(config: RunConfig) -> None:
    try:
        prepare_run(replace(config, deterministic=True))
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("characters", [11, 200])
@pytest.mark.parametrize("val_fraction", [0.1, 0.9])
def test_the_block_size_that_the_error_of_a_short_text_names_is_the_largest_possible(
    config: RunConfig, tmp_path: Path, characters: int, val_fraction: float
) -> None:
    file = tmp_path / "short.txt"
    file.write_text("ab" * characters)

    def prepare(block_size: int) -> None:
        model = replace(config.model, block_size=block_size)
        run = replace(config, data=str(file), val_fraction=val_fraction, model=model, out=None)
        prepare_run(run).lock.release()

    with pytest.raises(UserError, match="too short") as error:
        prepare(2000)
    largest = int(str(error.value).rsplit("--model.block-size to ", 1)[1].split()[0])
    prepare(largest)
    with pytest.raises(UserError, match="too short"):
        prepare(largest + 1)


def test_a_text_of_one_token_in_a_split_needs_more_text(config: RunConfig, tmp_path: Path) -> None:
    (file := tmp_path / "short.txt").write_text("abc")
    with pytest.raises(UserError, match=r"its val split has 1 token; use a longer text$"):
        prepare_run(replace(config, data=str(file)))
