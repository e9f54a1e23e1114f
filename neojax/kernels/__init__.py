"""Attention, loss and product kernels: one reference, faster ones beside it, chosen by a visible rule."""
