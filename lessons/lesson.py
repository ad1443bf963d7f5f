"""What the lessons share: the text as tokens, batches, the training loop, the scoreboard.

Lessons 1 and 2 build most of these functions step by step. The letters are those of gpt.py: B texts
in a batch, T positions in a block, C channels, H heads, D = C / H channels of a head, V vocabulary.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pictures  # noqa: F401  (sets the style of all pictures)
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanogpt.text import corpora

HERE = Path(__file__).parent
RESULTS = HERE.parent / "benchmarks" / "results"
SCOREBOARD = HERE / "scoreboard.json"
FAST = os.environ.get("NANOGPT_FAST") == "1"
"""Train for 30 steps only, to test in seconds that a lesson runs."""
SOLUTIONS = "--solutions" in sys.argv or os.environ.get("NANOGPT_SOLUTIONS") == "1"
"""Run the solutions of the exercises."""

if FAST:
    print("NANOGPT_FAST is set: trainings are cut short, and the numbers mean nothing.\n")

text = corpora.load_corpus("tinyshakespeare").text()
alphabet = "".join(sorted(set(text)))
V = len(alphabet)
"""Vocabulary size: the number of different characters."""
T = 64
"""Block size: the number of characters that a model sees."""


def encode(text: str) -> Tensor:
    """Return the tokens of a text (N,): the token of a character is its index in the alphabet."""
    tokens = {character: token for token, character in enumerate(alphabet)}
    return torch.tensor([tokens[character] for character in text])


def decode(tokens: Iterable[int]) -> str:
    """Return the text of tokens."""
    return "".join(alphabet[token] for token in tokens)


train_tokens, val_tokens = encode(text).tensor_split([int(0.9 * len(text))])


def get_batch(tokens: Tensor, batch_size: int = 32, block_size: int = T) -> tuple[Tensor, Tensor]:
    """Return random blocks of tokens (B, T), and the target of each token: the token after it."""
    starts = torch.randint(len(tokens) - block_size, (batch_size, 1))  # (B, 1)
    blocks = tokens[starts + torch.arange(block_size + 1)]  # (B, T + 1)
    return blocks[:, :-1], blocks[:, 1:]


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of -ln p(target) in nats: logits (B, T, V), targets (B, T)."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


@torch.no_grad()
def evaluate(model: nn.Module, block_size: int = T, tokens: Tensor = val_tokens) -> float:
    """Return the loss over tokens in nats per token: all whole blocks, one after the other."""
    model.eval()
    tokens = tokens[: len(tokens) // 10] if FAST else tokens
    count = (len(tokens) - 1) // block_size  # number of blocks
    inputs = tokens[: count * block_size].view(count, block_size)
    targets = tokens[1 : count * block_size + 1].view(count, block_size)
    total = 0.0
    for x, y in zip(inputs.split(64), targets.split(64), strict=True):
        total += cross_entropy(model(x), y).item() * len(x)
    model.train()
    return total / count


def shorten(steps: int) -> int:
    """Return `steps`, or at most 30 if NANOGPT_FAST is set; for training loops of a lesson."""
    return min(steps, 30) if FAST else steps


def train(
    model: nn.Module,
    steps: int = 1000,
    learning_rate: float = 4e-3,
    batch_size: int = 32,
    block_size: int = T,
    warmup: int = 100,
    tokens: Tensor = train_tokens,
    on_step: Callable[[int, float], None] | None = None,
) -> float:
    """Train a model with Adam, and return its validation loss. The defaults are the scoreboard's.

    The learning rate is `learning_rate` times the smaller of two factors, as in gpt.py: one rises
    linearly to 1 in `warmup` steps, the other falls linearly from 1 to 0 in `steps`. With the
    defaults, the peak is 0.00364, at step 90. After each step, on_step(step, loss) is called.
    """
    steps = shorten(steps)
    optimizer = torch.optim.Adam(model.parameters())
    torch.manual_seed(0)  # the same batches for every model
    for step in range(steps):
        inputs, targets = get_batch(tokens, batch_size, block_size)
        loss = cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        rate = learning_rate * min((step + 1) / max(1, warmup), 1 - step / steps)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        if on_step:
            on_step(step, loss.item())
    return evaluate(model, block_size)


def show_scoreboard(lesson: int, losses: dict[str, float]) -> None:
    """Print the scoreboard up to this lesson, with the losses that this lesson has measured.

    NANOGPT_RECORD=1 also writes the losses to scoreboard.json. The rows of earlier lessons come
    from that file.
    """
    rows = json.loads(SCOREBOARD.read_text("utf-8")) if SCOREBOARD.exists() else []
    mine = [{"lesson": lesson, "model": m, "loss": round(x, 3)} for m, x in losses.items()]
    earlier = [row for row in rows if row["lesson"] < lesson]
    later = [row for row in rows if row["lesson"] > lesson]
    if os.environ.get("NANOGPT_RECORD") == "1":
        SCOREBOARD.write_text(json.dumps([*earlier, *mine, *later], indent=1) + "\n", "utf-8")
    width = max(len(row["model"]) for row in earlier + mine)
    print(f"lesson  {'model':{width}}  validation loss (nats per character)")
    for row in earlier + mine:
        bar = "█" * round(10 * row["loss"])
        print(f"{row['lesson']:6}  {row['model']:{width}}  {row['loss']:.3f} {bar}")
