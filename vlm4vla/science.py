"""What the platform calls of this package; jobs hand it over, as the platform imports none."""

from vlm4vla.analysis import across_trainings, wilson
from vlm4vla.aux.omni_job import make_stage_job
from vlm4vla.aux.prepare import prepare_questions
from vlm4vla.aux.scoring import score_stage
from vlm4vla.data.dataset import build_manifest, encode_shard
from vlm4vla.engine import Engine
from vlm4vla.export import load_policy
from vlm4vla.fits import require as require_fit
from vlm4vla.policy_job import make_job
from vlm4vla.selection import confirmation_states, select
from vlm4vla.sequential import hopeless, order
from vlm4vla.stages import stage_of
from vlm4vla.train import train
from vlm4vla.weights import require_start

__all__ = [
    "Engine",
    "across_trainings",
    "build_manifest",
    "confirmation_states",
    "encode_shard",
    "hopeless",
    "load_policy",
    "make_job",
    "make_stage_job",
    "order",
    "prepare_questions",
    "require_fit",
    "require_start",
    "score_stage",
    "select",
    "stage_of",
    "train",
    "wilson",
]
