"""Experiments that answer a question: what each piece buys, and what size and data buy."""
