"""The command that writes with a trained model: nanogpt sample."""

import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from .arguments import SampleArgs, parse
from .errors import UserError, harmless, note

if TYPE_CHECKING:
    from .trained import Trained
    from .writing import Writing


def sample(args: list[str]) -> None:
    """write text with a trained model"""
    from .devices import use_threads
    from .trained import load

    options = parse(SampleArgs(), args, "nanogpt sample")
    how = writing_of(options)
    if options.interactive and (options.prompt or options.prompt_file or options.json):
        raise UserError("--interactive asks for its prompts: leave the other options for them out")
    use_threads()
    trained = load(options.run, options.device, options.precision)
    if options.interactive:
        _interactive(trained, how)
    else:
        prompts = _prompts(options, trained)
        (_write_json if options.json else write)(trained, prompts, how)


def writing_of(options: SampleArgs) -> "Writing":
    """How options ask to write."""
    from .generate import Sampling
    from .writing import Writing

    return Writing(
        max_new_tokens=options.max_new_tokens,
        samples=options.samples,
        stop=options.stop,
        seed=options.seed,
        logprobs=options.json,
        cuda_graph=options.cuda_graph,
        sampling=Sampling(
            repetition_penalty=options.repetition_penalty,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            min_p=options.min_p,
        ),
    )


def write(trained: "Trained", prompts: Sequence[str], how: "Writing") -> None:
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
    print(harmless(text) if sys.stdout.isatty() else text, end="", flush=True)


def _write_json(trained: "Trained", prompts: Sequence[str], how: "Writing") -> None:
    for text in trained.complete(prompts, how).finish():
        print(json.dumps(asdict(text)))


def _interactive(trained: "Trained", how: "Writing") -> None:
    """Ask for prompts until there are no more. Ctrl-C ends the text, or clears the line."""
    with suppress(ImportError):
        import readline  # noqa: F401  input() has a history then

    note("Ctrl-C ends a text, Ctrl-D all")
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
            note(str(error))
        how = replace(how, seed=how.seed + 1)  # the same prompt again goes on another way


def _prompts(options: SampleArgs, trained: "Trained") -> list[str]:
    """The prompts asked for, and what the user should know of them."""
    from .sources import read_text
    from .writing import begin

    prompts = list(options.prompt)
    if options.prompt_file is not None:
        prompts.append(read_text(options.prompt_file))
    block_size = trained.model.config.block_size
    for prompt in prompts or [""]:
        tokens = len(begin(trained.tokenizer, prompt))
        if not prompt:
            note("no prompt: the text begins at the start of a line")
        elif tokens > block_size:
            note(f"the model sees the last {block_size} of the prompt's {tokens} tokens")
    return prompts or [""]
