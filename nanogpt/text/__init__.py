"""Loads text and encodes it as tokens. No module here imports torch, because this is slow."""
