"""The variables of several processes are complete and possible, or an error names a wrong one."""

import pytest

from nanogpt.errors import UserError
from nanogpt.system import launch

GOOD = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def set_variables(monkeypatch: pytest.MonkeyPatch, **values: str | None) -> None:
    for name, value in ({**dict.fromkeys(launch.NAMES), "LOCAL_RANK": None} | values).items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)


def test_torchrun_starts_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    set_variables(monkeypatch, **GOOD, LOCAL_RANK="1")
    launch.require_valid_variables()
    assert (launch.get_size(), launch.get_rank(), launch.get_local_rank()) == (2, 1, 1)


@pytest.mark.parametrize("name", [*launch.NAMES, None])
def test_one_variable_alone_means_nothing(
    name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_variables(monkeypatch, **({name: GOOD[name]} if name else {}))
    launch.require_valid_variables()
    assert (launch.get_size(), launch.get_rank(), launch.get_local_rank()) == (1, 0, 0)


@pytest.mark.parametrize("name", launch.NAMES)
@pytest.mark.parametrize("value", [None, ""])
def test_a_missing_variable_is_named(
    name: str, value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_variables(monkeypatch, **{**GOOD, name: value})
    with pytest.raises(UserError, match=f"^{name} is not set: several processes need RANK, WORLD_"):
        launch.require_valid_variables()
    launch.get_rank()  # other commands do not need the variables


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("RANK", "2", "it must be at least 0 and less than WORLD_SIZE, 2"),
        ("RANK", "-1", "it must be at least 0 and less than WORLD_SIZE, 2"),
        ("RANK", "x", "it must be at least 0"),
        ("RANK", "1.0", "it must be at least 0"),
        ("WORLD_SIZE", "two", "it must be at least 1 and less than 65536"),
        ("WORLD_SIZE", "-2", "it must be at least 1"),
        ("WORLD_SIZE", "0", "it must be at least 1"),
        ("WORLD_SIZE", "99999999999", "it must be at least 1"),
        ("MASTER_PORT", "abc", "it must be at least 1 and less than 65536"),
        ("MASTER_PORT", "99999", "it must be at least 1"),
        ("MASTER_PORT", "0", "it must be at least 1"),
    ],
)
def test_an_impossible_value_is_refused(
    name: str, value: str, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_variables(monkeypatch, **{**GOOD, name: value})
    with pytest.raises(UserError, match=f"^{name} is {value}: {rule}"):
        launch.require_valid_variables()
    launch.get_rank()


def test_a_single_process_of_torchrun_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    set_variables(monkeypatch, **{**GOOD, "WORLD_SIZE": "1", "RANK": "0"})
    launch.require_valid_variables()
    assert (launch.get_size(), launch.get_rank()) == (1, 0)
