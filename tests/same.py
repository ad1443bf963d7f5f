"""Helpers that compare two runs bit for bit."""

import json
from pathlib import Path


def metrics(run: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl without the key `seconds`, which differs between runs."""
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return [{name: line[name] for name in line if name != "seconds"} for line in lines]


def assert_same(one: Path, other: Path) -> None:
    """Assert that all weights, optimizer tensors, random states and metrics are equal."""
    assert metrics(one) == metrics(other)
    for checkpoint in ("last", "best"):
        files = {file.name for file in (one / checkpoint).iterdir()}
        assert files == {file.name for file in (other / checkpoint).iterdir()}
        for name in files - {"training.json", "SHA256SUMS"}:
            first, second = one / checkpoint / name, other / checkpoint / name
            assert first.read_bytes() == second.read_bytes(), second
    infos = [json.loads((run / "last" / "training.json").read_text()) for run in (one, other)]
    for info in infos:
        del info["seconds"], info["config"]
    assert infos[0] == infos[1]
