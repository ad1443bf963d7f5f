"""Sends the progress of a run to experiment trackers: TensorBoard, trackio, Weights & Biases.

Each tracker works in its own thread, so a slow or broken tracker does not delay or end the
training. metrics.jsonl stays the complete record of a run.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal, Protocol, Self

from ..runs.checkpoint import Best
from ..runs.journal import Record
from ..runs.plot import make_figure
from ..runs.reporter import Reporter
from ..runs.run import Run
from .extras import require_libraries

TrackerName = Literal["tensorboard", "trackio", "wandb"]
PATIENCE = 30.0
"""Seconds to wait for a tracker at the end of a run."""
NAMES = {
    "train_loss": "train/loss",
    "val_loss": "val/loss",
    "bits_per_byte": "val/bits_per_byte",
    "ema_val_loss": "val/averaged_loss",
    "ema_bits_per_byte": "val/averaged_bits_per_byte",
    "lr": "train/lr",
    "gradient_norm": "train/gradient_norm",
    "tokens": "train/tokens",
    "seconds": "train/seconds",
}
"""The fields of metrics.jsonl, and their names in a tracker."""


class Tracker(Protocol):
    """What each tracker can do; the methods may raise any exception."""

    def __init__(self, out: Path, settings: dict[str, Any], is_resumed: bool, step: int) -> None:
        """Open the tracker's record of the run in directory `out`, at optimizer step `step`."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Record numbers."""

    def finish(self, step: int, sample: str, picture: Path) -> None:
        """Record a generated text ("" for none) and the picture of the losses, and close."""


class TensorBoard:
    """Writes event files to tensorboard/ in the run directory."""

    def __init__(self, out: Path, settings: dict[str, Any], is_resumed: bool, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Later steps may have been recorded before the run was interrupted.
        self._writer = SummaryWriter(out / "tensorboard", purge_step=step if is_resumed else None)
        self._writer.add_text("settings", f"```json\n{json.dumps(settings, indent=2)}\n```", step)

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def finish(self, step: int, sample: str, picture: Path) -> None:
        import numpy as np
        from PIL.Image import open as open_image

        if sample:
            self._writer.add_text("sample", f"```\n{sample}\n```", step)
        if picture.exists():
            with open_image(picture) as image:
                pixels = np.asarray(image.convert("RGB"))
            self._writer.add_image("loss", pixels, step, dataformats="HWC")
        self._writer.close()


class Trackio:
    """Writes to trackio's database of this user, or to the Space in TRACKIO_SPACE_ID."""

    def __init__(self, out: Path, settings: dict[str, Any], is_resumed: bool, step: int) -> None:
        import trackio

        # These modules would print among the lines of nanogpt.
        for module in (trackio, trackio.run, trackio.utils):
            vars(module)["print"] = lambda *_, **__: None
        self._run = trackio.init(
            project="nanogpt",
            name=out.name,
            config=settings,
            resume="allow" if is_resumed else "never",
            embed=False,
            auto_log_cpu=False,
        )

    def log(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step)

    def finish(self, step: int, sample: str, picture: Path) -> None:
        import trackio

        last: dict[str, Any] = {"sample": trackio.Markdown(f"```\n{sample}\n```")} if sample else {}
        if picture.exists():
            last["loss"] = trackio.Image(picture)
        if last:
            self._run.log(last, step)
        self._run.finish()  # type: ignore[no-untyped-call]


class WandB:
    """Writes to wandb/ in the run directory; with an account and a network, also to the server."""

    def __init__(self, out: Path, settings: dict[str, Any], is_resumed: bool, step: int) -> None:
        import wandb

        # The name of the directory of a run ends with its identifier.
        earlier = sorted((out / "wandb").glob("*run-*-*"), key=lambda path: path.stat().st_mtime)
        identifier = earlier[-1].name.rpartition("-")[2] if is_resumed and earlier else None
        has_choice = "WANDB_MODE" in os.environ or wandb.login(prompt=False, verify=False)
        self._run = wandb.init(
            project="nanogpt",
            name=out.name,
            dir=out,
            id=identifier,
            resume="allow" if identifier else None,
            config=settings,
            mode=None if has_choice else "offline",
            settings=wandb.Settings(silent=True, console="off"),
        )

    def log(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step)

    def finish(self, step: int, sample: str, picture: Path) -> None:
        import wandb

        last: dict[str, Any] = {}
        if sample:
            last["sample"] = wandb.Table(columns=["text"], data=[[sample]])
        if picture.exists():
            last["loss"] = wandb.Image(str(picture))
        if last:
            self._run.log(last, step)
        self._run.finish()


TRACKERS: dict[TrackerName, type[Tracker]] = {
    "tensorboard": TensorBoard,
    "trackio": Trackio,
    "wandb": WandB,
}


class _Worker(threading.Thread):
    """Opens a tracker and calls it, one call after the other, until the first exception."""

    def __init__(
        self, name: TrackerName, open: Callable[[], Tracker], say: Callable[[str], None]
    ) -> None:
        super().__init__(daemon=True)  # a tracker that hangs does not keep the process alive
        self.tracker_name, self._open, self._say = name, open, say
        self.calls: SimpleQueue[Callable[[Tracker], None] | None] = SimpleQueue()
        self.start()

    def run(self) -> None:
        try:
            tracker = self._open()
            while call := self.calls.get():
                call(tracker)
        except Exception as error:  # trackers raise many types of exceptions
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            self._say(f"{self.tracker_name} failed ({reason}): the run continues without it")


class Trackers(Reporter):
    """Passes the progress of a run on to another reporter and to trackers.

    At the end of this context, the trackers are closed.
    """

    def __init__(self, names: Sequence[TrackerName], shown: Reporter) -> None:
        """Prepare the trackers. Raises UserError if the library of a tracker is missing."""
        for name in names:
            require_libraries(f"--track {name}", name)
        self._names, self._shown = list(dict.fromkeys(names)), shown
        self._workers: list[_Worker] = []
        self._picture: Path | None = None
        self._step = 0
        self.sample = ""
        """A text that the trained model has generated."""

    def __enter__(self) -> Self:
        return self

    def preparing(self, what: str, done: int, total: int) -> None:
        self._shown.preparing(what, done, total)

    def said(self, line: str) -> None:
        self._shown.said(line)

    def started(self, run: Run) -> None:
        self._shown.started(run)
        self._picture = run.out / "loss.png"
        if self._names:
            make_figure(1, 1)  # imports matplotlib: a tracker must not find it half imported
        is_resumed, self._step = bool(run.journal.records), run.state.step
        settings = json.loads(json.dumps(run.describe()))
        for name in self._names:
            make = partial(TRACKERS[name], run.out, settings, is_resumed, self._step)
            self._workers.append(_Worker(name, make, self.said))

    def recorded(self, record: Record, best: Best | None) -> None:
        self._shown.recorded(record, best)
        self._step = record.step
        found = {name: getattr(record, field) for field, name in NAMES.items()}
        values = {name: value for name, value in found.items() if value is not None}
        self._call(lambda tracker: tracker.log(record.step, values))

    def _call(self, call: Callable[[Tracker], None]) -> None:
        for worker in self._workers:
            worker.calls.put(call)

    def __exit__(self, *_: object) -> None:
        if (picture := self._picture) is None:
            return
        self._call(lambda tracker: tracker.finish(self._step, self.sample, picture))
        deadline = time.monotonic() + PATIENCE
        for worker in self._workers:
            worker.calls.put(None)
            worker.join(max(0, deadline - time.monotonic()))
            if worker.is_alive():
                name = worker.tracker_name
                self.said(f"{name} does not answer, and may lack the end of this run")
