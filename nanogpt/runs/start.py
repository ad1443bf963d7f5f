"""A run ready to go: prepared anew, or resumed from its last checkpoint."""

from dataclasses import replace
from pathlib import Path

import torch
from filelock import FileLock

from ..data import Data, to_int64
from ..errors import UserError, write_error
from ..models import Model, ModelConfig, build
from ..optim import build_optimizers
from ..system.devices import (
    keep_freed_memory,
    limit_threads,
    pick_device,
    pick_precision,
    use_deterministic,
)
from ..system.files import damaged_error, replace_path, resolve_interrupted_swap
from ..text import corpora, tokenizers
from ..text.corpora import SPLITS
from ..text.encoding import get_tokenizer
from ..text.ngrams import NGramCounts
from ..text.readers import Progress, no_progress
from .checkpoint import Checkpoint, load_checkpoint, load_tensors, load_training
from .config import RunConfig
from .directory import lock_run, make_run_directory
from .journal import Journal
from .loss_scale import LossScale
from .run import ResumeInfo, Run
from .state import GENERATORS, State

COUNTED = 5_000_000
"""Tokens, the most that the bigram baseline is counted from."""


def prepare_run(config: RunConfig, progress: Progress = no_progress) -> Run:
    """A new run, everything in it made and checked before its first step. Raises UserError."""
    device = _hardware(config)
    pick_precision(config.precision, device)
    corpus = corpora.load_corpus(config.data, config.column, config.separator, progress)
    tokenizer = get_tokenizer(config.tokenizer, corpus, config.val_fraction, progress)
    data = Data(corpus, tokenizer, device, config.val_fraction, progress)
    data.require(config.model.block_size)
    torch.manual_seed(config.seed)  # the initial weights, then dropout
    model = build(_with_vocabulary(config.model, tokenizer.vocab_size)).to(device)
    out, lock = make_run_directory(config.out, config.name)
    config = replace(config, out=out, model=model.config, data=corpus.name)
    run = _run(config, lock, model, tokenizer, data, corpus.facts.sha256)
    try:
        run.journal.begin()
    except OSError as error:
        raise write_error(out, error) from None
    return run


def resume_run(directory: Path, config: RunConfig, progress: Progress = no_progress) -> Run:
    """The run in a directory, as its last checkpoint has it, to go on by config.

    Raises UserError where config asks for another run, or where a file is missing or damaged;
    Stopped where nothing can be written.
    """
    try:
        lock = lock_run(directory)
        for checkpoint in ("last", "best"):  # where a replacement was cut short
            if (old := resolve_interrupted_swap(directory / checkpoint)) != directory / checkpoint:
                replace_path(old, directory / checkpoint)
        try:
            return _resume(directory, config, lock, progress)
        except BaseException:
            lock.release()
            raise
    except OSError as error:
        raise write_error(directory, error) from None


def _resume(directory: Path, config: RunConfig, lock: FileLock, progress: Progress) -> Run:
    last = directory / "last"
    facts = load_training(last, ResumeInfo)
    config.check_same_run(replace(facts.config, out=directory))
    device = _hardware(config)
    corpus = corpora.load_corpus(
        config.data,
        config.column,
        config.separator,
        progress,
        expected_sha256=facts.text_sha256,
        may_download=False,
    )
    checkpoint = load_checkpoint(last, device)
    if checkpoint.model.config != config.model:
        raise damaged_error(last / "config.json", "its model is not the one in training.json")
    if checkpoint.step > config.train.steps:
        raise UserError(
            f"--train.steps is {config.train.steps}, and {directory} is at step "
            f"{checkpoint.step}: name a larger number"
        )
    tokenizer, model = checkpoint.tokenizer, checkpoint.model.train()
    data = Data(corpus, tokenizer, device, config.val_fraction, progress)
    data.require(config.model.block_size)
    config = replace(config, out=directory, data=corpus.name)
    run = _run(config, lock, model, tokenizer, data, facts.text_sha256)
    _restore(run, facts, checkpoint)
    return run


def _restore(run: Run, facts: ResumeInfo, checkpoint: Checkpoint) -> None:
    state, step = run.state, checkpoint.step
    state.step, state.tokens, state.seconds = step, facts.tokens, facts.seconds
    tensors = load_tensors(run.out / "last", state.expected(facts.losses), GENERATORS)
    try:
        state.restore(tensors)
    except (RuntimeError, ValueError) as error:
        raise damaged_error(run.out / "last" / "training.safetensors", error) from None
    if state.scale and facts.scale:
        state.scale = facts.scale
    best = load_checkpoint(run.out / "best").best if (run.out / "best").exists() else None
    if best and best.step == step and run.config.train.evaluates_at(step):
        best = checkpoint.best  # the evaluation that follows finds this one again
    run.journal.resume(facts.lines, step, best)


def _hardware(config: RunConfig) -> torch.device:
    limit_threads()
    keep_freed_memory()
    use_deterministic(config.deterministic)
    return pick_device(config.device)


def _run(
    config: RunConfig,
    lock: FileLock,
    model: Model,
    tokenizer: tokenizers.Tokenizer,
    data: Data,
    text_sha256: str,
) -> Run:
    """What prepare() and resume() have in common."""
    assert config.out is not None
    device = next(model.parameters()).device
    precision = pick_precision(config.precision, device)
    train, val = (
        NGramCounts(
            to_int64(data.splits[name].tokens[:COUNTED].cpu()).numpy(), 2, tokenizer.vocab_size
        )
        for name in SPLITS
    )
    bigram_loss = train.loss(val)
    state = State(
        model=model,
        optimizers=build_optimizers(model, config.optim, precision),
        scale=LossScale() if precision == torch.float16 else None,
        average=[p.detach().clone() for p in model.parameters() if config.optim.ema],
        losses=torch.empty(0, device=device),
    )
    title = f"{config.out.name}: {sum(p.numel() for p in model.parameters()):,} parameters"
    return Run(
        config=config,
        out=config.out,
        lock=lock,
        device=device,
        precision=precision,
        tokenizer=tokenizer,
        data=data,
        text_sha256=text_sha256,
        bigram_loss=bigram_loss,
        state=state,
        journal=Journal(config.out, title, bigram_loss),
    )


def _with_vocabulary(config: ModelConfig, vocab_size: int) -> ModelConfig:
    if config.vocab_size not in (type(config)().vocab_size, vocab_size):
        raise UserError(
            f"--model.vocab-size is {config.vocab_size}, but this text has {vocab_size} different "
            f"tokens: leave it out, it follows from the text"
        )
    return replace(config, vocab_size=vocab_size)
