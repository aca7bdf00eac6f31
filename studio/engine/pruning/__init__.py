"""The numerics of removing weights: what goes, how much, and how what stays makes up for it."""
