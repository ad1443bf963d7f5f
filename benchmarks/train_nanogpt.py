"""Run nanoGPT's train.py, then evaluate its checkpoints; versus_nanogpt.py starts this script.

During training, this process imports only the libraries that nanoGPT imports, the standard library,
and `safetensors`, which saves the weights. So the measured time and memory are those of nanoGPT.
"""

import json
import math
import os
import runpy
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


class SavedWeights(NamedTuple):
    """Describes a file with the weights of nanoGPT's model; the name of the file is the step."""

    step: int
    seconds: float
    """Seconds since the start of the process."""
    model_args: dict[str, Any]
    """The arguments of nanoGPT's GPTConfig."""


class Logits(nn.Module):
    """Maps tokens (B, T) to the logits (B, T, V) of nanoGPT's model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, tokens: Tensor) -> Tensor:
        # Without targets, nanoGPT's model returns only the logits of the last position.
        logits: Tensor = self.model(tokens, tokens)[0]
        return logits


def train(
    checkout: Path, flags: str, folder: Path, start: float
) -> tuple[dict[str, Any], list[SavedWeights]]:
    """Run train.py, and save the weights of its model in `folder` at each checkpoint.

    Returns the global variables of train.py, and a description of each saved file.
    """
    checkpoints: list[SavedWeights] = []

    def save_weights(checkpoint: dict[str, Any], _: str) -> None:
        step = checkpoint["iter_num"]
        checkpoints.append(SavedWeights(step, time.time() - start, checkpoint["model_args"]))
        weights = {n.removeprefix("_orig_mod."): t.clone() for n, t in checkpoint["model"].items()}
        save_file(weights, folder / str(step))

    os.chdir(checkout)
    sys.path.insert(0, str(checkout))
    sys.argv = ["train.py", "config/train_shakespeare_char.py", *flags.split()]
    sys.argv.append("--always_save_checkpoint=True")
    torch.save = save_weights  # type: ignore[assignment]
    with redirect_stdout(sys.stderr):
        return runpy.run_path("train.py"), checkpoints


def evaluate_checkpoints(
    program: dict[str, Any], checkpoints: list[SavedWeights], folder: Path
) -> tuple[list[dict[str, float]], float]:
    """Return each checkpoint's validation loss, and the best checkpoint's loss on unseen text."""
    from common import load_unseen_text

    from nanogpt.data import Data, Split
    from nanogpt.evaluate import evaluate
    from nanogpt.text import corpora
    from nanogpt.text.encoding import encode_corpus
    from nanogpt.text.tokenizers import CharTokenizer

    corpus, device = corpora.load_corpus("tinyshakespeare"), program["device"]
    tokenizer, evaluations, lowest = CharTokenizer(corpus.text()), [], math.inf
    validation = Data(corpus, tokenizer, device).splits["val"]
    unseen = Split(encode_corpus(load_unseen_text(), tokenizer), device)
    for step, seconds, model_args in checkpoints:
        model = program["GPT"](program["GPTConfig"](**model_args)).to(device)
        model.load_state_dict(load_file(folder / str(step)))
        loss = evaluate(Logits(model), validation).loss  # type: ignore[arg-type]
        evaluations.append({"step": step, "seconds": seconds, "val_loss": loss})
        if loss < lowest:
            lowest = loss
            unseen_loss = evaluate(Logits(model), unseen).loss  # type: ignore[arg-type]
    return evaluations, unseen_loss


def main() -> None:
    """Train, evaluate, and print the result as JSON.

    The arguments are the path of a copy of nanoGPT, the start time of this process, and
    --flags=FLAGS. FLAGS are the arguments of train.py.
    """
    import resource

    checkout, start, flags = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3].partition("=")[2]
    with tempfile.TemporaryDirectory() as folder:
        program, checkpoints = train(checkout, flags, Path(folder), start)
        seconds = time.time() - start
        megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        evaluations, unseen_loss = evaluate_checkpoints(program, checkpoints, Path(folder))
    best = min(evaluations, key=lambda evaluation: evaluation["val_loss"])
    precision = program["dtype"] if program["device_type"] == "cuda" else "float32"
    result = {
        "best": best,
        "evaluations": evaluations,
        "unseen": unseen_loss,
        "seconds": seconds,
        "megabytes": megabytes,
        "precision": precision,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
