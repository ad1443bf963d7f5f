"""nanogpt data."""

import json
import re
from pathlib import Path

from .answers import Command, assert_refused


def test_data_shows_statistics_and_ngrams(nanogpt: Command, text_file: Path, text: str) -> None:
    status, out, err = nanogpt("data", text_file)
    assert (status, err) == (0, "")
    assert "6,000 bytes, 6,000 characters" in out
    assert re.search(r"trigrams +\d\.\d{4} +\d\.\d{4} +\d\.\d{4}", out)
    answer = json.loads(nanogpt("data", text_file, "--json")[1])
    assert answer["alphabet"] == "".join(sorted(set(text)))
    assert [each["n"] for each in answer["ngrams"]] == [1, 2, 3]
    assert_refused(nanogpt("data", "nope.txt"), "there is no file nope.txt")
