"""Turns the failures of a training run into messages that say what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import Stopped, resume_command, write_error
from ..system import distributed
from ..system.devices import requested_memory
from ..system.distributed import SEE_MESSAGE, Lost, ignore_termination, watch
from ..system.gpu import CannotCapture
from .run import Run


@contextmanager
def explain_failures(run: Run) -> Iterator[None]:
    """Within this context, an OSError, a failed CUDA graph or a lack of memory raises Stopped.

    The loss of another process raises Stopped, too.
    """
    advice = f"{SEE_MESSAGE}, then resume with: {resume_command(run.out)}"
    try:
        try:
            with watch(advice):
                yield
        except BaseException:
            ignore_termination()
            raise
    except OSError as error:
        raise write_error(run.out, error) from None
    except Lost as error:
        raise Stopped(error.reason, advice) from None
    except CannotCapture as error:
        raise Stopped(
            f"a step cannot be captured as a CUDA graph ({error})",
            f"; to run without a graph, which is slower: "
            f"{resume_command(run.out, '--train.no-cuda-graph')}",
        ) from None
    except (RuntimeError, MemoryError) as error:
        if memory := requested_memory(error):
            raise out_of_memory(run, memory) from None
        raise


def out_of_memory(run: Run, memory: str) -> Stopped:
    """Return the error for a run that lacks memory; `memory` is the requested amount, as text."""
    settings = run.config.train
    accumulation, size = settings.accumulation, settings.batch_size
    share = size // distributed.size()
    if accumulation == share:
        is_fixed = run.config.start_from is not None  # the model is that of another run
        return Stopped(
            f"out of memory: {memory} more was requested, and each part of the batch is already a "
            f"single block",
            "; start from a smaller model, which needs less"
            if is_fixed
            else "; a smaller --model.n-embd or --model.block-size needs less",
        )
    divisors = (n for n in range(accumulation + 1, min(share, 10_000)) if share % n == 0)
    parts = "--train.batch-size", str(size), "--train.accumulation", str(next(divisors, share))
    return Stopped(
        f"out of memory: {memory} more was requested",
        f"; the same batch in smaller parts needs less memory: {resume_command(run.out, *parts)}",
    )
