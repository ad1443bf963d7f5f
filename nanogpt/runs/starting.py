"""Starts a run from the weights of another run: continued training, for example on another text."""

from dataclasses import fields, replace
from pathlib import Path

from ..errors import UserError, join_command
from ..models import Model
from ..text.tokenizers import Tokenizer
from .checkpoint import load_checkpoint, read_checkpoint_info
from .config import RunConfig
from .directory import find_run


def adopt_model(config: RunConfig, run: str) -> RunConfig:
    """Return `config` with the model and the tokenizer of a run, and with `start_from`."""
    directory = find_run(run)
    model = read_checkpoint_info(directory / "best").model
    train = replace(config.train, eval_first=True)  # the first loss is that of the other run
    try:
        return replace(
            config, start_from=directory, model=model, tokenizer=str(directory), train=train
        )
    except ValueError as error:  # the optimizer of the preset cannot train this model
        raise UserError(f"{error}") from None


def load_start(run: Path | None, tokenizer: Tokenizer) -> tuple[Path, Model] | None:
    """Return the directory of a run and its best model; None if `run` is None.

    Raises UserError if the run does not exist, or has another tokenizer than the new run.
    """
    if run is None:
        return None
    directory = find_run(str(run))
    checkpoint = load_checkpoint(directory / "best")
    if checkpoint.tokenizer.to_json() != tokenizer.to_json():
        raise UserError(
            f"{directory} has another tokenizer: leave out --tokenizer, or use --tokenizer "
            f"{join_command([directory])}"
        )
    return directory, checkpoint.model


def copy_weights(start: Model, model: Model, run: Path) -> None:
    """Copy the weights of the best model of `run` into a new model.

    Raises UserError if the configurations of the models differ, except for dropout.
    """
    if type(start) is not type(model):
        raise UserError(
            f"{run} has a {type(start).__name__}, but this run has a {type(model).__name__}: "
            f"use the configuration of the model of that run"
        )
    for field in fields(start.config):
        found, needed = (getattr(each.config, field.name) for each in (model, start))
        if found != needed and field.name != "dropout":
            raise UserError(
                f"{field.name} is {found}, but {run} has {needed}: a run that starts from another "
                f"one keeps its model; leave the option out"
            )
    model.load_state_dict(start.state_dict())
