"""Text to tokens, the token store on disk, and the deterministic stream of batches from it."""
