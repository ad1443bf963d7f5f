"""A run that goes on is checked as strictly as one that begins."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nanogpt.errors import UserError
from nanogpt.models import GPTConfig, ModernConfig
from nanogpt.muon import Muon
from nanogpt.optim import OptimConfig
from nanogpt.runs.config import RunConfig, TrainConfig
from nanogpt.runs.run import load_run_text, read_run_config
from nanogpt.runs.start import prepare_run, resume_run
from nanogpt.system.devices import Precision
from nanogpt.system.files import compute_sha256 as sha256_of
from nanogpt.text.corpora import make_corpus
from nanogpt.train import train


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


def test_a_resumed_run_is_as_it_was_left(config: RunConfig) -> None:
    left = train(config).run
    run = resume_run(Path("run"), read_run_config(Path("run")))
    assert (run.config, run.text_sha256, run.bigram_loss) == (
        left.config,
        left.text_sha256,
        left.bigram_loss,
    )
    assert (run.state.step, run.state.tokens) == (10, 10 * 4 * 16)
    assert run.model.training
    for one, other in zip(run.model.parameters(), left.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert run.journal.records == left.journal.records[:-1]  # the last one is made again


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_muon_computes_at_the_precision_of_the_run(config: RunConfig, precision: Precision) -> None:
    model = ModernConfig(n_layer=1, n_head=2, n_embd=16, block_size=16)
    optim = OptimConfig("muon")
    run = prepare_run(replace(config, precision=precision, model=model, optim=optim))
    _, muon = run.state.optimizers
    assert isinstance(muon, Muon)
    assert muon.precision == getattr(torch, precision)


def test_what_run_json_says(config: RunConfig, text: str) -> None:
    run = train(config).run
    saved = json.loads(Path("run/run.json").read_text())
    assert saved == json.loads(json.dumps(run.describe()))
    assert saved["text_sha256"] == make_corpus(text).facts.sha256
    assert saved["config"]["model"]["kind"] == "gpt"


def test_a_run_that_was_stopped_before_its_first_checkpoint_holds_none(config: RunConfig) -> None:
    prepare_run(config).lock.release()
    with pytest.raises(UserError, match=r"run/last.\S+ is missing or damaged \(No such file"):
        read_run_config(Path("run"))
    train(config)  # and may begin again


@pytest.mark.parametrize(
    ("key", "value", "says"),
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
def test_its_facts_are_read_strictly(config: RunConfig, key: str, value: object, says: str) -> None:
    train(config)
    file = Path("run/last/training.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    sums = Path("run/last/SHA256SUMS")
    kept = [line for line in sums.read_text().splitlines() if "training.json" not in line]
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    sums.write_text("\n".join([*kept, f"{digest}  training.json"]))
    with pytest.raises(UserError, match=rf"training.json is missing or damaged \({says}"):
        read_run_config(Path("run"))


def test_the_text_is_the_one_that_was_learned(config: RunConfig, text: str) -> None:
    train(config)
    corpus, val_fraction = load_run_text(Path("run"))
    assert (corpus.text(), val_fraction) == (text, 0.1)
    Path(config.data).write_text(text + "x")
    with pytest.raises(UserError, match=r"words\.txt is not the text that this run was trained on"):
        load_run_text(Path("run"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"more": 1}, "unknown key 'more'"),
        ({"config": []}, r"config cannot be \[\]"),
        ({"text_sha256": 3}, "text_sha256 cannot be 3"),
    ],
)
def test_what_a_run_says_of_itself_is_read_strictly(
    config: RunConfig, change: dict[str, object], says: str
) -> None:
    train(config)
    saved = json.loads(Path("run/run.json").read_text())
    Path("run/run.json").write_text(json.dumps(saved | change))
    with pytest.raises(UserError, match=rf"run.json is missing or damaged \({says}"):
        load_run_text(Path("run"))


def test_a_model_of_another_run_is_refused(config: RunConfig) -> None:
    train(config)
    other = GPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=16)
    train(replace(config, out=Path("other"), model=other))
    for name in ("config.json", "model.safetensors"):
        shutil.copy(Path("other/last", name), Path("run/last", name))
    files = (file for file in Path("run/last").iterdir() if file.name != "SHA256SUMS")
    sums = [f"{sha256_of(file)}  {file.name}\n" for file in files]
    Path("run/last/SHA256SUMS").write_text("".join(sums))
    with pytest.raises(UserError, match=r"its model is not the one in training\.json"):
        resume_run(Path("run"), read_run_config(Path("run")))


def test_a_half_begun_directory_begins_anew(config: RunConfig) -> None:
    """Killed before run.json was there: nothing of it may get into the next."""
    Path("run").mkdir()
    Path("run/metrics.jsonl").write_text('{"step": 99}\n')
    train(config)
    lines = Path("run/metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == [0, 2, 4, 5, 6, 8, 10]
    resume_run(Path("run"), read_run_config(Path("run"))).lock.release()


def test_threads_and_determinism_follow_the_configuration(config: RunConfig) -> None:
    try:
        prepare_run(replace(config, deterministic=True))
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
