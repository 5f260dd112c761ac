"""One thread per test: tiny models gain nothing from more, and neighbours lose."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
