"""A small model for tests that train; a training step takes a few milliseconds."""

from nanogpt.models import GPTConfig

SMALL = GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=16, dropout=0.1)
