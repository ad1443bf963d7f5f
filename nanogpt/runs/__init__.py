"""A run: its settings, its directory, its state."""
