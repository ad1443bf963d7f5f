"""The numbers in the lab's answers equal those that the package computes in other ways."""

import json
import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nanogpt.api import load
from nanogpt.data import Split
from nanogpt.evaluate import cross_entropy, evaluate
from nanogpt.lab import library
from nanogpt.lab.answers import copied
from nanogpt.reports.inspection import inspect_text
from nanogpt.runs.checkpoint import load_checkpoint
from nanogpt.runs.config import RunConfig, TrainConfig
from nanogpt.runs.history import list_snapshots, snapshot_directory
from nanogpt.runs.run import load_run_text
from nanogpt.text.encoding import encode_corpus
from nanogpt.text.kneser_ney import KneserNey
from nanogpt.train import train
from tests.lab.conftest import Client

PROMPT = "abc de"


def splits(run: Path) -> dict[str, Split]:
    corpus, fraction = load_run_text(run)
    tokenizer = load_checkpoint(run / "best").tokenizer
    return {
        name: Split(encode_corpus(corpus, tokenizer, name, fraction)) for name in ("train", "val")
    }


def test_runs_are_described(client: Client, lab_run: Path) -> None:
    (run,) = client.get("runs")
    best = load_checkpoint(lab_run / "best")
    assert (run["name"], run["kind"], run["step"], run["steps"]) == ("one", "GPT", 60, 60)
    assert best.best is not None
    assert run["val_loss"] == best.best.val_loss == pytest.approx(evaluate_best(lab_run))
    assert run["snapshots"] == list_snapshots(lab_run)
    assert run["parameters"] == sum(p.numel() for p in best.model.parameters())
    assert not run["is_training"]


def evaluate_best(run: Path) -> float:
    return evaluate(load_checkpoint(run / "best").model, splits(run)["val"]).loss


@pytest.mark.parametrize("step", ["best", 0, 60])
def test_inspection_is_that_of_the_snapshot(client: Client, lab_run: Path, step: object) -> None:
    answer = client.get("inspect", run="one", step=step, prompt=PROMPT)
    place = lab_run / "best" if step == "best" else snapshot_directory(lab_run, int(str(step)))
    checkpoint = load_checkpoint(place)
    expected = inspect_text(checkpoint.model, checkpoint.tokenizer, PROMPT, "")
    assert answer["attention"] == expected.attention
    assert answer["probabilities"] == expected.probabilities
    completed = client.get("complete", run="one", step=step, prompt=PROMPT, tokens=20)
    assert completed["sample"] == load(place, "cpu").generate(PROMPT, max_new_tokens=20)


def test_next_tokens_are_those_of_the_sampling(client: Client, lab_run: Path) -> None:
    answer = client.get("next", run="one", prompt=PROMPT, temperature=0.5, top_k=3)
    checkpoint = load_checkpoint(lab_run / "best")
    ids = checkpoint.tokenizer.encode(PROMPT)
    logits = checkpoint.model(torch.tensor([ids]))[0, -1]
    p, top = logits.softmax(-1), logits.topk(3)
    kept = (top.values / 0.5).softmax(-1)
    assert answer["n_kept"] == 3
    assert [row["p"] for row in answer["tokens"][:3]] == pytest.approx(p[top.indices].tolist())
    assert [row["kept"] for row in answer["tokens"][:3]] == pytest.approx(kept.tolist())
    assert not any(row["kept"] for row in answer["tokens"][3:])


def test_ablation_without_parts_is_the_evaluation(client: Client, lab_run: Path) -> None:
    answer = client.get("ablate", run="one", prompt=PROMPT)
    assert answer["tokens"] == answer["all_tokens"] == len(splits(lab_run)["val"].tokens) - 1
    assert answer["loss"] == pytest.approx(evaluate_best(lab_run))
    assert answer["sample"] == load("one", "cpu").generate(PROMPT, max_new_tokens=160)
    off = client.get("ablate", run="one", prompt=PROMPT, off="head 1.1,block 2", only_loss=1)
    assert off["loss"] != answer["loss"]
    assert off["inspection"] is None
    assert client.get("ablate", run="one", only_loss=1)["loss"] == answer["loss"]


def test_counting_compares_with_kneser_ney(client: Client, lab_run: Path) -> None:
    answer = client.get("counting", run="one", start=5)
    both, checkpoint = splits(lab_run), load_checkpoint(lab_run / "best")
    known, val = both["train"].tokens.long(), both["val"].tokens.long()
    smoothed = KneserNey(known.numpy(), answer["n"], checkpoint.tokenizer.vocab_size)
    assert answer["losses"]["ngram"] == pytest.approx(
        -np.log(smoothed.probabilities(val.numpy())[1:]).mean()
    )
    assert answer["losses"]["model"] == pytest.approx(evaluate_best(lab_run), rel=1e-5)
    T = checkpoint.model.config.block_size
    window = val[0 : T + 1]
    loss = cross_entropy(checkpoint.model(window[None, :-1]), window[None, 1:], "none")
    assert answer["model"][: T - 5] == pytest.approx(loss[5:].tolist(), abs=1e-3)
    last = len(answer["tokens"]) - 2  # a position after the first window
    for name, losses in (("model", answer["model"]), (f"{answer['n']}-grams", answer["ngram"])):
        p = {row["token"]: row["p"] for row in answer["next"][name]}
        assert -math.log(p[answer["tokens"][last + 1]]) == pytest.approx(losses[last], abs=1e-3)
    assert answer["wins"][0]["nats"] > 0 > answer["defeats"][0]["nats"]
    assert sum(row["p"] for row in answer["next"]["bigram"]) <= 1.0001


def test_copies_occur_in_the_training_text(client: Client, lab_run: Path) -> None:
    answer = client.get("copied", run="one", seed=1)
    corpus, fraction = load_run_text(lab_run)
    known = "".join(corpus.read_split("train", fraction))
    text = answer["text"]
    assert len(answer["lengths"]) == len(text)
    for match in answer["matches"]:
        part = text[match["start"] : match["start"] + match["length"]]
        assert known[match["source"] :].startswith(part)
        assert match["excerpt"][1] == part
        assert text[match["start"] : match["start"] + match["length"] + 1] not in known or (
            match["start"] + match["length"] == len(text)
        )


def test_comparison_has_the_losses_of_both(client: Client, lab_run: Path) -> None:
    answer = client.get("compare", run="one", run2="one", step2=0, prompt=PROMPT)
    val = splits(lab_run)["val"]
    first = load_checkpoint(snapshot_directory(lab_run, 0))
    means = [evaluate_best(lab_run), evaluate(first.model, val).loss]
    assert answer["means"] == pytest.approx(means, rel=1e-5)
    assert len(answer["losses"][0]) == len(answer["tokens"]) - 1
    same = client.get("compare", run="one", run2="one", prompt=PROMPT)
    assert same["losses"][0] == same["losses"][1]
    assert same["samples"][0] == same["samples"][1]


def read_pieces(client: Client, tokens: int) -> list[str]:
    status, raw, headers = client.request(f"sample?run=one&prompt=abc&tokens={tokens}&seed=3")
    assert (status, headers["content-type"].partition(";")[0]) == (200, "text/event-stream")
    events = [line[6:] for line in raw.decode().splitlines() if line.startswith("data: ")]
    pieces = [json.loads(event) for event in events]
    assert pieces.pop() is None  # the end
    return pieces


def test_samples_arrive_in_pieces(client: Client) -> None:
    pieces = read_pieces(client, 1000)
    assert 1 < len(pieces) < 500
    assert "".join(pieces) == load("one", "cpu").generate("abc", max_new_tokens=1000, seed=3)


def test_samples_and_other_answers_do_not_disturb_each_other(client: Client) -> None:
    """Samples do not change while other requests switch off parts of the same model."""
    alone = load("one", "cpu").generate("abc", max_new_tokens=1000, seed=3)
    inspected = client.get("inspect", run="one", prompt="abc")
    with ThreadPoolExecutor(4) as pool:
        samples = [pool.submit(read_pieces, client, 1000)]
        for head in ("1.1", "1.2", "2.1", "2.2"):
            pool.submit(client.get, "ablate", run="one", off=f"head {head}", prompt="ab")
            pool.submit(client.get, "inspect", run="one", prompt=f"abc{head[0].replace('1', 'd')}")
        samples.append(pool.submit(read_pieces, client, 1000))
    assert ["".join(sample.result()) for sample in samples] == [alone, alone]
    assert client.get("inspect", run="one", prompt="abc") == inspected


def test_baselines_are_those_of_a_run(client: Client, lab_run: Path) -> None:
    answer = client.get("baselines", run="one")
    both = splits(lab_run)
    ids = [both[name].tokens.long().numpy() for name in ("train", "val")]
    vocab_size = load_checkpoint(lab_run / "best").tokenizer.vocab_size
    assert answer["ngram_loss"] == pytest.approx(
        KneserNey(ids[0], answer["n"], vocab_size).loss(ids[1])
    )


def test_a_plan_is_explained(client: Client) -> None:
    answer = client.get("explain", preset="tiny", n_layer=2, steps=10)
    assert answer["parameters"] > 0
    assert math.isfinite(answer["seconds"])
    choices = client.get("setup")
    assert {"tiny", "bigram"} <= {preset["name"] for preset in choices["presets"]}


def test_the_first_prompt_is_held_out_text(client: Client, lab_run: Path) -> None:
    corpus, fraction = load_run_text(lab_run)
    held_out = "".join(corpus.read_split("val", fraction))
    prompt = client.get("prompt", run="one")["prompt"]
    assert len(prompt) == load_checkpoint(lab_run / "best").model.config.block_size
    assert held_out.startswith(prompt)


def test_mistakes_have_messages(client: Client, lab_run: Path) -> None:
    ask = client.problem
    assert ask("inspect", run="one", step=7) == (
        "the run 'one' has no snapshot at step 7: choose another step"
    )
    assert ask("inspect", run="one", step="x").startswith("step is 'x': it must be a whole number")
    assert ask("next", run="one", temperature="hot").startswith("temperature is 'hot'")
    assert "the model has no part 'head 9.9'" in ask("ablate", run="one", off="head 9.9")
    assert "n_embd" in ask("explain", preset="tiny", n_embd=129)
    assert "there is no preset" in ask("explain", preset="huge")


def test_texts_that_are_too_long_are_refused(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (copied, library):
        monkeypatch.setattr(module, "MAX_COUNTED_TOKENS", 10)
    assert client.problem("counting", run="one").startswith("the text is too long to count")
    assert client.problem("copied", run="one").startswith("the training text is too long")
    assert client.get("baselines", run="one") == {"n": None, "ngram_loss": None}


def test_runs_with_different_tokens_are_not_compared(client: Client, config: RunConfig) -> None:
    train(replace(config, name="two", tokenizer="byte", train=TrainConfig(steps=1, batch_size=1)))
    message = "the two runs have different tokenizers: choose runs with the same tokenizer"
    assert client.problem("compare", run="one", run2="two") == message


def test_a_damaged_snapshot_does_not_stop_the_others(client: Client, lab_run: Path) -> None:
    weights = snapshot_directory(lab_run, 1) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "is missing or damaged" in client.problem("inspect", run="one", step=1, prompt="abc")
    assert client.get("inspect", run="one", step=0, prompt="abc")["tokens"] == ["a", "b", "c"]


def test_a_run_that_is_deleted_disappears(client: Client, lab_run: Path) -> None:
    assert client.get("inspect", run="one", prompt="abc")
    shutil.rmtree(lab_run)
    assert client.problem("inspect", run="one", prompt="abc").startswith("there is no run 'one'")
    assert client.get("runs") == []


def test_a_damaged_run_is_listed_with_its_message(client: Client, lab_run: Path) -> None:
    (lab_run / "run.json").write_bytes(b"{")
    (run,) = client.get("runs")
    assert "is missing or damaged" in run["error"]
