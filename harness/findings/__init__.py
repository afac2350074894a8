"""Faults of TPU-MLIR, each with the smallest graph that shows it."""
