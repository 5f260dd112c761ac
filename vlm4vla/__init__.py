"""The science: backbones, policies, training loop, study and statistics. Never imports ray."""
