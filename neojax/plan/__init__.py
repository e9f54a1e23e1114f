"""What a configuration means, before it costs anything."""
