"""One LIBERO task inside the child: compiled once, reset cheaply, rendered only when asked.

All short cuts give what plain code gives, bit for bit (tests/envs/test_libero.py):

* A hard reset compiles the scene again. What LIBERO edits in a compiled model is known
  (MODEL_STATE), so a copy taken right after compiling restores it.
* robosuite samples its cameras *inside* a control step, before the last physics substep, so a
  frame rendered after the step differs. At that moment we keep what the renderer reads
  (DATA_STATE), and render it later if somebody looks.
* robosuite runs MuJoCo's whole forward pass three times per physics substep, at the same
  positions and velocities. The second and third time only what forces change is computed.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
from typing import Any, Dict, Iterator, Optional, Sequence, Tuple

import numpy as np

from envs.libero_install import return_memory

MODEL_STATE = ("body_pos", "body_quat", "site_rgba")
DATA_STATE = (
    "xpos",
    "xquat",
    "xmat",
    "xipos",
    "ximat",
    "geom_xpos",
    "geom_xmat",
    "site_xpos",
    "site_xmat",
    "cam_xpos",
    "cam_xmat",
    "light_xpos",
    "light_xdir",
)
PROPRIOCEPTION = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")
SETTLE_STEPS = 10
SETTLE_ACTION = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0)


class Scene:
    """A task's environment. `hard` compiles at every reset, as the usual evaluators do."""

    def __init__(self, bddl: str, cameras: Sequence[str], size: int, hard: bool = False) -> None:
        self.cameras = tuple(cameras)
        self.hard = hard
        self._looks: Dict[str, Any] = {}
        self._delayed: Any = None
        self._control = _construct(bddl, self.cameras, size)
        self.env = self._control.env
        self._physics = contextlib.nullcontext() if hard else _LeanPhysics(self.env.sim)
        for robot in () if hard else self.env.robots:
            _settle_limits(robot)
        # Constructing and the evaluators' hard reset each register the samplers of drawers and
        # knobs, so theirs are drawn twice; the same random stream needs ours twice too.
        if not hard:
            self.env.object_property_initializers *= 2
        self._cameras_changed()

    def reset(self, initial_state: Optional[np.ndarray], seed: int, reseed: bool = True) -> None:
        """Begin an episode at a flattened simulator state [n] and let the objects settle.

        None keeps the scene that LIBERO samples from `seed`: for demonstrations, which must
        not start where policies are evaluated.
        """
        if reseed:
            self._control.seed(seed)
        self.env.hard_reset = self.hard
        if not self.hard:
            self._restore()
        self._control.reset()
        if self.hard:
            self._cameras_changed()
        if initial_state is not None:
            self._control.set_init_state(initial_state)
        for _ in range(SETTLE_STEPS):
            self.step(SETTLE_ACTION)

    def step(self, action: Sequence[float]) -> bool:
        """One control step of 1/20 s; whether the task's goal holds after it."""
        with self._physics:
            return bool(self._control.step(action)[2])

    def frames(self) -> Dict[str, np.ndarray]:
        """Each camera's uint8 [size, size, 3] as robosuite would have sampled it, turned by 180°.

        LIBERO's published datasets and evaluators turn its upside-down frames this way.
        """
        with self.moment():
            frames = {camera: look({}) for camera, look in self._looks.items()}
        return {camera: np.ascontiguousarray(f[::-1, ::-1]) for camera, f in frames.items()}

    def moment(self) -> Any:
        """While entered, the simulator shows the moment that `frames` show."""
        return self._delayed.restored()

    def proprioception(self) -> np.ndarray:
        """Float64 [9]: gripper position (m), its quaternion xyzw, and the two finger joints."""
        values = [self.env._observables[name].obs for name in PROPRIOCEPTION]
        return np.concatenate(values)

    def state(self) -> np.ndarray:
        """The whole flattened simulator state: time, positions, velocities."""
        return self._control.get_sim_state()

    def close(self) -> None:
        """Free the scene; a second scene in the process would draw garbage before this."""
        self._looks, self._delayed, self._physics = {}, None, contextlib.nullcontext()
        self._control.close()
        del self._control, self.env
        gc.collect()
        return_memory()

    def _restore(self) -> None:
        """Undo what earlier episodes left in the compiled model and in the gripper."""
        model = self.env.sim.model._model
        for name, value in self.env.pristine.items():
            getattr(model, name)[...] = value
        for robot in self.env.robots:
            robot.gripper.current_action = np.zeros(robot.gripper.dof)

    def _cameras_changed(self) -> None:
        """Put a delayed camera in place of robosuite's; drop the observables nobody reads."""
        observables = self.env._observables
        names = {camera: f"{camera}_image" for camera in self.cameras}
        self._looks = {camera: observables[name]._sensor for camera, name in names.items()}
        self._delayed = _DelayedCamera(self.env.sim)
        observables[names[self.cameras[0]]]._sensor = self._delayed
        read = {names[self.cameras[0]], *PROPRIOCEPTION}
        if self.hard:  # its next reset looks every observable up
            for name in set(observables) - read:
                observables[name].set_enabled(False)
        else:  # robosuite visits each of them 25 times a step, disabled or not
            self.env._observables = {n: o for n, o in observables.items() if n in read}


class _DelayedCamera:
    """A camera sensor that keeps what rendering would read instead of rendering."""

    __modality__ = "image"
    __name__ = "delayed_camera"

    def __init__(self, sim: Any) -> None:
        data, model = sim.data._data, sim.model._model
        live = [getattr(data, name) for name in DATA_STATE] + [model.site_rgba]
        self._pairs = [(array, array.copy()) for array in live]
        self._nothing = np.zeros((1, 1, 3), np.uint8)

    def __call__(self, cache: Any) -> np.ndarray:
        for live, kept in self._pairs:
            np.copyto(kept, live)
        return self._nothing

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """While entered, the simulator shows the kept moment."""
        now = [(live, live.copy()) for live, _ in self._pairs]
        for live, kept in self._pairs:
            np.copyto(live, kept)
        yield
        for live, value in now:
            np.copyto(live, value)


class _LeanPhysics:
    """While entered, the simulator's passes at an unchanged state leave out what it determines.

    That is all but forces and accelerations: MuJoCo's own stages, as in mj_step1 and mj_step2.
    Only within a control step, where nothing edits the model.
    """

    def __init__(self, sim: Any) -> None:
        self._mujoco = importlib.import_module("mujoco")
        self._model, self._data = sim.model._model, sim.data._data
        self._state = (self._data.qpos, self._data.qvel)
        self._seen: Optional[Tuple[bytes, bytes]] = None
        self._whole = sim.forward, sim.step
        self._after_velocity = int(self._mujoco.mjtStage.mjSTAGE_VEL)
        integrators = self._mujoco.mjtIntegrator
        if self._model.opt.integrator != integrators.mjINT_RK4:
            sim.forward, sim.step = self._forward, self._step
        self._inside = False

    def __enter__(self) -> None:
        self._inside, self._seen = True, None

    def __exit__(self, *_: object) -> None:
        self._inside, self._seen = False, None

    def _forward(self) -> None:
        if not self._unchanged():
            self._whole[0]()
        else:
            self._mujoco.mj_forwardSkip(self._model, self._data, self._after_velocity, 0)

    def _step(self, with_udd: bool = True) -> None:
        # As mj_step begins: a simulation that has blown up is set back here.
        self._mujoco.mj_checkPos(self._model, self._data)
        self._mujoco.mj_checkVel(self._model, self._data)
        if self._unchanged():
            self._mujoco.mj_step2(self._model, self._data)
        else:
            self._whole[1]()

    def _unchanged(self) -> bool:
        """Whether positions and velocities are those of the last call, in this control step."""
        seen, self._seen = self._seen, tuple(part.tobytes() for part in self._state)
        return self._inside and seen == self._seen


def _settle_limits(robot: Any) -> None:
    """Make constants of what robosuite derives from its model three times in every substep."""
    names = ("action_limits", "action_dim", "torque_limits")
    constants = {name: getattr(robot, name) for name in names}
    robot.__class__ = type(type(robot).__name__, (type(robot),), constants)


def _construct(bddl: str, cameras: Tuple[str, ...], size: int) -> Any:
    from libero.libero.envs.env_wrapper import ControlEnv

    _remember_compiled_models()
    return ControlEnv(
        bddl_file_name=bddl,
        has_renderer=False,
        has_offscreen_renderer=True,
        use_camera_obs=True,
        camera_names=list(cameras),
        camera_heights=size,
        camera_widths=size,
        ignore_done=True,
    )


def _remember_compiled_models() -> None:
    """Have robosuite keep MODEL_STATE right after it compiles, before LIBERO places fixtures."""
    from robosuite.environments.base import MujocoEnv

    compile_model = MujocoEnv._initialize_sim
    if hasattr(compile_model, "remembers"):
        return

    def remembering(self: Any, *args: Any, **kwargs: Any) -> None:
        compile_model(self, *args, **kwargs)
        model = self.sim.model._model
        self.pristine = {name: getattr(model, name).copy() for name in MODEL_STATE}

    remembering.remembers = True  # type: ignore[attr-defined]
    MujocoEnv._initialize_sim = remembering
