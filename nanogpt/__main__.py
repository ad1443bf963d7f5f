"""Runs the command line for `python -m nanogpt`."""

from .cli.main import main

main()
