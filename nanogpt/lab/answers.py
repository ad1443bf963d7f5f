"""The answers to the questions of the page; each is a dataclass or a JSON value."""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..api import GenerationConfig, Trained
from ..data import to_int64
from ..errors import UserError
from ..evaluate import evaluate
from ..generate import filter_logits
from ..reports.ablation import list_parts, switched_off
from ..reports.copying import Source, remove_inner
from ..reports.explain import explain_run
from ..reports.inspection import Inspection, inspect_text, name_tokens
from ..reports.rates import Rates, measure_rates
from ..runs.checkpoint import Checkpoint
from ..runs.presets import PRESETS, get_preset
from ..system.devices import pick_device
from ..text.completion import encode_prompt
from ..text.corpora import CORPORA
from .library import MAX_COUNTED_TOKENS, Library, Texts
from .training import SIZES
from .worker import Check

SHOWN = 12
"""Tokens in a list of the most probable tokens."""
SAMPLE_TOKENS = 160
"""Tokens of the samples that stand beside other answers."""
SUGGESTED_TOKENS = 45
"""Tokens of the prompt that the page has at first."""
COPY_TOKENS = 600
"""Tokens of the generated text in which matches are marked."""
BASELINE_TOKENS = 5000
"""Tokens of the validation split whose matches are measured for comparison."""


class Question:
    """The run, the step and the other parameters of a request."""

    def __init__(self, library: Library, query: dict[str, str]) -> None:
        self.library, self.query = library, query
        self.run = query.get("run", "")

    def checkpoint(self, suffix: str = "") -> Checkpoint:
        """Load the model of the parameters run and step, or of run2 and step2 for suffix "2"."""
        step = self.query.get(f"step{suffix}", "best")
        name = self.query.get(f"run{suffix}", "")
        return self.library.load(name, None if step == "best" else self.number(f"step{suffix}", 0))

    def texts(self) -> Texts:
        """Return the tokens of the run's text."""
        return self.library.texts(self.run)

    def number(self, name: str, default: int) -> int:
        """Return a whole number. Raises UserError if the parameter is none."""
        try:
            return int(self.query.get(name, default))
        except ValueError:
            raise UserError(f"{name} is {self.query[name]!r}: it must be a whole number") from None

    def prompt(self) -> str:
        """Return the prompt; an empty one is a line break."""
        return self.query.get("prompt", "") or "\n"

    def version(self) -> tuple[float, ...]:
        """Return what changes when the files of a run change, so that no old answer is kept."""
        names = [self.query[name] for name in ("run", "run2") if name in self.query]
        return tuple((self.library.find(name) / "metrics.jsonl").stat().st_mtime for name in names)


Answer = Callable[[Question, Check], object]


def suggest_prompt(question: Question, check: Check) -> dict[str, str]:
    """Return the beginning of the validation split, which the model has not seen in training."""
    texts = question.texts()
    ids = texts.val.tokens[: min(SUGGESTED_TOKENS, question.checkpoint().model.config.block_size)]
    return {"prompt": texts.tokenizer.decode(to_int64(ids).tolist())}


def inspect(question: Question, check: Check) -> Inspection:
    """Return what the model computes for a prompt."""
    return _inspect(question.checkpoint(), question.prompt())


def complete(question: Question, check: Check) -> dict[str, str]:
    """Return a short completion of the prompt."""
    tokens, seed = min(question.number("tokens", 100), 500), question.number("seed", 1337)
    sample = _sample(question.checkpoint(), question.prompt(), seed, tokens, check)
    return {"sample": sample}


def _inspect(checkpoint: Checkpoint, prompt: str) -> Inspection:
    return inspect_text(checkpoint.model, checkpoint.tokenizer, prompt, "")


def baselines(question: Question, check: Check) -> dict[str, Any]:
    """Return the losses of n-grams for the curves."""
    return question.library.baselines(question.run)


def read_sampling(question: Question, tokens: int) -> GenerationConfig:
    """Return the settings of the generation. Raises UserError for an impossible value."""
    query, options = question.query, dict[str, Any]()
    for name in ("temperature", "top_p", "min_p"):
        if query.get(name):
            try:
                options[name] = float(query[name])
            except ValueError:
                raise UserError(f"{name} is {query[name]!r}: it must be a number") from None
    if query.get("top_k"):
        options["top_k"] = question.number("top_k", 0)
    seed, tokens = question.number("seed", 1337), question.number("tokens", tokens)
    return GenerationConfig(max_new_tokens=min(tokens, 2000), seed=seed, **options)


def start_sample(question: Question) -> Iterator[str]:
    """Return an iterator over the pieces of a completion."""
    config = read_sampling(question, 500)
    completions = Trained(question.checkpoint()).complete(
        [question.query.get("prompt", "")], config
    )
    return (piece for _, piece in completions)


def _sample(checkpoint: Checkpoint, prompt: str, seed: int, tokens: int, check: Check) -> str:
    config = GenerationConfig(max_new_tokens=tokens, seed=seed)
    pieces = []
    for _, piece in Trained(checkpoint).complete([prompt], config):
        check()
        pieces.append(piece)
    return "".join(pieces)


def next_token(question: Question, check: Check) -> dict[str, Any]:
    """Return the most probable next tokens, before and after the filters of the sampling."""
    checkpoint, config = question.checkpoint(), read_sampling(question, 1)
    logits = _logits(checkpoint, question.prompt())[-1]  # (V,)
    p = logits.softmax(-1)
    kept = filter_logits(logits[None], config)[0].softmax(-1)
    names = name_tokens(checkpoint.tokenizer)
    order = p.topk(min(2 * SHOWN, len(p))).indices.tolist()
    rows = [{"token": names[i], "p": p[i].item(), "kept": kept[i].item()} for i in order]
    return {"tokens": rows, "n_kept": int((kept > 0).sum()), "vocab_size": len(p)}


@torch.no_grad()
def _logits(checkpoint: Checkpoint, text: str) -> Tensor:
    """Return the logits (T, V) after each of the last block_size tokens of a text."""
    ids = encode_prompt(checkpoint.tokenizer, text)[-checkpoint.model.config.block_size :]
    logits: Tensor = checkpoint.model(torch.tensor([ids]))[0].float()
    return logits


@dataclass(frozen=True)
class Ablation:
    """A model without some of its parts."""

    parts: list[str]
    """The names of all parts that can be switched off."""
    loss: float
    """Nats per token on the first `tokens` tokens of the validation split."""
    tokens: int
    all_tokens: int
    """Tokens of the whole validation split."""
    sample: str
    inspection: Inspection | None
    """What the remaining parts compute for the prompt; None if the page wants only the loss."""


def ablate(question: Question, check: Check) -> Ablation:
    """Measure the model without the parts in the parameter `off`, which commas separate."""
    checkpoint, texts = question.checkpoint(), question.texts()
    off = [part for part in question.query.get("off", "").split(",") if part]
    only_loss, inspection, sample = "only_loss" in question.query, None, ""
    with switched_off(checkpoint.model, off):
        evaluation = evaluate(checkpoint.model, texts.part)
        check()
        if not only_loss:
            seed = question.number("seed", 1337)
            sample = _sample(checkpoint, question.prompt(), seed, SAMPLE_TOKENS, check)
            inspection = _inspect(checkpoint, question.prompt())
    return Ablation(
        list_parts(checkpoint.model),
        evaluation.loss,
        evaluation.tokens,
        len(texts.val.tokens) - 1,
        sample,
        inspection,
    )


def _score(checkpoint: Checkpoint, ids: Tensor) -> Tensor:
    """Return -ln p of each token of ids (N + 1,) but the first, in windows of block_size: (N,)."""
    T, losses = checkpoint.model.config.block_size, []
    with torch.no_grad():
        for start in range(0, len(ids) - 1, T):
            window = ids[start : start + T + 1]
            logits = checkpoint.model(window[None, :-1])[0].float()
            losses.append(F.cross_entropy(logits, window[1:], reduction="none"))
    return torch.cat(losses)


def count(question: Question, check: Check) -> dict[str, Any]:
    """Compare the model with counted bigrams and n-grams on a passage of the validation split."""
    checkpoint, texts = question.checkpoint(), question.texts()
    counts = texts.count()
    if counts is None:
        raise UserError("the text is too long to count its n-grams here: use nanogpt data")
    bigrams, smoothed = counts
    ids, V = to_int64(texts.part.tokens), texts.tokenizer.vocab_size
    model = _score(checkpoint, ids).numpy()  # (N,)
    check()
    ngram = -np.log(smoothed.probabilities(ids.numpy())[1:])  # (N,)
    table = np.array([bigrams.next_probabilities([i]) for i in range(V)]) if V <= 1024 else None
    T = checkpoint.model.config.block_size
    length = min(T, 256)
    start = min(max(0, question.number("start", 0)), len(ids) - 2)
    passage = slice(start, start + length)
    names, shown = name_tokens(checkpoint.tokenizer), ids[start : start + length + 1].tolist()
    position = min(question.number("position", length - 1), len(shown) - 2)
    end = start + position + 1  # the context ends here
    context = ids[(end - 1) // T * T : end]  # in the window of _score()
    with torch.no_grad():
        rows = {"model": checkpoint.model(context[None])[0, -1].float().softmax(-1).numpy()}
    if table is not None:
        rows["bigram"] = table[int(context[-1])]
    before = ids[max(0, end + 1 - smoothed.n) : end].tolist()
    rows[f"{smoothed.n}-grams"] = smoothed.next_probabilities(before)
    gains = ngram - model
    order = np.argsort(gains)
    return {
        "tokens": [names[i] for i in shown],
        "start": start,
        "n": smoothed.n,
        "count": len(model),
        "model": _round(model[passage]),
        "ngram": _round(ngram[passage]),
        "bigram": None
        if table is None
        else _round(-np.log(table[ids[:-1].numpy(), ids[1:].numpy()])[passage]),
        "losses": {"model": float(model.mean()), "ngram": float(ngram.mean())},
        "next": {
            name: [{"token": names[i], "p": float(p[i])} for i in np.argsort(-p)[:SHOWN].tolist()]
            for name, p in rows.items()
        },
        "wins": [_describe(i, ids, names, gains) for i in order[::-1][:SHOWN].tolist()],
        "defeats": [_describe(i, ids, names, gains) for i in order[:SHOWN].tolist()],
    }


def _describe(i: int, ids: Tensor, names: list[str], gains: Any) -> dict[str, Any]:
    before = "".join(names[t] for t in ids[max(0, i - 20) : i + 1].tolist())
    return {"start": i, "before": before, "token": names[int(ids[i + 1])], "nats": float(gains[i])}


def _round(values: Any) -> list[float]:
    return [round(float(value), 4) for value in values]


def find_copies(question: Question, check: Check) -> dict[str, Any]:
    """Find the longest matches of generated text in the training text."""
    checkpoint, texts = question.checkpoint(), question.texts()
    if len(texts.train.tokens) > MAX_COUNTED_TOKENS:
        raise UserError("the training text is too long to search in it here")
    source = texts.source()
    check()
    seed, prompt = question.number("seed", 1337), question.query.get("prompt", "")
    generated = _sample(checkpoint, prompt, seed, COPY_TOKENS, check)
    held_out = texts.tokenizer.decode(to_int64(texts.val.tokens[:BASELINE_TOKENS]).tolist())
    matches = source.find_matches(generated)
    return {
        "text": generated,
        "matches": [
            {**asdict(match), "excerpt": _excerpt(source, match.source, match.length)}
            for match in remove_inner(matches)
        ],
        "lengths": [match.length for match in matches],
        "held_out_lengths": [match.length for match in source.find_matches(held_out)],
    }


def _excerpt(source: Source, start: int, length: int) -> list[str]:
    """Return the text before a match, the match, and the text after it."""
    end = start + length
    return [
        source.text[max(0, start - 80) : start],
        source.text[start:end],
        source.text[end : end + 80],
    ]


def compare(question: Question, check: Check) -> dict[str, Any]:
    """Compare two models on the same passage, and by samples with the same seed."""
    one, two, texts = question.checkpoint(), question.checkpoint("2"), question.texts()
    if one.tokenizer.to_json() != two.tokenizer.to_json():
        raise UserError("the two runs have different tokenizers: choose runs with the same tokens")
    ids = to_int64(texts.part.tokens)
    losses = [_score(checkpoint, ids) for checkpoint in (one, two)]
    check()
    start = min(max(0, question.number("start", 0)), len(ids) - 2)
    passage = slice(start, start + 600)
    names, seed = name_tokens(one.tokenizer), question.number("seed", 1337)
    return {
        "tokens": [names[i] for i in ids[start : start + 601].tolist()],
        "start": start,
        "count": len(ids) - 1,
        "losses": [_round(loss[passage]) for loss in losses],
        "means": [loss.mean().item() for loss in losses],
        "samples": [
            _sample(checkpoint, question.prompt(), seed, SAMPLE_TOKENS, check)
            for checkpoint in (one, two)
        ],
    }


def list_choices() -> dict[str, Any]:
    """Return the presets and the texts that a new run can have."""
    presets = []
    for name, preset in PRESETS.items():
        model = preset.config.model
        sizes = {size: getattr(model, size) for size in SIZES if hasattr(model, size)}
        steps = preset.config.train.steps
        presets.append({"name": name, "purpose": preset.purpose, "steps": steps, "sizes": sizes})
    return {"presets": presets, "corpora": [*CORPORA], "limits": SIZES}


_rates: dict[tuple[int, int], Rates] = {}


def explain(query: dict[str, str]) -> dict[str, Any]:
    """Return the number of parameters and the estimated seconds of a planned run."""
    config = get_preset(query.get("preset", "tiny")).config
    try:
        sizes = {name: int(query[name]) for name in SIZES if query.get(name)}
        steps = int(query.get("steps") or config.train.steps)
        model = replace(config.model, **sizes)  # type: ignore[arg-type]
        config = replace(config, model=model, train=replace(config.train, steps=steps))
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from None
    device = pick_device("cpu")
    tokens = config.train.batch_size * config.model.block_size
    width = getattr(config.model, "n_embd", config.model.vocab_size)
    if (tokens, width) not in _rates:
        _rates[tokens, width] = measure_rates(device, torch.float32, tokens, width)
    explained = explain_run(config, device, torch.float32, _rates[tokens, width])
    seconds = explained.time[-1].value
    return {
        "parameters": explained.parameters[-1].value,
        "seconds": seconds if math.isfinite(seconds) else None,
        "memory": explained.memory[-1].value,
    }
