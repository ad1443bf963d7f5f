"""Training and generation made fast on a GPU: CUDA graphs that run ahead of the host."""
