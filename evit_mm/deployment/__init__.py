"""A trained model made fast: folded, compiled, in another precision."""
