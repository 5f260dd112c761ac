"""The Ray layer: training, sweeps, rollouts, store. Knows a policy only by its interface."""
