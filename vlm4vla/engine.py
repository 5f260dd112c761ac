"""How a training is computed: DeepSpeed's engine, its optimiser and their options.

Nothing here changes which samples a training sees, so none of it is part of a `Run`. DeepSpeed
is imported by workers alone, where it is used: drivers only describe trainings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vlm4vla.vlm import VisionLanguageModel, hidden_width

if TYPE_CHECKING:
    import deepspeed

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
OPTIMISERS = ("adamw", "fused", "offload")
BUCKET = 500_000_000
"""Numbers in each of DeepSpeed's communication buckets, at most (its default)."""


@dataclass(frozen=True)
class Engine:
    """How a training is computed; never changes which samples it sees.

    zero: DeepSpeed ZeRO stage 0–3. precision: fp32, bf16 or fp16. micro_batch: samples per
    worker and forward pass at most; None computes the worker's whole share at once.
    checkpointing: recompute activations instead of keeping them. optimiser: "adamw", "fused"
    (one kernel for all parameters) or "offload" (state and step in the host's memory; ZeRO ≥ 1).
    checkpoint_every: steps between checkpoints to resume from, besides those that the recipe
    wants evaluated. stall_s: seconds without progress after which a worker ends itself.
    """

    zero: int = 0
    precision: str = "fp32"
    micro_batch: int | None = None
    threads: int = 1
    checkpointing: bool = False
    optimiser: str = "adamw"
    checkpoint_every: int | None = None
    stall_s: float | None = None

    def __post_init__(self) -> None:
        for name, value, known in (
            ("zero", self.zero, range(4)),
            ("precision", self.precision, DTYPES),
            ("optimiser", self.optimiser, OPTIMISERS),
        ):
            if value not in known:
                raise ValueError(
                    f"Engine.{name}: {value!r} is not one of {', '.join(map(str, known))}."
                )
        if self.optimiser == "offload" and not self.zero:
            raise ValueError("Engine.optimiser: 'offload' needs ZeRO stage 1, 2 or 3, not 0.")


class Loss(nn.Module):
    """The model as DeepSpeed wants it: forward gives the loss to differentiate."""

    def __init__(self, model: VisionLanguageModel) -> None:
        super().__init__()
        self.policy = model  # the name is in stored optimiser files

    def forward(
        self, inputs: dict[str, Tensor], *targets: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """targets: of a policy its actions and their mask; the loss, and detached scalars."""
        return self.policy.loss(inputs, *targets)


def accumulation(engine: Engine, batch: int, workers: int) -> tuple[int, int]:
    """Micro-batches per step, the same on every worker, and the largest one's samples.

    ValueError when some worker would have nothing to compute.
    """
    share = -(-batch // workers)
    parts = -(-share // min(engine.micro_batch or share, share))
    if batch < workers * parts:
        raise ValueError(
            f"a global batch of {batch} cannot be split among {workers} workers × {parts} "
            "micro-batches: use fewer workers or a larger micro_batch"
        )
    return parts, -(-share // parts)


def deepspeed_config(
    engine: Engine, batch: int, workers: int, clip_norm: float | None = None, numbers: int = BUCKET
) -> dict[str, Any]:
    """DeepSpeed's configuration. numbers: how many the model has, so that buckets fit it."""
    parts, micro = accumulation(engine, batch, workers)
    return {
        # Only the product matters to DeepSpeed; shares may differ by one sample (`Batches`).
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": parts,
        "zero_optimization": _zero(engine, min(BUCKET, numbers)),
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 0.0 if _plain(engine) else clip_norm or 0.0,
        "bf16": {"enabled": engine.precision == "bf16"},
        "fp16": {"enabled": engine.precision == "fp16"},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


def _plain(engine: Engine) -> bool:
    """Whether DeepSpeed runs torch's own optimiser on the model's own parameters."""
    return engine.zero == 0 and engine.precision == "fp32"


def _zero(engine: Engine, bucket: int) -> dict[str, Any]:
    gpu = torch.cuda.is_available()
    made: dict[str, Any] = {
        "stage": engine.zero,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket + bucket % 2,  # DeepSpeed wants an even one
        "overlap_comm": gpu,
    }
    if engine.optimiser == "offload":
        made["offload_optimizer"] = {"device": "cpu", "pin_memory": gpu}
    return made


def start(
    engine: Engine, model: VisionLanguageModel, lr: float, batch: int
) -> deepspeed.DeepSpeedEngine:
    """DeepSpeed's engine around the model, in the process group that is already there."""
    import deepspeed

    if engine.checkpointing:
        model.vlm.gradient_checkpointing_enable({"use_reentrant": False})
    parameters = model.optimised_parameters()
    numbers = sum(parameter.numel() for parameter in parameters)
    workers, clip = dist.get_world_size(), model.recipe.clip_norm
    config = deepspeed_config(engine, batch, workers, clip, numbers)
    if engine.zero == 3:
        _prepare_stage_3(model, config)
    kept = {n: b.clone() for n, b in model.named_buffers() if b.dtype == torch.float32}
    # DeepSpeed would compile and load a shared-memory module that only inference calls. Its lock
    # outlives a worker killed meanwhile, and every later one would wait on it for ever.
    deepspeed.ops.__compatible_ops__ = {}
    deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False)
    made, *_ = deepspeed.initialize(
        model=Loss(model),
        optimizer=_optimiser(engine, model, parameters, lr),
        model_parameters=parameters,
        config=config,
    )
    if workers == 1 and engine.zero == 0:
        made.enable_backward_allreduce = False  # it would copy all gradients twice for nobody
    for name, buffer in model.named_buffers():
        if name in kept:  # 16 bits would round the rotary frequencies
            buffer.data = kept[name].to(buffer.device)
    return made


def _prepare_stage_3(model: VisionLanguageModel, config: dict[str, Any]) -> None:
    """Fetch a mixture of experts whole: which of its experts run differs between workers."""
    from deepspeed.utils import set_z3_leaf_modules

    config["zero_optimization"]["stage3_param_persistence_threshold"] = 10 * hidden_width(model.vlm)
    blocks = {type(m) for m in model.modules() if type(m).__name__.endswith("SparseMoeBlock")}
    if blocks:
        set_z3_leaf_modules(model, list(blocks))


def _optimiser(
    engine: Engine, model: VisionLanguageModel, parameters: list[nn.Parameter], lr: float
) -> torch.optim.Optimizer:
    recipe = model.recipe
    if engine.optimiser == "offload":
        from deepspeed.ops.adam import DeepSpeedCPUAdam  # compiled on first use

        return DeepSpeedCPUAdam(
            parameters, lr=lr, betas=recipe.betas, weight_decay=recipe.weight_decay
        )
    fused = True if engine.optimiser == "fused" else None
    return torch.optim.AdamW(
        parameters, lr=lr, betas=recipe.betas, weight_decay=recipe.weight_decay, fused=fused
    )


def update(made: Any, engine: Engine, clip_norm: float | None) -> float | None:
    """End a micro-batch; at the last of a step apply the update and return the gradient norm."""
    last = made.is_gradient_accumulation_boundary()
    norm = None
    if last and _plain(engine):
        parameters = made.optimizer.param_groups[0]["params"]
        norm = float(nn.utils.clip_grad_norm_(parameters, clip_norm or float("inf")))
    made.step()
    if last and norm is None:
        found = made.get_global_grad_norm()
        norm = None if found is None else float(found)
    return norm
