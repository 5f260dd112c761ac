"""CALVIN ABC→D: 1000 chains of five instructions (paper section 4, Table 1).

`python -m envs.calvin --sequences N --sha256` prints the hash of an evaluation's chains.
"""

from __future__ import annotations

import argparse
import json
from typing import Dict, List, Optional

from envs import calvin_sequences
from envs.api import ActionSpec, Benchmark, TrainingRecipe

TASK = "sequence"
SUBTASK_STEPS = 360

BENCHMARKS: Dict[str, Benchmark] = {
    "calvin": Benchmark(
        name="calvin",
        simulator="calvin",
        tasks=(TASK,),
        trials=1000,
        chunk=10,
        horizons=(10, 5, 1),
        step_limits={"*": SUBTASK_STEPS * calvin_sequences.SUBTASKS_PER_SEQUENCE},
        action_spec=ActionSpec(
            translation_scale=0.02, rotation="euler", rotation_scale=0.05, gripper_close=-1
        ),
        recipe=TrainingRecipe(
            steps=30_000,
            batch=128,
            lr=2e-5,
            checkpoints=(10_000, 15_000, 20_000, 25_000, 30_000),
            normalisation="clip65",
            augmentation="shift",
        ),
        dataset="calvin_abc_d",
    )
}


def main(arguments: Optional[List[str]] = None) -> None:
    parser = argparse.ArgumentParser(description="The chains of a CALVIN evaluation.")
    parser.add_argument("--sequences", type=int, default=1000, metavar="N")
    parser.add_argument("--sha256", action="store_true", help="print their hash, not the chains")
    options = parser.parse_args(arguments)
    if options.sequences < 1:
        parser.error("--sequences must be at least 1")
    if options.sha256:
        print(calvin_sequences.sequences_sha256(options.sequences))
        return
    for state, chain in calvin_sequences.sequences(options.sequences):
        print(json.dumps([state, chain]))


if __name__ == "__main__":
    main()
