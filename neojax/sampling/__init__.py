"""Text from a model: prefill, decoding with a cache, and how the next token is drawn."""
