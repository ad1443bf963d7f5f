"""Runs the command line with `python -m nanogpt`."""

from .cli.main import main

main()
