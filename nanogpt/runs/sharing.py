"""What several processes that train one run need.

They need equal shares of a batch, the same initial state, and different random numbers for dropout.
"""

import hashlib
from dataclasses import replace

import torch

from ..errors import UserError
from ..models import Model
from ..system import distributed
from ..system.agreement import require_equal
from ..system.devices import describe_device
from ..version import VERSION
from .config import RunConfig, flatten_settings
from .run import Run


def require_equal_shares(
    config: RunConfig, device: torch.device, precision: torch.dtype, size: int
) -> None:
    """Raise UserError if `size` processes cannot train this run with equal shares."""
    batch, parts = config.train.batch_size, config.train.accumulation
    if batch % (size * parts):
        unit = size * parts
        values = [batch // unit * unit, -(-batch // unit) * unit]
        values = [value for value in values if 0 < value < 2**31]
        advice = [f"--train.batch-size {' or '.join(map(str, values))}"] if values else []
        if batch % size == 0:
            fitting = max(p for p in range(1, parts) if batch // size % p == 0)
            advice.append(f"--train.accumulation {fitting}")
        raise UserError(
            f"--train.batch-size is {batch}: {size} processes with --train.accumulation {parts} "
            f"need a multiple of {unit}; use {', or '.join(advice) or 'fewer processes'}"
        )
    if size > 1 and device.type == "mps":
        raise UserError(
            f"{size} processes cannot train on mps: use --device cpu, or a single process"
        )
    if size > 1 and config.train.shard and config.train.mean_teacher:
        raise UserError(
            f"mean_teacher is {config.train.mean_teacher}, but shard divides the averaged weights "
            f"between the processes: leave out --train.shard, or set --train.mean-teacher 0"
        )
    if size > 1 and precision == torch.float16:
        raise UserError(
            f"{size} processes cannot train in float16: use --precision bfloat16 or float32"
        )


def require_same_start(run: Run) -> None:
    """Raise UserError if the processes differ in settings, devices, texts, weights or versions."""
    if distributed.size() == 1:
        return
    is_gpu = run.device.type == "cuda"
    facts = {
        "nanogpt": VERSION,
        "the device": describe_device(run.device) if is_gpu else run.device.type,
        "torch": torch.__version__,
        "text": run.text_sha256,
        "transfer text": run.transfer_sha256,
        "teachers": [teacher.sha256 for teacher in run.teachers],
        "tokens": hashlib.sha256(repr(run.tokenizer.to_json()).encode()).hexdigest(),
        "precision": str(run.precision),
        "step": run.state.step,
        **flatten_settings(replace(run.config, device="", out=None, teachers=[], transfer=None)),
        "weights": run.weights_sum,
    }
    require_equal(facts)


def is_sharded(config: RunConfig) -> bool:
    """Return whether several processes divide the weights of the model between them."""
    return config.train.shard and distributed.size() > 1


def sum_bits(model: Model) -> int:
    """Interpret the bits of the weights as integers, and return their sum.

    The order of additions changes a sum of floats, but not this sum.
    """
    return sum(int(p.detach().view(torch.int32).long().sum()) for p in model.parameters())


def vary_dropout(run: Run) -> None:
    """Seed each process except the first one, so that it draws other numbers for dropout."""
    if number := distributed.rank():
        torch.manual_seed((run.config.seed + 1_000_003 * number + run.state.step) % 2**63)
