"""Load text from its source and encode it as tokens. No module here imports torch."""
