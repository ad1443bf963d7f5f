"""Runs the command line when Python starts with `python -m nanogpt`."""

from .cli.main import main

main()
