"""Fast training and generation on a GPU, with CUDA graphs: the GPU seldom waits for the host."""
