"""The command that writes with a trained model: nanogpt sample."""

import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING

from ..errors import UserError, escape_control, print_note
from .arguments import SampleArgs, parse_arguments

if TYPE_CHECKING:
    from ..api import GenerationConfig, Trained


def sample(args: list[str]) -> None:
    """write text with a trained model"""
    from ..api import load
    from ..system.devices import limit_threads

    options = parse_arguments(SampleArgs(), args, "nanogpt sample")
    how = generation_config(options)
    if options.interactive and (options.prompt or options.prompt_file or options.json):
        raise UserError("--interactive asks for its prompts: leave the other options for them out")
    limit_threads()
    trained = load(options.run, options.device, options.precision)
    if options.interactive:
        _interactive(trained, how)
    else:
        prompts = _prompts(options, trained)
        (_write_json if options.json else write)(trained, prompts, how)


def generation_config(options: SampleArgs) -> "GenerationConfig":
    """How options ask to write."""
    from ..api import GenerationConfig

    names = (field.name for field in fields(GenerationConfig))
    return GenerationConfig(**{name: getattr(options, name) for name in names})


def write(trained: "Trained", prompts: Sequence[str], how: "GenerationConfig") -> None:
    """Print continuations of prompts: the first as it is written, the others behind it."""
    completions = trained.complete(prompts, how)
    several = len(completions.texts) > 1

    def begin(number: int) -> None:
        if several:
            print(f"--- {number + 1} of {len(completions.texts)} ---")
        _print(completions.texts[number].prompt)

    begin(0)
    for number, piece in completions:
        if number == 0:
            _print(piece)
    print()
    for number in range(1, len(completions.texts)):
        begin(number)
        _print(completions.texts[number].text)
        print()


def _print(text: str) -> None:
    print(escape_control(text) if sys.stdout.isatty() else text, end="", flush=True)


def _write_json(trained: "Trained", prompts: Sequence[str], how: "GenerationConfig") -> None:
    for text in trained.complete(prompts, how, logprobs=True).finish():
        print(json.dumps(asdict(text)))


def _interactive(trained: "Trained", how: "GenerationConfig") -> None:
    """Ask for prompts until there are no more. Ctrl-C ends the text, or clears the line."""
    with suppress(ImportError):
        import readline  # noqa: F401  input() has a history then

    end = "Ctrl-Z and Enter" if os.name == "nt" else "Ctrl-D"
    print_note(f"Ctrl-C ends a text, {end} all")
    while True:
        try:
            prompt = input("> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            continue
        try:
            write(trained, [prompt], how)
        except KeyboardInterrupt:
            print()
        except UserError as error:  # a character that the tokenizer does not know
            print_note(str(error))
        how = replace(how, seed=how.seed + 1)  # the same prompt again goes on another way


def _prompts(options: SampleArgs, trained: "Trained") -> list[str]:
    """The prompts asked for, and what the user should know of them."""
    from ..text.completion import encode_prompt
    from ..text.readers import read_text

    prompts = list(options.prompt)
    if options.prompt_file is not None:
        prompts.append(read_text(options.prompt_file))
    block_size = trained.model.config.block_size
    for prompt in prompts or [""]:
        tokens = len(encode_prompt(trained.tokenizer, prompt))
        if not prompt:
            print_note("no prompt: the text begins at the start of a line")
        elif tokens > block_size:
            print_note(f"the model sees the last {block_size} of the prompt's {tokens} tokens")
    return prompts or [""]
