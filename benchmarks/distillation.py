"""Run the distillation study on this machine, and measure its models on the unseen text, too.

    python benchmarks/distillation.py --out DIR     # then: python benchmarks/write_numbers.py

The study is `nanogpt study distillation --generations 1 --out DIR`, in a separate process. The
script then evaluates the models of each group, and their ensemble, on the text of
load_unseen_text() in common.py. The results go to benchmarks/results: distillation.json, and the
plot distillation.svg. If the script is interrupted, start it again with the same DIR.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from common import RESULTS, load_unseen_text, run_timed, save_result
from tables import distillation_table

from nanogpt.data import Split
from nanogpt.evaluate import evaluate
from nanogpt.models.ensemble import Ensemble
from nanogpt.runs.checkpoint import load_checkpoint
from nanogpt.system.devices import pick_device
from nanogpt.text.encoding import encode_corpus


def measure_unseen(study: Path, name: str) -> dict[str, Any]:
    """Return the losses of the models of a group, and of their ensemble, on the unseen text."""
    device = pick_device("auto")
    runs = sorted(study.glob(f"{name}-*/best"))
    checkpoints = [load_checkpoint(run, device) for run in runs]
    split = Split(encode_corpus(load_unseen_text(), checkpoints[0].tokenizer), device)
    models = [checkpoint.model for checkpoint in checkpoints]
    return {
        "losses": [evaluate(model, split).loss for model in models],
        "ensemble_loss": evaluate(Ensemble(models), split).loss,
    }


def main() -> None:
    """Run the study, measure its models, save the result and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/distillation"))
    args = parser.parse_args()
    command = [sys.executable, "-m", "nanogpt", "study", "distillation", "--json"]
    command += ["--generations", "1", "--out", str(args.out)]
    output, seconds, _ = run_timed(command)
    result = json.loads(output)
    result["total_seconds"] = seconds
    for group in result["groups"]:
        group["unseen"] = measure_unseen(args.out, group["name"])
    save_result(RESULTS / "distillation.json", result)
    shutil.copy(args.out / "distillation.svg", RESULTS)
    print(distillation_table(result))


if __name__ == "__main__":
    main()
