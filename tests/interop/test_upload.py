"""`nanogpt export --push` uploads the exported folder; the stand-in for the Hub needs a token."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.interop.hub import TOKEN, hub

Command = Callable[..., tuple[int, str, str]]


@pytest.mark.slow
def test_an_export_is_uploaded(run: Path, tmp_path: Path) -> None:
    """Without the token, the export remains; the command in the message then uploads it."""
    stored = Path("stored")
    stored.mkdir()
    with hub("me/tiny", stored) as address:
        environment = {
            **{name: value for name, value in os.environ.items() if name != "HF_TOKEN"},
            **{"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"},
        }

        def execute(*command: object, **variables: str) -> tuple[int, str, str]:
            done = subprocess.run(
                list(map(str, command)),
                capture_output=True,
                text=True,
                env={**environment, **variables},
            )
            return done.returncode, done.stdout, done.stderr

        nanogpt = [sys.executable, "-m", "nanogpt", "export", run]
        status, out, err = execute(*nanogpt, "--push", "me/tiny")
        assert (status, out) == (1, f"{run / 'hf'}\n")
        advice = f"hf upload me/tiny {run / 'hf'}"
        assert err.startswith(f"nanogpt: cannot upload {run / 'hf'} to me/tiny (")
        assert err.endswith(f"): log in with `hf auth login`, check the name, then `{advice}`\n")
        assert list(stored.iterdir()) == []
        command = [Path(sys.executable).with_name("hf"), *advice.split()[1:]]
        assert execute(*command, HF_TOKEN=TOKEN)[0] == 0
        files = {file.name: file.read_bytes() for file in (run / "hf").iterdir()}
        assert {file.name: file.read_bytes() for file in stored.iterdir()} == files
        for file in stored.iterdir():
            file.unlink()

        answer = execute(*nanogpt, "--out", "there", "--push", "me/tiny", HF_TOKEN=TOKEN)
        assert answer == (0, f"there\n{address}/me/tiny\n", "")
        assert TOKEN not in "".join(map(str, answer))
        assert {file.name for file in stored.iterdir()} == files.keys()


def test_only_folders_for_transformers_are_uploaded(nanogpt: Command, run: Path) -> None:
    assert nanogpt("export", run, "--to", "gguf", "--push", "me/tiny") == (
        2,
        "",
        "nanogpt: --push has no effect: it uploads folders for transformers, so it needs --to hf; "
        "leave the option out\n",
    )
