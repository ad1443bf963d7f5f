"""Reports on the resources of a run, the computations of a model and the statistics of a text."""
