"""The deeds: everything with weights. Runs in worker processes only; floors are in ARCHITECTURE.md."""
