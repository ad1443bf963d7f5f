"""The lab starts, pauses and resumes runs in separate processes."""

import json
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nanogpt.errors import UserError
from nanogpt.lab import training
from nanogpt.lab.library import read_metrics
from nanogpt.lab.training import LAB, Trainings, plan_run, save_text
from nanogpt.runs.presets import get_preset
from nanogpt.system.files import write_atomically
from tests.lab.conftest import Client

pytestmark = pytest.mark.slow


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """Call `condition` until its result is true, and return this result."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "the condition stays false"
        time.sleep(0.1)
    return value


def find(client: Client, name: str) -> dict[str, Any]:
    return next((run for run in client.get("runs") if run["name"] == name), {})


def start(client: Client, steps: int, text: str) -> str:
    data = json.loads(client.request("text", text.encode())[1])["data"]
    sizes = {"n_layer": 1, "n_head": 1, "n_embd": 16, "block_size": 16}
    plan = {"preset": "tiny", "data": data, "steps": steps, "sizes": sizes}
    return str(client.post("train", plan)["run"])


def test_a_run_is_started_paused_and_resumed(client: Client, text: str) -> None:
    name = start(client, 20_000, text)
    wait_for(lambda: find(client, name).get("step", 0) >= 10)
    assert find(client, name)["is_training"]
    client.post("pause", {"run": name})
    wait_for(lambda: not client.lab.trainings.is_running(name))
    step = find(client, name)["step"]
    assert 0 < step < 20_000
    assert client.problem("pause", {"run": name}) == f"the run {name!r} is not training"
    client.post("resume", {"run": name})
    wait_for(lambda: find(client, name)["step"] > step)
    before = client.lab.trainings
    client.lab.trainings = Trainings()  # as if the lab was restarted; the run continues
    assert find(client, name)["is_training"]
    client.post("pause", {"run": name})
    wait_for(lambda: not before.is_running(name))
    assert client.problem("pause", {"run": name}) == f"the run {name!r} is not training"


def test_a_short_run_ends_with_its_snapshots(client: Client, text: str) -> None:
    name = start(client, 30, text)
    wait_for(lambda: find(client, name).get("step") == 30)
    wait_for(lambda: not client.lab.trainings.is_running(name))
    assert find(client, name)["snapshots"] == list(range(31))
    rates = {
        record["step"]: record["lr"] for record in client.get("metrics", run=name) if "lr" in record
    }
    assert (
        rates[30] < max(rates.values()) / 5
    )  # the learning rate has fallen, although the preset `tiny` has a long warm-up


def test_a_text_that_is_too_short_is_reported(client: Client) -> None:
    name = start(client, 10, "abc")
    wait_for(lambda: find(client, name).get("error"))
    assert find(client, name)["error"].startswith("the text is too short")


def test_at_most_two_runs_train(client: Client, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "MAX_PROCESSES", 1)
    name = start(client, 20_000, text)
    plan = {"preset": "tiny", "data": "tinyshakespeare", "steps": 1, "sizes": {}}
    message = "1 runs are training: pause one before you start another"
    assert client.problem("train", plan) == message
    wait_for(lambda: find(client, name).get("step", 0) >= 10)
    client.post("pause", {"run": name})
    wait_for(lambda: not client.lab.trainings.is_running(name))


def test_runs_of_an_earlier_lab_count(
    client: Client, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "MAX_PROCESSES", 1)
    name = start(client, 1_000_000, text)
    wait_for(lambda: find(client, name).get("step", 0) >= 10)
    earlier, client.lab.trainings = client.lab.trainings, Trainings()
    assert client.problem("resume", {"run": "one"}).startswith("1 runs are training")
    client.post("pause", {"run": name})
    wait_for(lambda: not earlier.is_running(name))
    assert not find(client, name)["is_training"]  # although the run has just saved a checkpoint


def test_the_curve_is_sent_again_if_its_file_is_replaced(client: Client, lab_run: Path) -> None:
    def read_records(events: Any) -> dict[str, Any]:
        """Read events until one of them contains records, and return the data of this event."""
        while b"event: records" not in events.readline():
            pass
        return dict(json.loads(events.readline().removeprefix(b"data: ")))

    records, file = read_metrics(lab_run), lab_run / "metrics.jsonl"
    with urllib.request.urlopen(f"{client.address}events?run=one", timeout=20) as events:
        assert read_records(events) == {"run": "one", "start": 0, "records": records}
        with file.open("a") as opened:
            opened.write('{"step": 61}\n')
        assert read_records(events) == {
            "run": "one",
            "start": len(records),
            "records": [{"step": 61}],
        }
        write_atomically(file, file.read_bytes().partition(b"\n")[0] + b"\n")  # a resumed run
        assert read_records(events) == {"run": "one", "start": 0, "records": records[:1]}


def test_wrong_plans_are_refused(client: Client) -> None:
    def plan(**changes: object) -> str:
        whole = {"preset": "tiny", "data": "tinyshakespeare", "steps": 1, "sizes": {}}
        return client.problem("train", {**whole, **changes})

    assert plan(sizes={"seed": 1}) == "'seed' cannot be set here"
    assert plan(sizes={"n_layer": 99}) == "n_layer is 99: it must be between 1 and 24"
    message = "'n_layer' is not a setting of the preset 'bigram'"
    assert plan(preset="bigram", sizes={"n_layer": 1}) == message
    for data in ("/etc/passwd", "../x.txt", "runs/.lab/../../x", "-"):
        assert plan(data=data).startswith("this text is not offered")
    assert plan(steps="many") == "steps is 'many': it must be a whole number"
    assert plan(sizes={"n_layer": 0}).startswith("n_layer is 0: it must be at least 1")
    message = "this request is invalid: load the page again"
    bodies: list[object] = [[], {}, {"preset": "tiny", "data": "x"}, {"sizes": 3}]
    for body in [*bodies, "x", 1, [None]]:
        assert client.problem("train", body) == message
    assert client.problem("inspect", run="one", turn="x") == message
    long = "the request is too long: use at most 10,000 bytes"
    assert client.problem("train", "x" * 20_000) == long
    assert not Path("runs/lab-tiny-1").exists()


def test_only_utf8_of_a_limited_size_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Path(save_text("ä".encode())).read_bytes() == "ä".encode()
    with pytest.raises(UserError, match="the text is not UTF-8"):
        save_text(b"\xff")
    monkeypatch.setattr(training, "MAX_TEXT_BYTES", 3)
    with pytest.raises(UserError, match="the text has 4 bytes: use at most 3"):
        save_text(b"four")
    assert len(list(LAB.iterdir())) == 1


def test_a_short_run_has_a_short_warmup() -> None:
    preset = get_preset("tiny").config
    assert plan_run("tiny", {}).optim.warmup == preset.optim.warmup == 200
    assert plan_run("tiny", {"steps": 300}).optim.warmup == 30
