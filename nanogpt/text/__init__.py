"""Loads text and encodes it. No module here imports torch, because torch is slow to import."""
