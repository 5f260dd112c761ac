"""What policy servers call the things they see, and what their actions mean here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from envs.api import ActionSpec, Benchmark, Observation, did_you_mean
from envs.benchmarks import benchmark
from vla_platform import vla_eval


def axis_angle_state(state: np.ndarray) -> np.ndarray:
    """Our proprioception [9] (position, quaternion xyzw, fingers) as openpi's LIBERO one [8]."""
    vector, w = state[3:6], float(np.clip(state[6], -1.0, 1.0))
    sine = np.sqrt(1.0 - w * w)
    turn = vector * (2 * np.arccos(w) / sine) if sine > 1e-8 else np.zeros(3)
    return np.concatenate([state[:3], turn, state[7:]])


@dataclass(frozen=True)
class Adapter:
    """One way of asking. about: whom, for `--help`. image, prompt: keys of the main camera's
    frame and the instruction.

    views: extra camera -> its key. state: key of the proprioception, "" for none; state_form
    makes it what the policy was trained with. simulator_args: what the benchmark's simulator
    must show beyond its row. actions_of: the benchmark whose actions the policies speak, ""
    when the server must declare them. dialect: the protocol, a row of `remote.DIALECTS`.
    """

    about: str
    image: str
    prompt: str = "prompt"
    views: Mapping[str, str] = field(default_factory=dict)
    state: str = ""
    state_form: Callable[[np.ndarray], np.ndarray] = np.asarray
    simulator_args: Mapping[str, Any] = field(default_factory=dict)
    actions_of: str = ""
    dialect: str = "openpi"


ADAPTERS: dict[str, Adapter] = {
    "observation": Adapter("openpi's servers, one view", image="observation/image"),
    "image": Adapter("the same under the key `image`", image="image"),
    "libero": Adapter(
        "openpi's LIBERO policies, with wrist view and state",
        image="observation/image",
        views={"robot0_eye_in_hand": "observation/wrist_image"},
        state="observation/state",
        state_form=axis_angle_state,
        simulator_args={"views": ["robot0_eye_in_hand"], "state": True},
        actions_of="libero_10",
    ),
    "vla-eval": Adapter(
        "that harness's model servers",
        image=vla_eval.CAMERA,
        prompt=vla_eval.TASK,
        dialect="vla-eval",
    ),
    "vla-eval-libero": Adapter(
        "those, with wrist view and state",
        image=vla_eval.CAMERA,
        prompt=vla_eval.TASK,
        views={"robot0_eye_in_hand": vla_eval.WRIST},
        state=vla_eval.STATE,
        state_form=axis_angle_state,
        simulator_args={"views": ["robot0_eye_in_hand"], "state": True},
        actions_of="libero_10",
        dialect="vla-eval",
    ),
}
"""`libero` is what openpi's own LIBERO policies are asked with; `vla-eval` asks model servers of
that harness, each of whose answers is the first action unless it serves whole chunks."""


def adapter(name: str) -> Adapter:
    if name not in ADAPTERS:
        raise did_you_mean("adapter", name, ADAPTERS)
    return ADAPTERS[name]


def showing(row: Benchmark, wanted: Adapter) -> Benchmark:
    """The benchmark with what the adapter needs to see."""
    return replace(row, simulator_args={**row.simulator_args, **wanted.simulator_args})


def observation_dict(observation: Observation, by: Adapter) -> dict[str, Any]:
    """What is sent; KeyError for a view and ValueError for a state that is not shown."""
    sent: dict[str, Any] = {by.image: observation.image, by.prompt: observation.instruction}
    sent |= {key: observation.views[view] for view, key in by.views.items()}
    if by.state:
        if observation.state is None:
            raise ValueError("the simulator shows no proprioception, the policy asks for it")
        sent[by.state] = by.state_form(observation.state)
    return sent


def declared_actions(metadata: Mapping[str, Any], by: Adapter, actions_of: str) -> ActionSpec:
    """What a server's actions mean: what it declares, or whose benchmark's they are said to be."""
    if "action_spec" in metadata:
        try:
            return ActionSpec(**metadata["action_spec"])
        except (TypeError, ValueError) as error:
            raise ValueError(f"the server's action_spec is not an ActionSpec: {error}") from None
    if actions_of or by.actions_of:
        said = benchmark(actions_of or by.actions_of).action_spec
        return vla_eval.meant(metadata.get("action_dims", {}), said)
    raise ValueError(
        "the server declares no action_spec: say with --actions BENCHMARK in whose units it "
        "answers, or choose an --adapter that says so"
    )


def converted(actions: np.ndarray, theirs: ActionSpec, ours: ActionSpec) -> np.ndarray:
    """actions float32 [k, 7] of one spec in the units of another that `require_alike` accepts."""
    if theirs == ours:
        return actions
    scale = np.ones(7, np.float32)
    scale[:3] = theirs.translation_scale / ours.translation_scale
    scale[3:6] = theirs.rotation_scale / ours.rotation_scale
    scale[6] = theirs.gripper_close * ours.gripper_close
    return actions * scale


def require_alike(theirs: ActionSpec, ours: ActionSpec, who: str, what: str) -> None:
    """ValueError unless the two differ in units and the gripper's sign alone."""
    units = {
        name: getattr(ours, name)
        for name in ("translation_scale", "rotation_scale", "gripper_close")
    }
    replace(theirs, **units).require_same(ours, who, what)
