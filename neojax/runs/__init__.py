"""What a run directory holds: its configuration, its checkpoints, its tokenizer."""
