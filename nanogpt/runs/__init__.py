"""A run: its settings, its directory and its state."""
