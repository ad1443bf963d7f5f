"""Loads text and encodes it. No module here imports torch, because importing it is slow."""
