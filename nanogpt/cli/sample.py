"""nanogpt sample: generate text with a trained model."""

import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..api import GenerationConfig, Trained, load
from ..errors import Interrupted, UserError, escape_control, print_note
from ..system.devices import Precision, limit_threads
from ..text.completion import encode_prompt
from ..text.readers import read_text
from .arguments import parse_arguments
from .values import Flag, Run


@dataclass(frozen=True, kw_only=True)
class SampleArgs(GenerationConfig):
    """Generate text with a trained model."""

    run: Run = None
    """Run directory, or its name below runs/; by default the newest run."""
    prompt: tuple[str, ...] = ()
    """Text to continue; repeat the option for several prompts. Without a prompt, the generated text
    starts at the beginning of a line."""
    prompt_file: Path | None = None
    """File with a text to continue."""
    interactive: Flag = False
    """Ask for one prompt after another. Ctrl-C stops a completion; Ctrl-D (Ctrl-Z on
    Windows) ends the command."""
    json: Flag = False
    """Print each completion as a line of JSON; keys: prompt, text, tokens, logprobs, stopped."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    precision: Precision = "auto"
    """Data type of the weights; auto is bfloat16 on a CUDA GPU that supports it, else float32."""


def sample(args: list[str]) -> None:
    """Generate text with a trained model."""
    options = parse_arguments(SampleArgs(), args, "nanogpt sample")
    if options.interactive and (options.prompt or options.prompt_file or options.json):
        raise UserError("--interactive asks for prompts: leave out --prompt, --prompt-file, --json")
    limit_threads()
    trained = load(options.run, options.device, options.precision)
    if options.interactive:
        _ask_for_prompts(trained, options)
    elif options.json:
        for completion in trained.complete(_read_prompts(options, trained), options, True).finish():
            print(json.dumps(asdict(completion)))
    else:
        print_completions(trained, _read_prompts(options, trained), options)


def print_completions(
    trained: Trained, prompts: Sequence[str], options: GenerationConfig
) -> list[str]:
    """Print the completions of `prompts`: the first one piece by piece, then all others.

    Returns the completions.
    """
    completions = trained.complete(prompts, options)
    count = len(completions.texts)

    def print_prompt(index: int) -> None:
        if count > 1:
            print(f"--- {index + 1} of {count} ---")
        _print(completions.texts[index].prompt)

    print_prompt(0)
    for index, piece in completions:
        if index == 0:
            _print(piece)
    print()
    for index in range(1, count):
        print_prompt(index)
        _print(completions.texts[index].text)
        print()
    return [completion.text for completion in completions.texts]


def _print(text: str) -> None:
    print(escape_control(text) if sys.stdout.isatty() else text, end="", flush=True)


def _ask_for_prompts(trained: Trained, options: GenerationConfig) -> None:
    """Ask for prompts and print their completions until the input ends.

    Ctrl-C ends the current completion, or clears the input line.
    """
    with suppress(ImportError):
        import readline  # noqa: F401  the import gives input() a history

    end = "Ctrl-Z and Enter" if os.name == "nt" else "Ctrl-D"
    print_note(f"Ctrl-C stops a completion, {end} ends the command")
    while True:
        try:
            prompt = input("> ")
        except (EOFError, OSError):  # OSError: the input cannot be read
            print()
            return
        except KeyboardInterrupt as error:
            _continue_after(error)
            continue
        try:
            print_completions(trained, [prompt], options)
        except KeyboardInterrupt as error:
            _continue_after(error)
        except UserError as error:  # such as an unknown character in the prompt
            print_note(str(error))
        options = replace(options, seed=options.seed + 1)  # the same prompt gives another text


def _continue_after(error: KeyboardInterrupt) -> None:
    """Start a new line after Ctrl-C; raise `error` again after a signal such as SIGTERM."""
    if isinstance(error, Interrupted):
        raise error
    print()


def _read_prompts(options: SampleArgs, trained: Trained) -> list[str]:
    """Return the prompts in the options; print a note about each empty or too long prompt."""
    prompts = list(options.prompt)
    if options.prompt_file is not None:
        prompts.append(read_text(options.prompt_file))
    block_size = trained.model.config.block_size
    for prompt in prompts or [""]:
        tokens = len(encode_prompt(trained.tokenizer, prompt))
        if not prompt:
            print_note("no prompt: the text starts at the beginning of a line")
        elif tokens > block_size:
            print_note(f"the model sees the last {block_size} of the prompt's {tokens} tokens")
    return prompts or [""]
