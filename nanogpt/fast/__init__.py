"""Fast training and generation on a GPU, with CUDA graphs that do not wait for the host."""
