"""The numerics of quantization: grids, ranges, placement, repair, rounding. Techniques stand on this floor."""
