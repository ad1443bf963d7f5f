"""What changes while a run goes on can be saved and restored, all of it."""

import pytest
import torch

from nanogpt.models import Modern, ModernConfig
from nanogpt.optim import OptimConfig, build_optimizers, update_average
from nanogpt.runs.state import State

CONFIG = ModernConfig(n_layer=1, n_head=2, n_embd=16, block_size=8, vocab_size=3, dropout=0.5)


def fresh(optimizer: str = "adamw") -> State:
    model = Modern(CONFIG)
    built = build_optimizers(model, OptimConfig(optimizer, lr=0.1))  # type: ignore[arg-type]
    return State(model, built, average=[p.detach() + 1 for p in model.parameters()])


def step(state: State) -> float:
    """A step on random tokens, with dropout; gives what it computed."""
    tokens = torch.randint(3, (4, 8))
    out = (state.model(tokens) - 1).square().mean()
    out.backward()
    for optimizer in state.optimizers:
        optimizer.step(torch.tensor(0.1))
    state.model.zero_grad()
    update_average(state.average, list(state.model.parameters()), torch.tensor(0.5))
    state.step += 1
    return float(out.item())


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "muon"])
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


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("steps", [0, 3])
def test_what_is_expected_is_what_there_is(optimizer: str, steps: int) -> None:
    state = fresh(optimizer)
    for _ in range(steps):
        step(state)
    state.losses = torch.full((steps,), 2.0)
    expected, tensors = state.expected_tensors(losses=steps), state.tensors()
    assert expected.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (tensor.shape, tensor.dtype) == (expected[name].shape, expected[name].dtype), name


def test_the_mean_stands_in_for_the_weights_and_they_come_back() -> None:
    state = fresh()
    parameters = list(state.model.parameters())
    weights = [p.detach().clone() for p in parameters]
    with state.averaged():
        for p, w in zip(parameters, weights, strict=True):
            assert torch.equal(p, w + 1)
    for p, w in zip(parameters, weights, strict=True):
        assert torch.equal(p, w)


def test_generators_of_another_device_are_left_out() -> None:
    state = fresh()
    state.restore(state.tensors() | {"random.cuda": torch.zeros(16, dtype=torch.uint8)})


def test_a_state_that_no_generator_has_is_refused() -> None:
    state = fresh()
    bad = torch.full_like(torch.get_rng_state(), 255)
    with pytest.raises(RuntimeError):
        state.restore(state.tensors() | {"random.cpu": bad})
