"""What a model or a text is like."""
