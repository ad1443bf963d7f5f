"""The heart's own functions made fast on a GPU: captured as CUDA graphs, ahead of the host."""
