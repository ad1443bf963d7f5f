"""The cache. URLs and standard input are tested in test_corpora.py."""

from pathlib import Path

import pytest

from nanogpt.text.download import cache_directory, new_directory


def test_a_tilde_in_the_cache_path_means_the_home_directory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NANOGPT_CACHE", "~/texts")
    assert cache_directory() == Path.home() / "texts"


def test_a_directory_of_a_killed_process_is_removed(cache: Path) -> None:
    killed = cache / ".new-0123"
    killed.mkdir(parents=True)
    (killed / "new").write_text("a part of a text")
    with new_directory("one") as one:
        assert not killed.exists()
        (one / "new").touch()
        with new_directory("two") as two:
            assert two != one
        assert (one / "new").exists()  # this process still uses `one`
    assert not [*cache.iterdir()]
