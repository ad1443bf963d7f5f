"""python -m nanogpt: the same as the command nanogpt."""

from .cli.main import main

main()
