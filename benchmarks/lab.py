"""Measure how fast the lab answers in a browser, and how much an open page slows down training.

    python benchmarks/lab.py     # needs Chromium, playwright, and about 15 minutes

The script measures how fast the views of the page respond. It also trains `tiny` with 40 snapshots
several times: in turn with the command `nanogpt train`, and in the lab, whose page shows the
training. The results go to benchmarks/results/lab.json. All times are in milliseconds. "usable
page" and "first picture" are single measurements; each of the other times has a median and a 95th
percentile.
"""

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import RESULTS, save_result
from playwright.sync_api import Page, sync_playwright

# Changes or clicks an input, waits until isDone() is true and the next frame is painted, and
# returns the time in ms.
MEASURE = """async ([selector, value, done, expected]) => {
  const input = document.querySelector(selector), start = performance.now();
  if (value === null) input.click();
  else { input.value = value; input.dispatchEvent(new Event("input")); }
  const frame = () => new Promise(resolve => requestAnimationFrame(resolve));
  const isDone = () => done === "count"
    ? document.querySelectorAll(".tokens span").length === expected
    : done === "idle" ? document.querySelector("main").getAttribute("aria-busy") === "false"
    : document.querySelector(".big").textContent.startsWith(expected);
  do { await frame(); } while (!isDone());
  await frame();
  return performance.now() - start;
}"""


def describe(times: list[float]) -> dict[str, float]:
    """Return the median and the 95th percentile of times in ms."""
    ordered = sorted(times)
    return {
        "median": round(statistics.median(times), 1),
        "95th percentile": round(ordered[int(0.95 * (len(ordered) - 1))], 1),
    }


def measure_slider(page: Page, address: str) -> dict[str, float]:
    """Load all frames; measure the time from each slider move to the new picture."""
    page.goto(f"{address}#view=time&run=tiny")
    page.reload()
    page.get_by_label("Snapshot").wait_for()
    page.wait_for_timeout(15_000)
    count = int(page.get_by_label("Snapshot").get_attribute("max") or 0) + 1
    times = []
    for move in range(40):
        place = (move * 17 + 5) % count
        page.wait_for_timeout(50)
        done = [".slider input", str(place), "starts", "step"]
        times.append(page.evaluate(MEASURE, done))
    return describe(times)


def measure_typing(page: Page, address: str) -> dict[str, float]:
    """Measure the time from each change of the prompt to the new probabilities."""
    page.goto(f"{address}#view=look&run=tiny&prompt=To be")
    page.reload()
    page.locator(".tokens span").first.wait_for()
    times, prompt = [], "To be"
    for letter in ", or not to be: that is the question.":
        prompt += letter
        page.wait_for_timeout(100)
        times.append(page.evaluate(MEASURE, [".prompt", prompt, "count", len(prompt)]))
    return describe(times)


def measure_ablation(page: Page, address: str) -> dict[str, float]:
    """Switch off heads one by one; measure the time from each click to the new loss."""
    page.goto(f"{address}#view=apart&run=tiny")
    page.reload()
    page.get_by_text("with all parts").wait_for()
    times = []
    for layer in range(4):
        for head in range(3):
            part = f".parts > button:nth-of-type({6 * layer + head + 1})"
            times.append(page.evaluate(MEASURE, [part, None, "idle", None]))
    return describe(times)


def read_rate(run: Path) -> float:
    """Return the tokens per second of a run."""
    last = json.loads((run / "metrics.jsonl").read_text("utf-8").splitlines()[-1])
    return float(last["tokens"]) / float(last["seconds"])


def wait_for(condition: Callable[[], Any]) -> Any:
    """Call `condition` until it returns a true value, and return this value."""
    while not (value := condition()):
        time.sleep(0.2)
    return value


def measure_training(page: Page, address: str, home: Path, steps: int) -> float:
    """Train in the lab while the page is open; return the tokens per second."""
    before = set((home / "runs").iterdir())
    page.goto(f"{address}#view=train&run=tiny")
    page.reload()
    page.get_by_label("Steps").fill(str(steps))
    page.get_by_role("button", name="Start").click()
    (run,) = wait_for(lambda: set((home / "runs").glob("lab-*")) - before)
    page.get_by_role("heading", name=run.name).wait_for(timeout=120_000)

    def is_done() -> bool:
        lines = (run / "metrics.jsonl").read_text("utf-8").splitlines()
        return bool(lines) and json.loads(lines[-1])["step"] == steps

    wait_for(is_done)
    return read_rate(run)


def read_memory(process: int) -> float:
    """Return the largest resident memory of a process so far, in MB."""
    status = Path(f"/proc/{process}/status").read_text("ascii")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found
    return round(int(found[1]) * 1024 / 1e6)


def main() -> None:
    """Make all measurements, save the result and print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=2400, help="training steps of each run")
    parser.add_argument(
        "--repeats", type=int, default=3, help="number of runs alone, and of runs in the lab"
    )
    args = parser.parse_args()
    nanogpt = [sys.executable, "-m", "nanogpt"]
    train = [*nanogpt, "train", "tiny", "--train.steps", str(args.steps), "--sample-tokens", "0"]
    train += ["--train.history", "40"]
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory, sync_playwright() as playwright:
        home = Path(directory)
        subprocess.run(train, cwd=home, check=True, capture_output=True)
        snapshots = [file for file in (home / "runs/tiny/history").rglob("*") if file.is_file()]
        result["megabytes of 40 snapshots"] = round(sum(f.stat().st_size for f in snapshots) / 1e6)
        lab = subprocess.Popen(
            [*nanogpt, "lab", "--no-browser"], cwd=home, stdout=subprocess.PIPE, text=True
        )
        assert lab.stdout
        address = lab.stdout.readline().split()[4]
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(120_000)
        start = time.perf_counter()
        page.goto(address)
        page.get_by_role("button", name="Play").wait_for()
        result["usable page"] = round(1000 * (time.perf_counter() - start))
        page.locator(".tokens span").first.wait_for()
        result["first picture"] = round(1000 * (time.perf_counter() - start))
        result["slider to picture"] = measure_slider(page, address)
        result["typing to probabilities"] = measure_typing(page, address)
        result["part to loss"] = measure_ablation(page, address)
        alone, beside = [], []
        for _ in range(args.repeats):
            before = set((home / "runs").iterdir())
            subprocess.run(train, cwd=home, check=True, capture_output=True)
            (run,) = set((home / "runs").glob("tiny*")) - before
            alone.append(read_rate(run))
            beside.append(measure_training(page, address, home, args.steps))
        result["tokens a second alone"] = [round(rate) for rate in alone]
        result["tokens a second in the lab"] = [round(rate) for rate in beside]
        result["ratio"] = round(statistics.median(beside) / statistics.median(alone), 3)
        result["megabytes of the server"] = read_memory(lab.pid)
        browser.close()
        lab.terminate()
        lab.wait()
    save_result(RESULTS / "lab.json", result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
