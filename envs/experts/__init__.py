"""Scripted demonstrators: they see the simulator's state, policies see only images."""
