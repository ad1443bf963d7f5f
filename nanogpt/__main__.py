"""python -m nanogpt: the same as the command nanogpt."""

from .cli import main

main()
