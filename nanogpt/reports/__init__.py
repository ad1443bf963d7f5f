"""Reports: the needs of a run, the computations of a model, the statistics of a text."""
