"""Attention and loss kernels: one reference, faster ones beside it, chosen by a visible rule."""
