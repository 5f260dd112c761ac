"""The Ray layer: training, sweeps, rollouts, store, metrics. Knows a policy only by its interface."""
