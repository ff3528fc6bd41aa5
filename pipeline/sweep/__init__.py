"""Hyper-parameter sweeps: search space, objectives, study."""
