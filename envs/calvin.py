"""CALVIN ABC→D: 1000 chains of five instructions (paper section 4, Table 1).

An episode is one chain: task "sequence", initial state = the chain's number. It ends at the
first instruction that is not fulfilled within 360 steps; the environment is reset only
between chains. `python -m envs.calvin --sequences N --sha256` prints the chains' hash.
"""

from __future__ import annotations

import argparse
import json
from typing import Any, Dict, List, Mapping, Optional, Tuple

import numpy as np

from envs import calvin_sequences
from envs.api import ActionSpec, Benchmark, Observation, Snapshot, StepResult, TrainingRecipe
from envs.calvin_sequences import SUBTASKS_PER_SEQUENCE
from envs.calvin_table import PlayTable
from envs.resize import resize

TASK = "sequence"
SUBTASK_STEPS = 360
IMAGE_SIZE = 224
"""The dataset's readers scale the same 200 px frames in the same way (paper A.2)."""

BENCHMARKS: Dict[str, Benchmark] = {
    "calvin": Benchmark(
        name="calvin",
        simulator="calvin",
        tasks=(TASK,),
        trials=1000,
        chunk=10,
        horizons=(10, 5, 1),
        step_limits={"*": SUBTASK_STEPS * SUBTASKS_PER_SEQUENCE},
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
        chain=5,
    )
}


class Calvin:
    """The protocol over a play table; an episode is a chain of instructions.

    `simulator_args` of the row: scene, renderer (see `PlayTable`), image_size, views (the names
    "gripper", "static") and state (true for the robot's 15 numbers). A chunk stops where an
    instruction is fulfilled: the policy looks again and reads the next one.
    """

    def __init__(self, benchmark: Benchmark, table: Any = None) -> None:
        args = dict(benchmark.simulator_args)
        self.image_size = int(args.pop("image_size", IMAGE_SIZE))
        self.views: Tuple[str, ...] = tuple(args.pop("views", ()))
        self.with_state = bool(args.pop("state", False))
        self.table = PlayTable(**args) if table is None else table
        self.episodes_per_process: Optional[int] = self.table.episodes_per_process
        self.chain: Tuple[str, ...] = ()
        self.completed = 0
        self.record = False

    def reset(self, task: str, initial_state: int, seed: int, record: bool) -> Observation:
        """Begin chain number `initial_state`; nothing in it is random, so `seed` is not used."""
        state, self.chain = calvin_sequences.sequence(initial_state)
        self.completed, self.record = 0, record
        self.table.reset(*calvin_sequences.initial_pose(state))
        self._begin(self.table.info())
        return self._observe()

    def execute(self, actions: np.ndarray) -> StepResult:
        """Run float32 [k, 7]: xyz in 0.02 m, Euler in 0.05 rad, gripper closes below zero."""
        steps, frames, solved = 0, [], False
        for action in actions:
            solved = self._step(action)
            steps += 1
            if self.record:
                frames.append(self._look("static"))
            if solved or self.subtask_steps == SUBTASK_STEPS:
                break
        success = self.completed == len(self.chain)
        return StepResult(
            observation=self._observe(frames[-1] if frames else None),
            done=success or (not solved and self.subtask_steps == SUBTASK_STEPS),
            success=success,
            success_any=success,
            success_last=success,
            steps=steps,
            frames=tuple(frames),
            completed=self.completed,
        )

    def snapshot(self) -> Snapshot:
        """The static camera's frame with its depth, segments, poses and sizes."""
        found: Snapshot = self.table.snapshot(self._look("static"))
        return found

    def fingerprint(self) -> Dict[str, str]:
        return dict(self.table.fingerprint())

    def close(self) -> None:
        self.table.close()

    def _step(self, action: np.ndarray) -> bool:
        """One control step; True when it fulfils the current instruction, and the next begins."""
        command = np.append(action[:6], 1.0 if action[6] > 0 else -1.0).astype(np.float32)
        info = self.table.step(command)
        self.subtask_steps += 1
        if not self.table.solved(self.chain[self.completed], self.subtask_start, info):
            return False
        self.completed += 1
        self._begin(info)
        return True

    def _begin(self, info: Mapping[str, Any]) -> None:
        """The oracle judges each instruction against the moment at which it was given."""
        self.subtask_start, self.subtask_steps = info, 0

    def _observe(self, image: Optional[np.ndarray] = None) -> Observation:
        current = self.chain[min(self.completed, len(self.chain) - 1)]
        return Observation(
            image=self._look("static") if image is None else image,
            instruction=self.table.instruction(current),
            views={name: self._look(name) for name in self.views},
            state=self.table.state()[:15].astype(np.float32) if self.with_state else None,
        )

    def _look(self, camera: str) -> np.ndarray:
        return resize(self.table.look(camera), self.image_size)


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
