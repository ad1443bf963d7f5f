"""The measured speeds of this machine: matrix products and memory."""

import torch

from nanogpt.reports.rates import measure_rates


def test_measured_rates_are_plausible() -> None:
    rates = measure_rates(torch.device("cpu"), torch.float32, 256, 128)
    assert 1e8 < rates.products < 1e15
    assert 1e7 < rates.memory < 1e14
