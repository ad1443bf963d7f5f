"""The environment variables that start one of several processes, which torchrun sets.

Without them, there is a single process.
"""

import os

from ..errors import UserError

NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""All of them are necessary. torchrun also sets LOCAL_RANK."""


def get_size() -> int:
    """Return the number of processes."""
    number = os.environ.get("WORLD_SIZE", "") if os.environ.keys() >= set(NAMES) else ""
    return int(number) if number.isdecimal() else 1


def get_rank() -> int:
    """Return the rank of this process."""
    number = os.environ["RANK"] if get_size() > 1 else ""
    return int(number) if number.isdecimal() else 0


def get_local_rank() -> int:
    """Return the number of this process among those of its machine."""
    number = os.environ.get("LOCAL_RANK", "") if get_size() > 1 else ""
    return int(number) if number.isdecimal() else 0


def require_valid_variables() -> None:
    """Raise UserError if only some of the variables are set, or if a value is not possible.

    A single variable means nothing: some clusters set WORLD_SIZE for all programs.
    """
    values = {name: os.environ.get(name, "") for name in NAMES}
    if sum(map(bool, values.values())) < 2 or values["WORLD_SIZE"] == "1":
        return
    for name, value in values.items():
        if not value:
            raise UserError(
                f"{name} is not set: several processes need {', '.join(NAMES)}, which torchrun "
                f"sets; a single process needs none of them"
            )
    for name in ("WORLD_SIZE", "MASTER_PORT"):
        if not values[name].isdecimal() or not 1 <= int(values[name]) < 2**16:
            raise UserError(f"{name} is {values[name]}: it must be at least 1 and less than 65536")
    size, rank = get_size(), values["RANK"]
    if not rank.isdecimal() or int(rank) >= size:
        raise UserError(f"RANK is {rank}: it must be at least 0 and less than WORLD_SIZE, {size}")
