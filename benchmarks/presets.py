"""Train presets with several seeds on this machine, and save their losses, times and samples.

    python benchmarks/presets.py tiny tiny-fast     # then: python benchmarks/write_numbers.py

Each run is `nanogpt train PRESET --seed N` in a separate process, with N = 1, 2, ... The results go
to benchmarks/results/preset_PRESET_DEVICE.json. With --keep DIR, the script moves the run
directories to DIR.
"""

import argparse
import platform
import re
from pathlib import Path

import torch
from common import RESULTS, save_result, train_preset

from nanogpt.runs.presets import PRESETS


def describe_hardware() -> str:
    """Return the name of the GPU; without a GPU, the number of cores and the processor's name."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.+)", cpuinfo.read_text() if cpuinfo.exists() else "")
    return f"{torch.get_num_threads()} cores, {model[1] if model else platform.processor()}"


def main() -> None:
    """Train the presets and save their results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("presets", nargs="+", metavar="PRESET")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds; seeds are 1, 2, ...")
    parser.add_argument("--keep", type=Path, help="move the runs to this directory")
    args = parser.parse_args()
    if unknown := set(args.presets) - PRESETS.keys():
        parser.error(f"there is no preset {min(unknown)!r}: use {', '.join(PRESETS)}")
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    for name in args.presets:
        runs = [
            train_preset(name, ["--seed", str(n)], args.keep and args.keep / f"{name}-{n}")
            for n in range(1, args.seeds + 1)
        ]
        steps = PRESETS[name].config.train.steps
        result = {"preset": name, "hardware": describe_hardware(), "steps": steps, "runs": runs}
        save_result(RESULTS / f"preset_{name}_{kind}.json", result)


if __name__ == "__main__":
    main()
