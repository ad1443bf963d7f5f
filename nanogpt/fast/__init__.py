"""Fast training and generation on a GPU, with CUDA graphs that run ahead of the host."""
