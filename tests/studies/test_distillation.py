"""The distillation study: its generations, its measurements, its files, and resuming it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nanogpt.api import load
from nanogpt.data import Split
from nanogpt.errors import UserError
from nanogpt.evaluate import evaluate
from nanogpt.models import ModernConfig
from nanogpt.models.ensemble import Ensemble
from nanogpt.optim import OptimConfig
from nanogpt.runs.config import RunConfig, TrainConfig
from nanogpt.runs.run import load_run_text, read_description
from nanogpt.studies.distillation import (
    Distillation,
    DistillationConfig,
    Group,
    _configure,
    format_table,
    make_student,
    run_distillation,
    set_steps,
)
from nanogpt.text.encoding import encode_corpus
from tests.marks import slow

Command = Callable[..., tuple[int, str, str]]
SMALL = ModernConfig(n_layer=1, n_head=1, n_embd=16, block_size=16)


@pytest.fixture
def study(text_file: Path) -> DistillationConfig:
    teacher = RunConfig(
        data=str(text_file),
        device="cpu",
        precision="float32",
        model=SMALL,
        optim=OptimConfig("muon", lr=1e-2, weight_decay=0.3, ema=0.9, warmup=0),
        train=TrainConfig(20, 8, eval_every=10, mean_teacher=0.2),
    )
    student = make_student(teacher, dropout=0.0, decay=0.1)
    return DistillationConfig(teacher, student, [("half", replace(SMALL, n_embd=12))], 3, 50)


def run(study: DistillationConfig, counts: tuple[int, int, int]) -> tuple[Distillation, list[str]]:
    lines: list[str] = []
    base = RunConfig(data=study.teacher.data, device="cpu", out=Path("study"), seed=1)
    result = run_distillation(
        base,
        counts,
        1,
        None,
        lambda run, _: lines.append(run.name),
        lambda group: lines.append(f"group {group.name}"),
        lines.append,
        study,
    )
    return result, lines


def test_the_generations_learn_from_each_other(study: DistillationConfig) -> None:
    result, lines = run(study, (2, 1, 2))
    first, second = (line for line in lines if line.startswith("generating transfer-"))
    assert lines == [
        *("teacher-1", "teacher-2", "group teacher"),
        *(first, "student-1-101", "group student-1"),
        *(second, "student-2-201", "half-201", "group student-2"),
        "group half",
    ]
    assert [group.teachers for group in result.groups] == [0, 2, 1, 1]
    teachers = [Path("study/teacher-1"), Path("study/teacher-2")]
    assert read_description(Path("study/student-1-101")).config.teachers == teachers
    students = [Path("study/student-1-101")]
    for name in ("student-2-201", "half-201"):
        config = read_description(Path("study") / name).config
        assert config.teachers == students
        assert Path(config.transfer or "") == Path("study", second.split()[-1]).absolute()
    text = Path("study", first.split()[-1]).read_text("utf-8")
    assert len(text) == 2 * 3 * 50 + 5  # two teachers, three texts of 50 characters

    # The measurements equal evaluations of the saved models.
    models = [load(path, "cpu").model for path in teachers]
    corpus, fraction = load_run_text(teachers[0])
    tokenizer = load(teachers[0], "cpu").tokenizer
    splits = {n: Split(encode_corpus(corpus, tokenizer, n, fraction)) for n in ("train", "val")}
    group = result.groups[0]
    losses = [evaluate(model, splits["val"]).loss for model in models]
    assert group.losses == pytest.approx(losses)
    assert group.mean == pytest.approx(sum(losses) / 2)
    assert group.ensemble_loss == pytest.approx(evaluate(Ensemble(models), splits["val"]).loss)
    windows = [splits["val"].windows(1, 16) for _ in models]
    equal = [
        (models[0](x).argmax(-1) == models[1](x).argmax(-1)).flatten()
        for (x, _), _ in zip(*windows, strict=True)
    ]
    assert group.agreement == pytest.approx(torch.cat(equal).float().mean().item())
    assert result.groups[1].agreement is None
    train_losses = [evaluate(model, splits["train"]).loss for model in models]
    assert group.train_loss == pytest.approx(sum(train_losses) / 2)

    saved = json.loads(Path("study/distillation.json").read_text())
    assert [each["name"] for each in saved["groups"]] == [
        "teacher",
        "student-1",
        "student-2",
        "half",
    ]
    assert Path("study/distillation.svg").read_text().count("<svg") == 1
    assert Path("study/distillation.md").read_text() == format_table(result)
    assert not list(Path("study").glob("*/last"))

    again, lines = run(study, (2, 1, 2))  # nothing is trained again
    assert again == result
    assert len(lines) == 9
    with pytest.raises(UserError, match=r"holds a run with teachers \['teacher-1', 'teacher-2'\]"):
        run(study, (1, 1, 2))


def test_a_large_alphabet_is_not_counted(study: DistillationConfig) -> None:
    """A text without line breaks, and with more characters than the tables can have."""
    letters = [chr(0x4E00 + i) for i in range(400)]
    Path("letters.txt").write_text("".join(letters * 20), "utf-8")
    teacher, student = (
        replace(config, data="letters.txt") for config in (study.teacher, study.student)
    )
    run(replace(study, teacher=teacher, student=student), (1, 1, 1))
    saved = read_description(Path("study/student-1-101")).config
    assert saved.train.ngram_weight == 0
    assert saved.transfer


def test_the_table_has_a_row_for_each_group() -> None:
    groups = [
        Group("teacher", 0, 1000, [1.5, 1.6], [1.55, 1.6], 1.45, 1.2, 0.75, 30.4),
        Group("student-1", 2, 1000, [1.4], [1.4], 1.4, 1.3, None, 1234.0),
    ]
    rows = format_table(Distillation("cpu", "20 steps", groups)).splitlines()
    assert rows[2:4] == [
        "| teacher | – | 1,000 | 2 | 1.5500 (1.5000 to 1.6000) | 1.5750 | 1.4500 | 75.0% "
        "| 1.2000 | 30 s |",
        "| student-1 | 2 | 1,000 | 1 | 1.4000 (1.4000 to 1.4000) | 1.4000 | 1.4000 | – "
        "| 1.3000 | 1,234 s |",
    ]
    assert rows[-1] == "20 steps, cpu"


@pytest.mark.parametrize("is_cuda", [False, True])
def test_the_smaller_students_have_half_and_a_quarter_of_the_parameters(is_cuda: bool) -> None:
    config = _configure(is_cuda)
    whole = config.student.model
    assert isinstance(whole, ModernConfig)
    for (_, model), part in zip(config.smaller, (0.5, 0.25), strict=True):
        assert isinstance(model, ModernConfig)
        assert replace(model, n_embd=whole.n_embd) == whole
        assert (model.n_embd / whole.n_embd) ** 2 == pytest.approx(part, rel=0.05)


def test_fewer_steps_are_evaluated_as_often(study: DistillationConfig) -> None:
    assert set_steps(study.teacher, None) == study.teacher
    assert set_steps(study.teacher, 5).train == replace(study.teacher.train, steps=5, eval_every=2)


@pytest.mark.parametrize("flag", ["teachers", "students", "generations", "at-a-time"])
def test_numbers_must_be_positive(nanogpt: Command, flag: str) -> None:
    assert nanogpt("study", "distillation", f"--{flag}", "0") == (
        2,
        "",
        f"nanogpt: --{flag} is 0: it must be at least 1\n",
    )


@pytest.mark.parametrize("output", [slow("text"), slow("json")])
def test_the_command_prints_all_groups(nanogpt: Command, text_file: Path, output: str) -> None:
    flags = ["--data", text_file, "--device", "cpu", "--steps", "6", "--generations", "1"]
    flags += ["--teachers", "1", "--students", "1", *(["--json"] if output == "json" else [])]
    status, out, problem = nanogpt("study", "distillation", *flags)
    assert (status, problem) == (0, "")
    if output == "json":
        assert len(json.loads(out)["groups"]) == 4
    else:
        assert all(f"{name} " in out for name in ("teacher", "student-1", "half", "quarter"))
        assert "all together" in out
        assert out.endswith("distillation.json, distillation.md, distillation.svg\n")
