"""Formats of other projects: models leave for other programs, and come from them."""
