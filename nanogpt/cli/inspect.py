"""nanogpt inspect."""

from ..errors import UserError, print_note
from .arguments import InspectArgs, parse_arguments


def inspect(args: list[str]) -> None:
    """show where a model looks and what it expects, on a web page"""
    from ..api import load
    from ..reports.inspection import SHOWN_TOKENS, inspect_text, render_page
    from ..runs.directory import find_run
    from ..system.devices import limit_threads
    from ..system.files import write_atomically

    options = parse_arguments(InspectArgs(), args, "nanogpt inspect")
    limit_threads()
    run = find_run(options.run)
    out = options.out or run / "inspect.html"
    if out.is_dir():
        raise UserError(f"{out} is a directory: name a file with --out")
    trained = load(run, options.device, "float32")
    context = trained.model.config.block_size
    text = options.prompt or trained.generate(max_new_tokens=min(64, context))
    if (tokens := len(trained.tokenizer.encode(text))) > context:
        print_note(f"the model reads the last {context} of the prompt's {tokens:,} tokens")
    if min(tokens, context) > SHOWN_TOKENS:
        print_note(f"the page shows the last {SHOWN_TOKENS} of these")
    parameters = sum(p.numel() for p in trained.model.parameters())
    kind = type(trained.model).__name__
    title = f"{run}: {kind}, {parameters:,} parameters, step {trained.step:,}"
    title += f", validation loss {trained.best.val_loss:.4f}" if trained.best else ""
    title += "" if options.prompt else "; a text of its own"
    found = inspect_text(trained.model, trained.tokenizer, text, title)
    try:
        write_atomically(out, render_page(found).encode())
    except OSError as error:
        raise UserError(
            f"cannot write {out}: {error.strerror}; name another file with --out"
        ) from None
    print(out)
