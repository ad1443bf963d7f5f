"""The benchmarks can be imported, and agree with the current package."""

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
Command = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("name", sorted(file.stem for file in BENCHMARKS.glob("*.py")))
def test_a_benchmark_can_be_imported(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    importlib.import_module(name)


def test_the_heading_of_the_sample_is_the_one_that_training_prints(
    nanogpt: Command, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    common = importlib.import_module("common")
    options = ["--train.steps", "1", "--train.eval-every", "1", "--model.n-layer", "1"]
    status, out, _ = nanogpt("train", "tiny", "--data", text_file, "--device", "cpu", *options)
    assert status == 0
    assert out.count(common.SAMPLE_HEADING) == 1


def test_a_ratio_compares_the_seconds_to_the_target_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    tables = importlib.import_module("tables")

    def run(*evaluations: tuple[float, float]) -> dict[str, object]:
        points = [
            {"step": 10 * n, "seconds": seconds, "val_loss": loss}
            for n, (seconds, loss) in enumerate(evaluations, 1)
        ]
        best = min(points, key=lambda point: point["val_loss"])
        return {"best": best, "evaluations": points, "seconds": 99.0, "megabytes": 300.0}

    comparison = {
        "device": "cpu",
        "torch": "2.13",
        "target": 1.5,
        "runs": {
            "nanoGPT": [run((40.0, 1.7), (80.0, 1.6)), run((50.0, 1.8), (60.0, 1.4))],
            "nanogpt tiny": [run((10.0, 1.5), (20.0, 1.2)), run((30.0, 1.6), (40.0, 1.5))],
        },
    }
    # The first run of nanoGPT never reaches the target, so the time of its lowest loss is used.
    assert tables.get_median_seconds(comparison, "nanoGPT") == (80 + 60) / 2
    assert tables.get_median_seconds(comparison, "nanogpt tiny") == (10 + 40) / 2
    row = tables.versus_table(comparison).splitlines()[3]
    assert row.startswith("| nanogpt tiny |  | 1.3500 |")
    assert "| 25.0 | 2.8 |" in row
