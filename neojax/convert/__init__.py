"""Bringing models from and to other formats."""
