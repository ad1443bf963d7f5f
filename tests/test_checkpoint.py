"""A checkpoint gives back what was saved, and says what is wrong with one that is damaged."""

import json
from pathlib import Path

import pytest
import torch

from nanogpt.checkpoint import Checkpoint, find_run, load, new_run, save, trained_on
from nanogpt.errors import UserError
from nanogpt.models import GPT, Bigram, BigramConfig, GPTConfig, Model
from nanogpt.tokenizers import CharTokenizer

CONFIG = GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=8, vocab_size=3)


@pytest.fixture(params=["gpt", "bigram"])
def model(request: pytest.FixtureRequest) -> Model:
    return GPT(CONFIG) if request.param == "gpt" else Bigram(BigramConfig(3, 8))


@pytest.fixture
def best(model: Model) -> Path:
    """A saved checkpoint, in a run of its own."""
    directory = Path("runs/one/best")
    save(directory, Checkpoint(model, CharTokenizer("abc"), 7))
    return directory


def test_it_gives_back_what_was_saved(model: Model, best: Path) -> None:
    loaded = load(best)
    assert loaded.step == 7
    assert loaded.model.config == model.config
    assert loaded.tokenizer.alphabet == "abc"
    assert not loaded.model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor)


def test_the_next_one_replaces_it_whole(model: Model, best: Path) -> None:
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    save(best, Checkpoint(model, CharTokenizer("abc"), 8))
    loaded = load(best)
    assert loaded.step == 8
    torch.testing.assert_close(next(loaded.model.parameters()), next(model.parameters()))
    assert [file.name for file in best.parent.iterdir()] == ["best"]


def test_it_is_safetensors_and_json(best: Path) -> None:
    names = {file.name for file in best.iterdir()}
    assert names == {"model.safetensors", "config.json", "tokenizer.json"}


def damage(file: Path, how: str) -> None:
    if how == "missing":
        file.unlink()
    elif how == "cut":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif how == "empty":
        file.write_bytes(b"")
    else:
        file.write_text("[1, 2]")


@pytest.mark.parametrize("how", ["missing", "cut", "empty", "a list"])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_damaged_file_is_named(best: Path, name: str, how: str) -> None:
    damage(best / name, how)
    with pytest.raises(UserError, match=r"is missing or damaged \(.*\): restore it") as error:
        load(best)
    assert str(error.value).startswith(str(best / name))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"n_embed": 16}, "unknown field n_embed"),
        ({"kind": "rnn"}, "'rnn'"),
        ({"n_head": 3}, "n_embd is 16, which n_head 3 does not divide"),
        ({"n_embd": 32}, "size mismatch"),
        ({"n_layer": 2}, "Missing key"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(change: dict[str, int], says: str) -> None:
    save(Path("best"), Checkpoint(GPT(CONFIG), CharTokenizer("abc"), 7))
    config = json.loads(Path("best/config.json").read_text())
    config["model"] |= change
    Path("best/config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=says):
        load("best")


def test_a_tokenizer_of_another_run_is_refused() -> None:
    save(Path("best"), Checkpoint(GPT(CONFIG), CharTokenizer("abcdef"), 7))
    with pytest.raises(UserError, match="6 tokens and the model 3: they are not of one run"):
        load("best")


def test_runs_get_directories_of_their_own() -> None:
    made = [new_run(None, "tiny") for _ in range(3)]
    assert made == [Path("runs/tiny"), Path("runs/tiny-2"), Path("runs/tiny-3")]
    assert new_run(Path("here/below"), "tiny") == Path("here/below")


def test_a_directory_that_holds_a_run_is_refused() -> None:
    new_run(Path("mine"), "tiny")
    with pytest.raises(UserError, match="mine already holds a run: name another, such as --out"):
        new_run(Path("mine"), "tiny")


def test_a_directory_that_cannot_be_written_is_refused() -> None:
    Path("file").touch()
    with pytest.raises(UserError, match="cannot write in file/run: Not a directory; name another"):
        new_run(Path("file/run"), "tiny")


def test_a_run_is_found_by_path_by_name_or_by_age(best: Path) -> None:
    assert find_run("runs/one") == Path("runs/one")
    assert find_run("one") == Path("runs/one")
    assert find_run(None) == Path("runs/one")
    for name in ("two", "later"):
        save(Path("runs", name, "best"), load(best))
        assert find_run(None) == Path("runs", name)


def test_a_run_that_is_not_there_is_named(best: Path) -> None:
    with pytest.raises(UserError, match="there is no run two; the runs in runs/: runs/one"):
        find_run("two")
    Path("empty").mkdir()
    with pytest.raises(UserError, match="empty holds no run: its best/ is missing"):
        find_run("empty")


def test_without_any_run_the_way_to_one_is_named() -> None:
    with pytest.raises(UserError, match="there is no run in runs/ yet: make one with `nanogpt tra"):
        find_run(None)


def test_what_a_run_learned_from() -> None:
    Path("run").mkdir()
    Path("run/run.json").write_text('{"config": {"data": "tinyshakespeare"}}')
    assert trained_on(Path("run")) == "tinyshakespeare"
    Path("run/run.json").write_text("{}")
    with pytest.raises(UserError, match=r"run.run\.json is missing or damaged"):
        trained_on(Path("run"))
