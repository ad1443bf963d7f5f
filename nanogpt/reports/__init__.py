"""Summaries: what a run needs, what a model does with a text, what a text is like."""
