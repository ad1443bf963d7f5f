"""Fast training and generation with CUDA graphs, so that the GPU seldom waits for the host."""
