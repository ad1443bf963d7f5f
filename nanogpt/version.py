"""The version of nanogpt."""

VERSION = "0.1.0"
