"""Experiments that train many models to answer a question: the ladder, the scaling law."""
