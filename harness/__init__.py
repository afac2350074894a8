"""Ties the leaves together: cases, targets, metrics, records, the pytest plugin and the command line."""
