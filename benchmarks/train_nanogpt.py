"""Be nanoGPT's train.py, then say what its weights were worth; versus_nanogpt.py starts this.

Until its training has ended, nothing is imported that nanoGPT does not import itself, but for what
writes its weights.
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
from typing import Any

import torch
from safetensors.torch import load_file, save_file


def train(copy: Path, flags: str, folder: Path, began: float) -> tuple[dict[str, Any], list[Any]]:
    """Run train.py; gives its variables, and of each evaluation the step, seconds and shape."""
    saved: list[tuple[int, float, dict[str, Any]]] = []

    def keep(checkpoint: dict[str, Any], _: str) -> None:
        saved.append((checkpoint["iter_num"], time.time() - began, checkpoint["model_args"]))
        weights = {n.removeprefix("_orig_mod."): t.clone() for n, t in checkpoint["model"].items()}
        save_file(weights, folder / str(checkpoint["iter_num"]))

    os.chdir(copy)
    sys.path.insert(0, str(copy))
    sys.argv = ["train.py", "config/train_shakespeare_char.py", *flags.split()]
    sys.argv.append("--always_save_checkpoint=True")
    torch.save = keep  # type: ignore[assignment]
    with redirect_stdout(sys.stderr):
        return runpy.run_path("train.py"), saved


def measure(
    program: dict[str, Any], saved: list[Any], folder: Path
) -> tuple[list[dict[str, float]], float]:
    """Our evaluation of every set of weights, and that of the best on the unseen text."""
    from common import unseen_text
    from torch import Tensor, nn

    from nanogpt.data import Data, Split
    from nanogpt.evaluate import evaluate
    from nanogpt.text import corpora
    from nanogpt.text.encoding import encode_corpus
    from nanogpt.text.tokenizers import CharTokenizer

    class Logits(nn.Module):
        """nanoGPT's model behind our contract: it gives all logits only when given targets."""

        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model, self.config = model, model.config

        def forward(self, tokens: Tensor) -> Tensor:
            logits: Tensor = self.model(tokens, tokens)[0]
            return logits

    corpus, device = corpora.load_corpus("tinyshakespeare"), program["device"]
    tokenizer, evaluations, lowest = CharTokenizer(corpus.text()), [], math.inf
    val = Data(corpus, tokenizer, device).splits["val"]
    other = Split(encode_corpus(unseen_text(), tokenizer), device)
    for step, seconds, shape in saved:
        model = program["GPT"](program["GPTConfig"](**shape)).to(device)
        model.load_state_dict(load_file(folder / str(step)))
        loss = evaluate(Logits(model), val).loss  # type: ignore[arg-type]
        evaluations.append({"step": step, "seconds": seconds, "val_loss": loss})
        if loss < lowest:
            lowest = loss
            unseen = evaluate(Logits(model), other).loss  # type: ignore[arg-type]
    return evaluations, unseen


def main() -> None:
    """Arguments: the copy of nanoGPT, when this process was started, --flags=FLAGS."""
    import resource

    copy, began, flags = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3].partition("=")[2]
    with tempfile.TemporaryDirectory() as folder:
        program, saved = train(copy, flags, Path(folder), began)
        seconds = time.time() - began
        megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        evaluations, unseen = measure(program, saved, Path(folder))
    best = min(evaluations, key=lambda e: e["val_loss"])
    precision = program["dtype"] if program["device_type"] == "cuda" else "float32"
    found = {
        "best": best,
        "evaluations": evaluations,
        "unseen": unseen,
        "seconds": seconds,
        "megabytes": megabytes,
        "precision": precision,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
