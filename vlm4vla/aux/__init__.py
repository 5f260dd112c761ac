"""Auxiliary stages: what a backbone learns before it becomes a policy."""
