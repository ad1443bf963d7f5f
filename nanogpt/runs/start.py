"""Creates new runs, and restores runs from their last checkpoint."""

from collections.abc import Iterable
from dataclasses import replace
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from ..data import Data, Split, to_int64
from ..errors import UserError, is_denied, write_error
from ..kneser_ney_tables import MAX_COUNTED_TOKENS, MAX_VOCABULARY
from ..models import Model, ModelConfig, build
from ..optim import build_optimizers
from ..system import distributed
from ..system.agreement import agreement, require_equal, require_own_gpu
from ..system.devices import (
    keep_freed_memory,
    limit_threads,
    pick_device,
    pick_precision,
    use_deterministic,
)
from ..system.files import damaged_error, path_exists, replace_path, resolve_interrupted_swap
from ..text import corpora
from ..text.corpora import SPLITS
from ..text.encoding import encode_corpus, get_tokenizer
from ..text.ngrams import NGramCounts
from ..text.readers import Progress, no_progress
from ..text.tokenizers import Tokenizer
from .checkpoint import Checkpoint, load_checkpoint, load_training_tensors, read_checkpoint_info
from .config import RunConfig
from .directory import find_tokenizer, lock_run, make_run_directory
from .history import remove_later_snapshots
from .journal import Journal
from .loss_scale import LossScale
from .memory import require_run_memory
from .run import Run, SavedRun, load_same_text, read_saved_run
from .sharing import (
    is_sharded,
    require_equal_shares,
    require_same_start,
    sum_bits,
    vary_dropout,
)
from .starting import copy_weights, load_start
from .state import GENERATORS, State
from .teachers import Teacher, load_teachers, require_same_teachers

MAX_BIGRAM_TOKENS = 5_000_000
"""The bigram baseline counts at most this many tokens of each split."""


def prepare_run(config: RunConfig, progress: Progress = no_progress) -> Run:
    """Create a run and its directory; all settings are checked first.

    Raises UserError if a setting is invalid, or if the text or the directory cannot be used. Raises
    Stopped if writing fails.
    """
    with agreement():
        device = _set_up_device(config)
        precision = pick_precision(config.precision, device)
        require_equal_shares(config, device, precision, distributed.size())
        corpus = corpora.load_corpus(config.data, config.column, config.separator, progress)
        kind = find_tokenizer(config.tokenizer)
        tokenizer = get_tokenizer(kind, corpus, config.val_fraction, progress)
        start = load_start(config.start_from, tokenizer)
        data = Data(corpus, tokenizer, device, config.val_fraction, progress)
        option = None if start else "--model.block-size"  # a started run keeps its model
        require_tokens(data.splits.items(), config.model.block_size, option)
        config = replace(config, model=set_vocab_size(config.model, tokenizer.vocab_size))
        require_run_memory(config, device, precision, distributed.size())
        teachers = load_teachers(config.teachers, tokenizer, config.model.block_size, device)
        config, transfer, transfer_sha256 = _load_transfer_text(
            config, data, tokenizer, progress, may_download=True
        )
        _require_countable(config, data, tokenizer)
        torch.manual_seed(config.seed)  # for the initial weights and, later, dropout
        model = build(config.model)
        if start:
            copy_weights(start[1], model, start[0])
            config = replace(config, start_from=start[0])
    _connect_gpus(config, device)
    with agreement():
        if distributed.rank() == 0:
            out, lock = make_run_directory(config.out, config.name)
        else:
            out, lock = Path(), FileLock("")  # the first process holds the lock
    out = distributed.gather_objects(out)[0]
    paths = [teacher.run for teacher in teachers]
    config = replace(config, out=out, data=corpus.name, teachers=paths)
    sha256, steps = (corpus.facts.sha256, transfer_sha256), config.train.steps
    try:
        with agreement():
            run = _build_run(
                config, steps, lock, device, model, tokenizer, data, sha256, teachers, transfer
            )
            run.journal.begin()
        require_same_start(run)
    except OSError as error:
        lock.release()
        raise write_error(out, error) from None
    except BaseException:
        lock.release()
        raise
    vary_dropout(run)
    return run


def resume_run(saved: SavedRun | Path, config: RunConfig, progress: Progress = no_progress) -> Run:
    """Restore a run from its last checkpoint, to continue it with the settings in `config`.

    `saved` is a run directory or a SavedRun. Raises UserError if `config` describes a different
    run, if a file is missing or damaged, or if this user has no permission to write in the run
    directory. Raises Stopped if writing fails.
    """
    directory = saved if isinstance(saved, Path) else saved.directory
    lock = FileLock("")  # the first process holds the lock
    try:
        try:
            with agreement():
                if distributed.rank() == 0:
                    lock = lock_run(directory)
                    for checkpoint in (directory / "last", directory / "best"):
                        current = resolve_interrupted_swap(checkpoint)
                        if current != checkpoint:
                            replace_path(current, checkpoint)
            with agreement():
                if isinstance(saved, Path) or not saved.is_current():
                    saved = read_saved_run(directory)
                config.check_same_run(saved.config)
                device = _set_up_device(config)
            _connect_gpus(config, device)
            with agreement():
                run = _resume(saved, config, lock, device, progress)
            require_same_start(run)
        except BaseException:
            lock.release()
            raise
    except OSError as error:
        if is_denied(error):
            raise UserError(
                f"cannot access {error.filename or directory}: {error.strerror}; change its "
                f"permissions, or copy {directory} and resume the copy"
            ) from None
        raise write_error(directory, error) from None
    vary_dropout(run)
    return run


def _resume(
    saved: SavedRun, config: RunConfig, lock: FileLock, device: torch.device, progress: Progress
) -> Run:
    directory, info = saved.directory, saved.info
    precision = pick_precision(config.precision, device)
    require_equal_shares(config, device, precision, distributed.size())
    require_run_memory(config, device, precision, distributed.size())
    # The files of a run may name any address, so download only from an address that the user gives.
    is_given = config.data != saved.config.data
    corpus = load_same_text(config, info.text_sha256, progress, may_download=is_given)
    checkpoint = load_checkpoint(directory / "last", "cpu")
    if checkpoint.model.config != config.model:
        raise damaged_error(
            directory / "last" / "config.json", "its model differs from the one in training.json"
        )
    if checkpoint.step > config.train.steps:
        raise UserError(
            f"--train.steps is {config.train.steps}, but {directory} is already at step "
            f"{checkpoint.step}: choose a larger number"
        )
    tokenizer, model = checkpoint.tokenizer, checkpoint.model.train()
    data = Data(corpus, tokenizer, device, config.val_fraction, progress)
    require_tokens(data.splits.items(), config.model.block_size)
    teachers = load_teachers(config.teachers, tokenizer, config.model.block_size, device)
    require_same_teachers(teachers, info.teachers_sha256)
    is_given = config.transfer != saved.config.transfer
    config, transfer, _ = _load_transfer_text(
        config, data, tokenizer, progress, is_given, info.transfer_sha256
    )
    _require_countable(config, data, tokenizer)
    paths = [teacher.run for teacher in teachers]
    config = replace(config, out=directory, data=corpus.name, teachers=paths)
    sha256, steps = (info.text_sha256, info.transfer_sha256), info.config.train.steps
    run = _build_run(
        config, steps, lock, device, model, tokenizer, data, sha256, teachers, transfer
    )
    _restore(run, saved, checkpoint)
    return run


def _restore(run: Run, saved: SavedRun, checkpoint: Checkpoint) -> None:
    """Restore the state and the journal of a run from its last checkpoint."""
    state, info, step = run.state, saved.info, checkpoint.step
    state.step, state.tokens, state.seconds = step, info.tokens, info.seconds
    if info.gradient_norm is not None:
        state.gradient_norm = info.gradient_norm
    expected = state.expected_tensors(info.losses)
    tensors = load_training_tensors(run.out / "last", expected, GENERATORS)
    try:
        state.restore(tensors)
    except (RuntimeError, ValueError) as error:
        raise damaged_error(run.out / "last" / "training.safetensors", error) from None
    if state.scale and info.scale:
        state.scale = info.scale
    best = read_checkpoint_info(run.out / "best").best if path_exists(run.out / "best") else None
    if best and best.step == step and run.config.train.evaluates_at(step):
        # The resumed run repeats the evaluation at this step, so use the best one before this step.
        best = checkpoint.best
    run.journal.resume(info.lines, step, best)
    if distributed.rank() == 0:
        remove_later_snapshots(run.out, step)


def require_tokens(
    splits: Iterable[tuple[str, Split]], block_size: int, option: str | None = "--model.block-size"
) -> None:
    """Raise UserError if a split has at most block_size tokens; `splits` has (name, split) pairs.

    `option` is the command-line option that sets block_size; None if no option sets it.
    """
    name, n = min(((name, len(split.tokens)) for name, split in splits), key=itemgetter(1))
    if n > block_size:
        return
    problem = f"the text is too short: its {name} split has {n} token{'' if n == 1 else 's'}"
    if n > 1:
        problem += f", and block_size {block_size} needs at least {block_size + 1}"
    advice = f", or set {option} to {n - 1} or less" if option and n > 1 else ""
    raise UserError(f"{problem}; use a longer text{advice}")


def _set_up_device(config: RunConfig) -> torch.device:
    """Apply the settings that affect the whole process, and return the device."""
    limit_threads()
    keep_freed_memory()
    use_deterministic(config.deterministic)
    device = pick_device(config.device)
    if device.type == "cuda" and distributed.size() > 1:
        torch.cuda.set_device(device)
    return device


def _connect_gpus(config: RunConfig, device: torch.device) -> None:
    """Connect the GPUs of several processes, if they are needed to build the run."""
    require_equal({"train.shard": config.train.shard})
    require_own_gpu(device)
    if is_sharded(config):
        distributed.connect_gpus(device)


def _build_run(
    config: RunConfig,
    planned_steps: int,
    lock: FileLock,
    device: torch.device,
    model: Model,
    tokenizer: Tokenizer,
    data: Data,
    text_sha256: tuple[str, str],
    teachers: list[Teacher],
    transfer: Split | None,
) -> Run:
    """Build a run at step 0, from a model on the CPU.

    `text_sha256` is for the text and for the transfer text.
    """
    assert config.out is not None
    # OpenBLAS reserves memory at its first use. If it got none later, when loss.png is drawn, it
    # would end the program without an exception.
    np.linalg.inv(np.eye(2))
    precision = pick_precision(config.precision, device)
    weights_sum = sum_bits(model) if distributed.size() > 1 else 0
    if is_sharded(config):
        distributed.shard(model, device)
    else:
        model = model.to(device)
    tokens = (to_int64(data.splits[name].tokens[:MAX_BIGRAM_TOKENS].cpu()) for name in SPLITS)
    train, val = (NGramCounts(ids.numpy(), 2, tokenizer.vocab_size) for ids in tokens)
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
        planned_steps=planned_steps,
        out=config.out,
        lock=lock,
        device=device,
        precision=precision,
        tokenizer=tokenizer,
        data=data,
        text_sha256=text_sha256[0],
        bigram_loss=bigram_loss,
        state=state,
        journal=Journal(config.out, title, bigram_loss),
        teachers=teachers,
        transfer=transfer,
        transfer_sha256=text_sha256[1],
        weights_sum=weights_sum,
    )


def _load_transfer_text(
    config: RunConfig,
    data: Data,
    tokenizer: Tokenizer,
    progress: Progress,
    may_download: bool,
    expected_sha256: str | None = None,
) -> tuple[RunConfig, Split | None, str]:
    """Return `config` with the name of the transfer text, its tokens, and its SHA-256.

    Without a transfer text, return `config`, None and "". Raises UserError if the text cannot be
    used, or if its SHA-256 is not `expected_sha256`, which is "" for a run without this text.
    """
    if expected_sha256 is not None and bool(config.transfer) != bool(expected_sha256):
        advice = (
            "with a transfer text: name it with --transfer"
            if expected_sha256
            else "without a transfer text: leave out --transfer"
        )
        raise UserError(f"this run was started {advice}")
    if not config.transfer:
        return config, None, ""
    if config.transfer_blocks in (0, config.train.batch_size):
        raise UserError(
            f"transfer_share is {config.train.transfer_share}, so a batch of "
            f"{config.train.batch_size} has {config.transfer_blocks} blocks of the transfer text: "
            f"each batch needs blocks of both texts, so use a larger batch, or a share closer to "
            f"0.5"
        )
    try:
        corpus = corpora.load_corpus(
            config.transfer,
            config.column,
            config.separator,
            progress,
            expected_sha256=expected_sha256,
            may_download=may_download,
        )
        tokens = Split(encode_corpus(corpus, tokenizer, progress=progress)).tokens
    except UserError as error:
        raise UserError(f"--transfer: {error}") from None
    dtype, device = data.splits["train"].tokens.dtype, data.splits["train"].device
    if tokens.dtype != dtype:
        tokens = to_int64(tokens).to(dtype)
    split = Split(tokens, device)
    require_tokens([("transfer", split)], config.model.block_size)
    return replace(config, transfer=corpus.name), split, corpus.facts.sha256


def _require_countable(config: RunConfig, data: Data, tokenizer: Tokenizer) -> None:
    """Raise UserError if n-grams are teachers, but their tables would be too large."""
    V, n = tokenizer.vocab_size, len(data.splits["train"].tokens)
    problem = f"ngram_weight is {config.train.ngram_weight}, but"
    if config.train.ngram_weight and V > MAX_VOCABULARY:
        raise UserError(
            f"{problem} the tokenizer has {V:,} tokens: use a tokenizer with at most "
            f"{MAX_VOCABULARY}, such as byte, or --train.ngram-weight 0"
        )
    if config.train.ngram_weight and n > MAX_COUNTED_TOKENS:
        raise UserError(
            f"{problem} the training split has {n:,} tokens: use a text with at most "
            f"{MAX_COUNTED_TOKENS:,}, or --train.ngram-weight 0"
        )


def set_vocab_size(config: ModelConfig, vocab_size: int) -> ModelConfig:
    """Return `config` with this vocabulary size. Raises UserError if `config` sets another size."""
    if config.vocab_size not in (type(config)().vocab_size, vocab_size):
        raise UserError(
            f"--model.vocab-size is {config.vocab_size}, but the tokenizer has {vocab_size} "
            f"tokens: leave the option out; the tokenizer determines the vocabulary size"
        )
    try:
        return replace(config, vocab_size=vocab_size)
    except ValueError as error:  # too many tokens for a bigram
        raise UserError(f"{error}") from None
