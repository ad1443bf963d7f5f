"""What changes while a run goes on can be saved and restored, all of it."""

import pytest
import torch

from nanogpt.models import GPT, GPTConfig
from nanogpt.optim import OptimConfig, build_optimizer
from nanogpt.state import State

CONFIG = GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=8, vocab_size=3, dropout=0.5)


def fresh(optimizer: str = "adamw") -> State:
    model = GPT(CONFIG)
    built = build_optimizer(model, OptimConfig(optimizer, lr=0.1))  # type: ignore[arg-type]
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return State(model, built, scaler, torch.Generator().manual_seed(7))


def step(state: State) -> float:
    """A step on random tokens, with dropout; gives what it computed."""
    tokens = torch.randint(3, (4, 8), generator=state.order)
    out = state.model(tokens).square().mean()
    out.backward()
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.step += 1
    return float(out.item())


@pytest.mark.parametrize("optimizer", ["adamw", "adam"])
@pytest.mark.parametrize("steps", [0, 3])
def test_it_goes_on_as_if_nothing_had_happened(optimizer: str, steps: int) -> None:
    one = fresh(optimizer)
    for _ in range(steps):
        step(one)
    weights = {name: t.clone() for name, t in one.model.state_dict().items()}
    tensors = {name: t.clone() for name, t in one.tensors().items()}
    expected = [step(one) for _ in range(3)]

    other = fresh(optimizer)
    other.model.load_state_dict(weights)
    other.step = steps
    torch.rand(5)
    other.restore(tensors)
    assert [step(other) for _ in range(3)] == expected
    assert one.tensors().keys() == other.tensors().keys()
    for name, tensor in one.tensors().items():
        assert torch.equal(other.tensors()[name], tensor), name


@pytest.mark.parametrize("steps", [0, 3])
def test_what_is_expected_is_what_there_is(steps: int) -> None:
    state = fresh()
    for _ in range(steps):
        step(state)
    state.losses = [torch.tensor(2.0)] * steps
    expected, tensors = state.expected(pending=steps), state.tensors()
    assert expected.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (tensor.shape, tensor.dtype) == (expected[name].shape, expected[name].dtype), name


def test_generators_of_another_device_are_left_out() -> None:
    state = fresh()
    state.restore(state.tensors() | {"random.cuda": torch.zeros(16, dtype=torch.uint8)})


def test_a_state_that_no_generator_has_is_refused() -> None:
    state = fresh()
    bad = torch.full_like(state.order.get_state(), 255)
    with pytest.raises(RuntimeError):
        state.restore(state.tensors() | {"random.order": bad})
