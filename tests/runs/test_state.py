"""The state of a run is saved and restored completely."""

import pytest
import torch

from nanogpt.models import Modern, ModernConfig
from nanogpt.optim import OptimConfig, build_optimizers, update_average
from nanogpt.runs.state import State

CONFIG = ModernConfig(n_layer=1, n_head=2, n_embd=16, block_size=8, vocab_size=3, dropout=0.5)


def make_state(optimizer: str = "adamw") -> State:
    model = Modern(CONFIG)
    built = build_optimizers(model, OptimConfig(optimizer, lr=0.1))  # type: ignore[arg-type]
    return State(model, built, average=[p.detach() + 1 for p in model.parameters()])


def step(state: State) -> float:
    """Take a step on random tokens with dropout; return the loss before the step."""
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
def test_a_restored_state_continues_exactly(optimizer: str, steps: int) -> None:
    original = make_state(optimizer)
    for _ in range(steps):
        step(original)
    weights = {name: t.clone() for name, t in original.model.state_dict().items()}
    tensors = {name: t.clone() for name, t in original.tensors().items()}
    expected = [step(original) for _ in range(3)]

    restored = make_state(optimizer)
    restored.model.load_state_dict(weights)
    restored.step = steps
    torch.rand(5)
    restored.restore(tensors)
    assert [step(restored) for _ in range(3)] == expected
    assert original.tensors().keys() == restored.tensors().keys()
    for name, tensor in original.tensors().items():
        assert torch.equal(restored.tensors()[name], tensor), name


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("steps", [0, 3])
def test_expected_tensors_have_the_shapes_and_types_of_the_state(
    optimizer: str, steps: int
) -> None:
    state = make_state(optimizer)
    for _ in range(steps):
        step(state)
    state.losses = torch.full((steps,), 2.0)
    expected, tensors = state.expected_tensors(losses=steps), state.tensors()
    assert expected.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (tensor.shape, tensor.dtype) == (expected[name].shape, expected[name].dtype), name


def test_averaged_replaces_the_weights_and_restores_them() -> None:
    state = make_state()
    parameters = list(state.model.parameters())
    weights = [p.detach().clone() for p in parameters]
    with state.averaged():
        for p, w in zip(parameters, weights, strict=True):
            assert torch.equal(p, w + 1)
    for p, w in zip(parameters, weights, strict=True):
        assert torch.equal(p, w)


def test_generators_of_another_device_are_ignored() -> None:
    state = make_state()
    state.restore(state.tensors() | {"random.cuda": torch.zeros(16, dtype=torch.uint8)})


def test_an_impossible_generator_state_is_refused() -> None:
    state = make_state()
    bad = torch.full_like(torch.get_rng_state(), 255)
    with pytest.raises(RuntimeError):
        state.restore(state.tensors() | {"random.cpu": bad})
