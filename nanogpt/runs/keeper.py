"""Saves the checkpoints of a run with a writer that may work in the background."""

import signal
import time
from functools import partial

from ..errors import Interrupted, resume_command
from ..system.files import dump_json, write_atomically
from ..system.gpu import Snapshot, take_snapshot
from .background import BackgroundWriter
from .checkpoint import Contents, checkpoint_files, write_checkpoint
from .finite import FiniteCheck
from .history import snapshot_directory
from .run import Run


class CheckpointKeeper:
    """Copies the state of a run and hands the copy to a writer, so that training can continue."""

    def __init__(self, run: Run, writer: BackgroundWriter) -> None:
        self.run, self.writer = run, writer
        self.check = FiniteCheck(run)
        self.has_tensors = writer.writes or run.config.train.shard
        """Whether this process has tensors for the files."""
        self.saved_step = -1
        self.weights: Snapshot | None = None
        """The weights at saved_step."""

    def save_last(self, start: float) -> None:
        """Save the state of this step as last/, unless it is already saved.

        The checkpoint stores how many seconds the run has trained: time.perf_counter() - `start`.
        Raises Stopped if check_model() finds a value that is not finite: such a state is never
        saved.
        """
        state = self.run.state
        if state.step == self.saved_step:
            return
        self.check.check_model()
        state.seconds, self.saved_step = round(time.perf_counter() - start, 3), state.step
        if not self.has_tensors:
            return
        self.weights = take_snapshot(self.run.model.state_dict())
        files = checkpoint_files(self.run.checkpoint(), self.weights, self.run.training())
        self.writer.submit(partial(self._write_last, files))

    def save_best(self) -> None:
        """Save the weights or the averaged weights, whichever have the lower loss, in best/."""
        if not self.has_tensors:
            return
        best, state = self.run.journal.best, self.run.state
        assert best is not None
        weights = self.weights
        assert weights is not None
        assert state.step == self.saved_step
        if best.averaged:
            with state.averaged():
                weights = take_snapshot(self.run.model.state_dict())
        files = checkpoint_files(self.run.checkpoint(), weights)
        self.writer.submit(partial(write_checkpoint, self.run.out / "best", files))

    def save_snapshot(self) -> None:
        """Save the weights of this step in history/.

        Raises Stopped if check_model() finds a value that is not finite.
        """
        state = self.run.state
        self.check.check_model()
        if not self.has_tensors:
            return
        weights = take_snapshot(self.run.model.state_dict())
        files = checkpoint_files(self.run.checkpoint(), weights)
        directory = snapshot_directory(self.run.out, state.step)
        self.writer.submit(partial(write_checkpoint, directory, files))

    def describe_run(self) -> None:
        """Write run.json."""
        description = dump_json(self.run.describe())
        self.writer.submit(lambda: write_atomically(self.run.out / "run.json", description))

    def interrupted(self, number: signal.Signals) -> Interrupted:
        """Wait until everything is on the disk, then return the error for an interrupted run."""
        self.writer.wait()
        return Interrupted(number, f"at step {self.run.state.step:,}", resume_command(self.run.out))

    def _write_last(self, files: Contents) -> None:
        # The lines of metrics.jsonl must be on the disk first: the checkpoint stores their number.
        self.run.journal.flush()
        write_checkpoint(self.run.out / "last", files)
