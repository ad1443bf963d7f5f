"""CapturedDecoder generates the same tokens as the plain loop of generate()."""

import math
import sys

import pytest
import torch

from nanogpt.errors import Stopped, UserError
from nanogpt.fast import generation as fast
from nanogpt.fast.generation import STEPS_AHEAD, CapturedDecoder
from nanogpt.generate import Sampling, generate
from nanogpt.models import GPT, Model
from tests.test_generate import model as model  # a fixture with a model of each kind
from tests.test_generate import random_model

PROMPTS = [[1, 2, 3], [4], list(range(6)) * 3]
FILTERS = Sampling(repetition_penalty=1.1, temperature=0.9, top_k=6, top_p=0.95, min_p=0.01)
GREEDY = Sampling(temperature=0)


@pytest.mark.parametrize("sampling", [FILTERS, GREEDY, Sampling()])
@pytest.mark.parametrize("tokens", [1, STEPS_AHEAD, 100])
def test_steps_ahead_of_the_host_generate_the_same_tokens(
    model: Model, sampling: Sampling, tokens: int
) -> None:
    """On a CPU, CapturedDecoder uses no CUDA graph. The context window has only 12 tokens."""
    decoder = CapturedDecoder(model, PROMPTS, sampling, 1, logprobs=True)
    assert [*decoder.run(tokens)] == [*generate(model, PROMPTS, tokens, sampling, 1, logprobs=True)]
    assert decoder.steps_in_flight == 0


def test_logprobs_are_returned_only_on_request(model: Model) -> None:
    assert {step.logprobs for step in fast.generate(model, PROMPTS, 20)} == {None}


def test_without_triton_compile_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "nanogpt.fast.kernels", raising=False)
    with pytest.raises(UserError, match=r"^compile needs Triton, .* leave the option out$"):
        fast.generate(random_model("gpt"), [[1]], 1, compile=True)
    assert len([*fast.generate(random_model("gpt"), [[1]], 1)]) == 1


def test_kernels_that_cannot_be_compiled_stop_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = CapturedDecoder(random_model("gpt"), [[1]], Sampling(), 1, logprobs=False)

    class Broken:
        def run(self, work: object) -> None:
            raise RuntimeError("Failed to find\nC compiler")

    decoder.graph, decoder.is_compiled = Broken(), True  # type: ignore[assignment]
    message = r"^the kernels cannot be compiled \(Failed to find C compiler\): leave out --compile$"
    with pytest.raises(Stopped, match=message):
        [*decoder.run(3)]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_stop_generation(value: float) -> None:
    model = random_model("gpt")
    assert isinstance(model, GPT)
    with torch.no_grad():
        model.token_embedding.weight[3] = value
    with pytest.raises(Stopped, match="the model's logits are not finite"):
        [*fast.generate(model, [[1]], 1)]


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["gpt", "modern", "bigram"])
@pytest.mark.parametrize("sampling", [FILTERS, GREEDY])
def test_a_gpu_generates_the_same_tokens_as_a_cpu(kind: str, sampling: Sampling) -> None:
    """The GPU replays captured steps, even after the context is full."""
    starts = [[1, 2], [3, 4, 5], [6] * 12]
    expected = [*generate(random_model(kind), starts, 3 * STEPS_AHEAD + 5, sampling)]
    on_gpu = random_model(kind).cuda()
    assert [*fast.generate(on_gpu, starts, 3 * STEPS_AHEAD + 5, sampling)] == expected
    assert [*generate(on_gpu, starts, 3 * STEPS_AHEAD + 5, sampling)] == expected
