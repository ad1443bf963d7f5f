"""A user who follows the advice in an error of the Python API does not get this error again."""

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nanogpt.api import GenerationConfig, make_config
from nanogpt.models import BigramConfig, GPTConfig, ModernConfig
from nanogpt.optim import OptimConfig
from nanogpt.runs.config import RunConfig, TrainConfig
from nanogpt.runs.start import require_tokens
from nanogpt.system.devices import pick_device, pick_precision
from nanogpt.text.corpora import CORPORA, load_corpus
from nanogpt.text.tokenizers import make_tokenizer

from .cases import Case, Command, check, make_files


def generate(**options: object) -> Callable[[], object]:
    return lambda: GenerationConfig(**options)  # type: ignore[arg-type]


def teach(**options: float) -> TrainConfig:
    return TrainConfig(**options)  # type: ignore[arg-type]


def float8(model: GPTConfig | ModernConfig, **training: bool) -> RunConfig:
    settings = TrainConfig(**training)  # type: ignore[arg-type]
    return RunConfig(model=model, precision="float8", train=settings)


AVERAGED = OptimConfig(ema=0.9)
CPU = torch.device("cpu")


def read(data: str, **options: str) -> Callable[[], object]:
    return lambda: load_corpus(data, **options).text()  # type: ignore[arg-type]


def write(file: str, raw: str | bytes) -> Callable[[], object]:
    """Return a function that writes a file, then loads it as a corpus."""

    def act() -> object:
        Path(file).write_bytes(raw if isinstance(raw, bytes) else raw.encode())
        return load_corpus(file).text()

    return act


def require(tokens: int, block_size: int) -> None:
    """Raise UserError if a split with `tokens` tokens is too short for `block_size`."""
    split = type("Split", (), {"tokens": range(tokens)})
    require_tokens([("val", split)], block_size)  # type: ignore[list-item]


def words(count: int) -> list[str]:
    return [" ".join(f"w{n % 7}" for n in range(count))]


SETTINGS = [
    Case(
        "there is no option topk",
        lambda: make_config({"topk": 1}),  # type: ignore[typeddict-unknown-key]
        lambda name: make_config({name: 1}),  # type: ignore[misc]
        r"did you mean (\w+)",
    ),
    Case("steps is 0", lambda: GPTConfig(n_layer=0), lambda: GPTConfig(n_layer=1)),
    Case("max_new_tokens", generate(max_new_tokens=0), generate(max_new_tokens=1)),
    Case("steps is 0", lambda: TrainConfig(steps=0), lambda: TrainConfig(steps=2**31 - 1)),
    Case(
        "accumulation is 3",
        lambda: TrainConfig(accumulation=3, batch_size=64),
        lambda size: TrainConfig(accumulation=int(size) // 2, batch_size=int(size)),
        r"batch_size (\d+)",
    ),
    Case("history is -1", lambda: TrainConfig(history=-1), lambda: TrainConfig(history=10_000)),
    Case("patience", lambda: TrainConfig(patience=0), lambda: TrainConfig(patience=None)),
    Case(
        "stop_at_val_loss",
        lambda: TrainConfig(stop_at_val_loss=float("nan")),
        lambda: TrainConfig(stop_at_val_loss=None),
    ),
    Case("decay_steps", lambda: OptimConfig(decay_steps=0), lambda: OptimConfig(decay_steps=1)),
    Case(
        "n_embd is 128: it must be a multiple of n_head",
        lambda: GPTConfig(n_embd=128, n_head=3),
        lambda width: GPTConfig(n_embd=int(width), n_head=3),
        r"try n_embd (\d+)",
    ),
    Case(
        "n_embd is 128: it must be a multiple of twice",
        lambda: ModernConfig(n_embd=128, n_head=3),
        lambda width: ModernConfig(n_embd=int(width), n_head=3),
        r"try n_embd (\d+)",
    ),
    Case("teacher_weight is", lambda: teach(teacher_weight=0), lambda: teach(teacher_weight=1)),
    Case(
        "teacher_temperature",
        lambda: teach(teacher_temperature=0),
        lambda: teach(teacher_temperature=1),
    ),
    Case("mean_teacher is 1.0", lambda: teach(mean_teacher=1), lambda: teach(mean_teacher=0)),
    Case(
        "mean_teacher is 0.3, but",
        lambda: RunConfig(train=teach(mean_teacher=0.3)),
        lambda ema: RunConfig(train=teach(mean_teacher=0.3), optim=OptimConfig(ema=float(ema))),
        r"to ([\d.]+),",
    ),
    Case(
        "transfer_share is 1.0", lambda: teach(transfer_share=1), lambda: teach(transfer_share=0.5)
    ),
    Case(
        "mean_teacher is 0.3, teacher",
        lambda: RunConfig(train=teach(mean_teacher=0.3), teachers=[Path("a")], optim=AVERAGED),
        lambda: RunConfig(
            train=teach(mean_teacher=0.3, teacher_weight=0.7), teachers=[Path("a")], optim=AVERAGED
        ),
    ),
    Case(
        "optimizer is muon",
        lambda: RunConfig(model=BigramConfig(), optim=OptimConfig(optimizer="muon")),
        lambda name: RunConfig(model=BigramConfig(), optim=OptimConfig(optimizer=name)),
        r"use (adam) or adamw",
    ),
    Case(
        "precision is float8, but this kind",
        lambda: RunConfig(model=BigramConfig(), precision="float8"),
        lambda name: RunConfig(model=BigramConfig(), precision=name),
        r"use precision (\w+)$",
    ),
    Case(
        "precision is float8, but compile",
        lambda: float8(GPTConfig(n_embd=768), compile=False),
        lambda: float8(GPTConfig(n_embd=768), compile=True),
    ),
    Case(
        "precision is float8, but block_size",  # the same line for another name
        lambda: float8(ModernConfig(n_embd=700, n_head=7)),
        lambda width: float8(ModernConfig(n_embd=int(width), n_head=7)),
        r"try n_embd (\d+)",
    ),
    Case(
        "precision is float8, but n_embd",
        lambda: float8(GPTConfig(n_embd=384)),
        lambda width: float8(GPTConfig(n_embd=int(width), n_head=8)),
        r"at least (\d+)",
    ),
    Case(
        "precision is float8, but block_size",
        lambda: float8(GPTConfig(n_embd=768, block_size=100)),
        lambda size: float8(GPTConfig(n_embd=768, block_size=int(size))),
        r"try block_size (\d+)",
    ),
    Case(
        "cpu (AMD EPYC) does not support float8",
        lambda: pick_precision("float8", CPU),
        lambda name: pick_precision(name, CPU),
        r"use precision (\w+)",
    ),
    Case("cooldown", lambda: OptimConfig(cooldown=0.0), lambda: OptimConfig(cooldown=1.0)),
    Case("dropout", lambda: GPTConfig(dropout=1.0), lambda: GPTConfig(dropout=0.0)),
    Case("lr is 0.0", lambda: OptimConfig(lr=0.0), lambda: OptimConfig(lr=1e-9)),
    Case("weight_decay", lambda: OptimConfig(grad_clip=-1.0), lambda: OptimConfig(grad_clip=0.0)),
    Case("beta1", lambda: OptimConfig(beta2=1.0), lambda: OptimConfig(beta2=0.0)),
    Case("seed is -1", lambda: RunConfig(seed=-1), lambda: RunConfig(seed=2**63 - 1)),
    Case("val_fraction", lambda: RunConfig(val_fraction=1.0), lambda: RunConfig(val_fraction=0.5)),
    Case("name is", lambda: RunConfig(name="a/b"), lambda: RunConfig(name="b", out=Path("a/b"))),
    Case("temperature", generate(temperature=-1.0), generate(temperature=0.0)),
    Case("top_k", generate(top_k=0), generate(top_k=1)),
    Case("top_p", generate(top_p=2.0), generate(top_p=1.0)),
    Case("repetition_penalty", generate(repetition_penalty=0.0), generate(repetition_penalty=1.0)),
    Case("stop has an empty", generate(stop=("", "a")), generate(stop=("a",))),
    Case(
        "vocab_size is 50257",
        lambda: BigramConfig(vocab_size=50257),
        lambda size: BigramConfig(vocab_size=int(size)),
        r"at most (\d+) tokens",
    ),
    Case(
        "there is no device",
        lambda: pick_device("gpu"),
        lambda: pick_device("cpu"),
        "use auto, cpu",
    ),
    Case(
        "tokenizer is bpe:x",
        lambda: make_tokenizer("bpe:x", [], words(9000)),
        lambda kind: make_tokenizer(kind, [], ["".join(map(chr, range(97, 8000)))] * 3),
        r"as in (bpe:\d+)",
    ),
    Case(
        "tokenizer is bpe:99",
        lambda: make_tokenizer("bpe:99", [], words(99)),
        lambda kind: make_tokenizer(kind, [], words(99)),
        r"use (bpe:\d+)",
    ),
    Case(
        "the training text has enough pairs for 512",
        lambda: make_tokenizer("bpe:2048", [], words(99)),
        lambda kind: make_tokenizer(kind, [], words(99)),
        r"the tokenizer (bpe:\d+)",
    ),
    Case(
        "the training text has enough pairs for 256",
        lambda: make_tokenizer("bpe:2048", [], ["a"]),
        lambda kind: make_tokenizer(kind, [], ["a"]),
        r"the tokenizer (byte)",
    ),
    Case(
        "the text is too short: its val split has 20 tokens",
        lambda: require(20, 64),
        lambda size: require(20, int(size)),
        r"--model.block-size to (\d+) or less",
    ),
    Case(
        "the text is too short: its val split has 1 token;",
        lambda: require(1, 64),
        lambda: require(65, 64),
    ),
    Case("my.txt is empty", write("my.txt", ""), write("my.txt", "text")),
    Case("no file matches", read("texts/*.rs"), read("src/*/*.rs")),
    Case(
        "pictures is a directory without text files (.txt, .text, .md, .rst, .jsonl, .parquet): "
        "name another directory, or",
        read("src"),
        lambda pattern: load_corpus("".join(shlex.split(pattern))),
        "a pattern such as (.+)",
    ),
    Case("pictures is a directory", read("empty"), read("src/deep/*")),
    Case(
        "a.jsonl, line 7: not JSON;",
        write("a.jsonl", '{"text": "a"}\n{'),
        write("a.jsonl", '{"text": "a"}\n'),
    ),
    Case(
        "a.jsonl, line 7: not a JSON object",
        write("a.jsonl", "[]"),
        write("a.jsonl", '{"text": "b"}'),
    ),
    Case(
        "a.jsonl, line 7: there is no column",
        read("rows.jsonl"),
        lambda column: load_corpus("rows.jsonl", column),
        r"--column \((body), title\)",
    ),
    Case(
        "a.jsonl, line 7: there is no column",
        read("rows.parquet"),
        lambda column: load_corpus("rows.parquet", column),
        r"--column \(body, (title)\)",
    ),
    Case(
        "a.jsonl, line 7: the column 'text' is not text; no other",
        write("a.jsonl", '{"text": 7}'),
        write("a.jsonl", '{"text": "b"}'),
    ),
    Case(
        "a.jsonl, line 7: the column 'text' is null",
        write("a.jsonl", '{"text": null, "title": "a"}'),
        write("a.jsonl", '{"text": "", "title": "a"}\n{"text": "b"}'),
    ),
    Case(
        "a.parquet, row 7",
        lambda: load_corpus("rows.parquet", "id"),
        lambda column: load_corpus("rows.parquet", column),
        r"--column \((body), title\)",
    ),
    Case(
        "a.jsonl, line 2: the text has",
        write("a.jsonl", '{"text": "\\ud800"}'),
        write("a.jsonl", '{"text": "a"}'),
    ),
    Case(
        f"there is no file or corpus my.txt: the corpora are {', '.join(CORPORA)}",
        read("nothing.txt"),
        lambda name: load_corpus(name),
        r"the corpora are (\w+)",
    ),
    Case(
        "the text has an unpaired",
        lambda: make_tokenizer("byte", [], []).encode("\ud800"),
        lambda: make_tokenizer("byte", [], []).encode(""),
    ),
    Case(
        "the tokenizer does not know",
        lambda: make_tokenizer("char", ["caf"], []).encode("caffé"),
        lambda character: make_tokenizer("char", ["caf"], []).encode(
            "caffé".replace(character, "")
        ),
        r"the character '(.)'",
    ),
]
"""These cases call the Python API, and take little time."""


@pytest.mark.parametrize("case", SETTINGS, ids=lambda case: case.row[:40])
def test_the_advice_of_the_python_api_works(nanogpt: Command, case: Case) -> None:
    make_files()
    check(nanogpt, case)
