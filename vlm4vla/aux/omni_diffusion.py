"""The diffusion decoder of omni-generation: maps are denoised beside what the tokens say.

Needs `pip install "vlm4vla-platform[diffusion]"`. Shape suffixes as in `vlm4vla.aux.omni`.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from vlm4vla.aux.omni import Decoder, Metrics, errors, scaled
from vlm4vla.aux.omni_data import Maps

NOISE_LEVELS = 1000
SAMPLING_STEPS = 20


class Diffusion(Decoder):
    """Trained to tell the clean maps from noisy ones; draws them in `SAMPLING_STEPS` steps.

    A class is a channel at 1, the others at -1. ModuleNotFoundError without diffusers.
    """

    def __init__(self, hidden: int, tokens: int, classes: int, size: int, width: int) -> None:
        super().__init__(hidden, tokens, classes, size, width)
        try:
            import diffusers
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "the diffusion decoder needs diffusers: pip install "
                '"vlm4vla-platform[diffusion]", or take the regression decoder'
            ) from error
        self.unet: Any = diffusers.UNet2DModel(
            sample_size=size,
            in_channels=self.channels + width,
            out_channels=self.channels,
            down_block_types=("DownBlock2D", "DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D", "UpBlock2D"),
            block_out_channels=(width // 2, width, width),
            layers_per_block=1,
            norm_num_groups=8,
        )
        self.noising: Any = diffusers.DDIMScheduler(
            num_train_timesteps=NOISE_LEVELS,
            beta_schedule="squaredcos_cap_v2",
            prediction_type="sample",
        )

    def loss(
        self, tokens: Float[Tensor, "B N D"], maps: Maps, keys: Int[Tensor, " B"]
    ) -> tuple[Tensor, Metrics]:
        """Squared error of the clean maps, each part of them counted alike."""
        clean = self.stacked(maps)
        levels, noise = self._drawn(keys, clean)
        noisy = self.noising.add_noise(clean, noise, levels)
        found = self._clean(noisy, levels, self.features(tokens))
        pairs = zip(self.split(found), self.split(clean), strict=True)
        loss = torch.stack([functional.mse_loss(a, b) for a, b in pairs]).sum()
        return loss, errors(self.maps(found.detach()), maps)

    @torch.no_grad()
    def predict(self, tokens: Float[Tensor, "B N D"], keys: Int[Tensor, " B"]) -> Maps:
        seen = self.features(tokens)
        shape = len(seen), self.channels, self.size, self.size
        like = torch.zeros(shape, device=seen.device)
        maps = self._drawn(keys, like)[1]
        self.noising.set_timesteps(SAMPLING_STEPS)
        for level in self.noising.timesteps:
            found = self._clean(maps, level.to(maps.device), seen)
            maps = self.noising.step(found, level, maps).prev_sample
        return self.maps(maps)

    def _clean(
        self, noisy: Float[Tensor, "B c S S"], levels: Tensor, seen: Float[Tensor, "B w S S"]
    ) -> Float[Tensor, "B c S S"]:
        """What the network takes for the maps without their noise, in fp32."""
        together = torch.cat([noisy.to(seen.dtype), seen], dim=1)
        found: Tensor = self.unet(together, levels).sample
        return found.float()

    def stacked(self, maps: Maps) -> Float[Tensor, "B c S S"]:
        """Maps as the channels that noise is added to, all in -1 .. 1."""
        classes = functional.one_hot(maps.classes, self.classes).permute(0, 3, 1, 2) * 2.0 - 1
        return torch.cat([scaled(maps.depth)[:, None], classes, maps.colours], dim=1)

    @staticmethod
    def _drawn(keys: Int[Tensor, " B"], like: Tensor) -> tuple[Tensor, Tensor]:
        """A noise level and noise for each sample, from its key alone whoever shares its batch."""
        levels, noise = [], []
        for key in keys.tolist():
            generator = torch.Generator().manual_seed(key)
            levels.append(torch.randint(NOISE_LEVELS, (), generator=generator))
            noise.append(torch.randn(like.shape[1:], generator=generator))
        return torch.stack(levels).to(like.device), torch.stack(noise).to(like)
