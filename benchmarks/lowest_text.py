"""The sentences about the lowest losses in docs/, with numbers from the result files."""

from collections.abc import Sequence
from statistics import mean
from typing import Any


def get_group(study: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the result of a group of the distillation study."""
    group: dict[str, Any] = next(each for each in study["groups"] if each["name"] == name)
    return group


def describe(losses: Sequence[float], study: dict[str, Any]) -> str:
    """Return the losses of `best`, of an ensemble of such models, and of their students."""
    teachers, students = get_group(study, "teacher"), get_group(study, "student-1")
    return (
        f"The mean validation loss of `best` with {len(losses)} seeds is {mean(losses):.4f} "
        f"({min(losses):.4f} to {max(losses):.4f}).\n\n"
        f"An ensemble averages the probabilities of several models. {len(teachers['losses'])} "
        f"other runs of `best` have a\nloss of {teachers['ensemble_loss']:.4f} together. "
        f"{len(students['losses'])} models of the same shape that learned from them have a mean "
        f"loss of\n**{mean(students['losses']):.4f}**, and **{students['ensemble_loss']:.4f}** "
        f"together; [studies.md](studies.md#distillation) explains how.\n"
    )


def summarise(losses: Sequence[float], study: dict[str, Any]) -> str:
    """Return the losses of `best` and of students in two sentences."""
    students = mean(get_group(study, "student-1")["losses"])
    return (
        f"The preset `best` reaches a loss of about {mean(losses):.2f} with strong weight decay, "
        f"Muon and averaged weights.\nModels that also learn from such models, and from text that "
        f"these models generate, reach {students:.2f}\n(`nanogpt study distillation`).\n"
    )
