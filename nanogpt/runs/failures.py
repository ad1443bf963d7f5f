"""Turns the failures of a training run into messages that say what to do."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ..errors import Stopped, make_line, resume_command, write_error
from ..models import BigramConfig
from ..system import distributed
from ..system.devices import requested_memory
from ..system.gpu import CannotCapture, CannotCompile
from ..system.heartbeat import SEE_MESSAGE, Lost
from .run import Run


def advise_resuming(run: Run, first: str = SEE_MESSAGE) -> str:
    """Return the advice for a run that has lost another process; `first` is its beginning."""
    return f"{first}, then resume with: {resume_command(run.out)}"


@contextmanager
def explain_failures(run: Run) -> Iterator[None]:
    """Within this context, an OSError, a failed CUDA graph or a lack of memory raises Stopped.

    The loss of another process raises Stopped, too. After any error but a lack of memory, loss.png
    is drawn. The command line prints only the errors of process 0. If process 0 has not failed, the
    failed process with the lowest rank prints its message here.
    """
    try:
        with _prepare_end(run):
            yield
    except Lost as error:
        raise _tell(Stopped(error.reason, advise_resuming(run, error.advice)), "") from None
    except OSError as error:
        raise _tell(write_error(run.out, error)) from None
    except CannotCapture as error:
        raise _tell(
            Stopped(
                f"a step cannot be captured as a CUDA graph ({error})",
                f"; to run without a graph, which is slower: "
                f"{resume_command(run.out, '--train.no-cuda-graph')}",
            )
        ) from None
    except CannotCompile as error:
        without, options = "compilation", ["--train.no-compile"]
        if run.config.precision == "float8":
            without, options = "float8", ["--precision", "auto"]
        raise _tell(
            Stopped(
                f"the model cannot be compiled on this machine ({error})",
                f"; to train without {without}, which is slower: "
                f"{resume_command(run.out, *options)}",
            )
        ) from None
    except (RuntimeError, MemoryError) as error:
        if memory := requested_memory(error):
            raise _tell(out_of_memory(run, memory)) from None
        raise


@contextmanager
def _prepare_end(run: Run) -> Iterator[None]:
    """After an error, ignore SIGTERM and, unless memory is lacking, draw loss.png."""
    try:
        yield
    except BaseException as error:
        distributed.ignore_termination()
        if not requested_memory(error):
            with suppress(OSError):
                run.journal.draw()
        raise


def _tell(error: Stopped, start: str | None = None) -> Stopped:
    """Print the message of an error, unless process 0 or another process of a lower rank does so.

    The line begins with `start`, by default with the number of the process. Returns the error.
    """
    if distributed.rank() and distributed.is_first_failure():
        start = f"process {distributed.rank()}: " if start is None else start
        print(f"nanogpt: {start}{make_line(error)}", file=sys.stderr, flush=True)
    return error


def out_of_memory(run: Run, memory: str) -> Stopped:
    """Return the error for a run that lacks memory; `memory` is the requested amount, as text."""
    settings = run.config.train
    # The advice must also help a single process.
    size, parts = settings.batch_size, settings.accumulation * distributed.size()
    can_recompute = not settings.recompute and not isinstance(run.config.model, BigramConfig)
    # On a CPU, the freed activations stay in fragments of memory, so recomputation rarely helps.
    if parts == size and can_recompute and run.device.type == "cuda":
        return Stopped(
            f"out of memory: {memory} more was requested, and each part of the batch is already a "
            f"single block",
            f"; a step that computes its activations twice needs less: "
            f"{resume_command(run.out, '--train.recompute')}",
        )
    if parts == size:
        is_fixed = run.config.start_from is not None  # the model is that of another run
        return Stopped(
            f"out of memory: {memory} more was requested, and each part of the batch is already a "
            f"single block",
            "; start from a smaller model, which needs less"
            if is_fixed
            else "; a smaller --model.n-embd or --model.block-size needs less",
        )
    divisors = [n for n in range(parts + 1, min(size, 10_000)) if size % n == 0] or [size]
    fitting = [n for n in divisors if size % (n * distributed.size()) == 0] or divisors
    flags = "--train.batch-size", str(size), "--train.accumulation", str(fitting[0])
    return Stopped(
        f"out of memory: {memory} more was requested",
        f"; the same batch in smaller parts needs less memory: {resume_command(run.out, *flags)}",
    )
