"""CALVIN's long-horizon protocol: which chains of subtasks, from which scenes.

Protocol, not simulator: it needs numpy alone. The published evaluation draws its chains
with seeded legacy random generators instead of storing them, so the same draws in the same
order give the same 1000 sequences everywhere (numpy freezes `RandomState` streams).
"""

from __future__ import annotations

import hashlib
import itertools
import json
from functools import lru_cache
from typing import Dict, Iterator, List, Mapping, Optional, Tuple, Union

import numpy as np

State = Dict[str, Union[int, str]]
Rule = Tuple[Mapping[str, object], Mapping[str, object]]
"""What must hold before a subtask, and what it changes; a tuple condition lists alternatives."""
Sequence = Tuple[State, Tuple[str, ...]]

SUBTASKS_PER_SEQUENCE = 5
COLOURS = ("red", "blue", "pink")
_IN_SLIDER = ("slider_right", "slider_left")
_OTHER_SIDE = {"right": "left", "left": "right"}
_OTHER_COLOURS = {c: tuple(o for o in COLOURS if o != c) for c in COLOURS}


def _block(colour: str) -> str:
    return f"{colour}_block"


def _switch(key: str, before: object, after: object) -> List[Rule]:
    return [({key: before, "grasped": 0}, {key: after})]


def _nudges() -> Iterator[Tuple[str, List[Rule]]]:
    for verb, colour, side in itertools.product(("rotate", "push"), COLOURS, ("right", "left")):
        yield f"{verb}_{_block(colour)}_{side}", _switch(_block(colour), "table", "table")


def _fixtures() -> Iterator[Tuple[str, List[Rule]]]:
    yield "move_slider_left", _switch("slider", "right", "left")
    yield "move_slider_right", _switch("slider", "left", "right")
    yield "open_drawer", _switch("drawer", "closed", "open")
    yield "close_drawer", _switch("drawer", "open", "closed")


def _lift(colour: str, place: str, **also: object) -> Rule:
    block = _block(colour)
    return {block: place, "grasped": 0, **also}, {block: "grasped", "grasped": 1}


def _lifts() -> Iterator[Tuple[str, List[Rule]]]:
    for colour in COLOURS:
        name = f"lift_{_block(colour)}"
        yield f"{name}_table", [_lift(colour, "table")]
        # The door covers the half of the cabinet it stands at, hence the opposite side.
        behind = [_lift(colour, f"slider_{s}", slider=_OTHER_SIDE[s]) for s in ("left", "right")]
        yield f"{name}_slider", behind
        yield f"{name}_drawer", [_lift(colour, "drawer", drawer="open")]


def _place(colour: str, onto: str, **also: object) -> Rule:
    block = _block(colour)
    return {block: "grasped", "grasped": 1, **also}, {block: onto, "grasped": 0}


def _stack(top: str, bottom: str) -> Rule:
    needs = {_block(top): "grasped", _block(bottom): "table", "grasped": 1}
    gives = {_block(top): "stacked_top", _block(bottom): "stacked_bottom", "grasped": 0}
    return needs, gives


def _unstack(top: str, bottom: str) -> Rule:
    needs = {_block(top): "stacked_top", _block(bottom): "stacked_bottom", "grasped": 0}
    return needs, {_block(top): "table", _block(bottom): "table"}


def _placements() -> Iterator[Tuple[str, List[Rule]]]:
    sides = itertools.product(COLOURS, ("right", "left"))
    yield "place_in_slider", [_place(c, f"slider_{side}", slider=side) for c, side in sides]
    yield "place_in_drawer", [_place(c, "drawer", drawer="open") for c in COLOURS]
    pairs = list(itertools.permutations(COLOURS, 2))
    yield "stack_block", [_stack(*pair) for pair in pairs]
    yield "unstack_block", [_unstack(*pair) for pair in pairs]


def _lights() -> Iterator[Tuple[str, List[Rule]]]:
    for light in ("lightbulb", "led"):
        yield f"turn_on_{light}", _switch(light, 0, 1)
        yield f"turn_off_{light}", _switch(light, 1, 0)


def _sweep_into_drawer(colour: str) -> Rule:
    block = _block(colour)
    away = {_block(other): _IN_SLIDER for other in _OTHER_COLOURS[colour]}
    needs = {block: "table", **away, "drawer": "open", "grasped": 0}
    return needs, {block: "drawer", "grasped": 0}


def _rules() -> Dict[str, List[Rule]]:
    parts = (_nudges(), _fixtures(), _lifts(), _placements(), _lights())
    rules = dict(itertools.chain(*parts))
    rules["push_into_drawer"] = [_sweep_into_drawer(colour) for colour in COLOURS]
    return rules


RULES: Mapping[str, List[Rule]] = _rules()
"""The 34 subtasks. Their order is part of the protocol: chains are drawn by position."""


_KINDS = {
    "move": "slider",
    "open": "drawer",
    "close": "drawer",
    "place": "place",
    "turn": "light",
}


def category(subtask: str) -> str:
    """The kind of a subtask; a chain never holds two of one kind.

    Lights are one kind whatever the lamp; lifts differ by where the block lies, not by colour.
    """
    words = subtask.split("_")
    if words[0] in ("rotate", "push") and "block" in words:
        return "nudge"
    if words[0] == "lift":
        return "lift_" + words[-1]
    return _KINDS.get(words[0], subtask)


def _holds(state: State, needs: Mapping[str, object]) -> bool:
    wanted = ((state[k], v if isinstance(v, tuple) else (v,)) for k, v in needs.items())
    return all(actual in options for actual, options in wanted)


def successor(state: State, subtask: str) -> Optional[State]:
    """The state after a subtask, or None unless exactly one of its rules applies."""
    effects = [gives for needs, gives in RULES[subtask] if _holds(state, needs)]
    return {**state, **effects[0]} if len(effects) == 1 else None  # type: ignore[dict-item]


def is_feasible(state: State, chain: Tuple[str, ...]) -> bool:
    """True when every subtask can follow the one before and no two share a category."""
    current: Optional[State] = state
    for subtask in chain:
        current = successor(current, subtask)  # type: ignore[arg-type]
        if current is None:
            return False
    return len({category(s) for s in chain}) == len(chain)


@lru_cache(maxsize=None)
def initial_states() -> Tuple[State, ...]:
    """Every starting arrangement: one or two blocks on the table, at most one per cabinet half."""
    options: Dict[str, Tuple[Union[int, str], ...]] = {
        "led": (0, 1),
        "lightbulb": (0, 1),
        "slider": ("right", "left"),
        "drawer": ("closed", "open"),
        **{_block(c): ("table", *_IN_SLIDER) for c in COLOURS},
        "grasped": (0,),
    }
    states = (dict(zip(options, values)) for values in itertools.product(*options.values()))
    return tuple(s for s in states if _is_start(s))


def _is_start(state: State) -> bool:
    places = [state[_block(c)] for c in COLOURS]
    return places.count("table") in (1, 2) and all(places.count(p) < 2 for p in _IN_SLIDER)


@lru_cache(maxsize=None)
def _chains(start: int, count: int, round_: int) -> Tuple[Tuple[str, ...], ...]:
    """The first `count` feasible chains drawn for initial state number `start`."""
    state, names = initial_states()[start], tuple(RULES)
    opening = {i for i, name in enumerate(names) if successor(state, name)}
    rng = np.random.RandomState(start + round_ * len(initial_states()))
    found: List[Tuple[str, ...]] = []
    while len(found) < count:
        # What RandomState.choice(names, 5, replace=False) draws, twenty times cheaper.
        drawn = rng.permutation(len(names))[:SUBTASKS_PER_SEQUENCE].tolist()
        if drawn[0] in opening and is_feasible(state, tuple(names[i] for i in drawn)):
            found.append(tuple(names[i] for i in drawn))
    return tuple(found)


@lru_cache(maxsize=None)
def _order(count: int, round_: int) -> Tuple[Tuple[int, int, int], ...]:
    """Per sequence: its initial state's number, its place among that state's, their number."""
    shares = [len(part) for part in np.array_split(range(count), len(initial_states()))]
    order = [(start, k, share) for start, share in enumerate(shares) for k in range(share)]
    np.random.RandomState(round_).shuffle(order)
    return tuple(order)


def sequence(index: int, count: int = 1000) -> Sequence:
    """Sequence number `index` of an evaluation of `count`, drawing for its own start only.

    Indices from `count` on continue with fresh draws from the same distribution, for scores
    that took no part in choosing a checkpoint. The draw depends on `count`: the first 100 of
    1000 are not the sequences of an evaluation of 100. Raises IndexError below 0.
    """
    if index < 0:
        raise IndexError(f"CALVIN sequence {index} does not exist: they are numbered from 0.")
    round_, within = divmod(index, count)
    start, place, share = _order(count, round_)[within]
    return dict(initial_states()[start]), _chains(start, share, round_)[place]


def sequences(count: int = 1000) -> Tuple[Sequence, ...]:
    """All `count` pairs (initial state, chain of 5 subtasks), in the evaluation's order."""
    return tuple(sequence(index, count) for index in range(count))


def sequences_sha256(count: int) -> str:
    """Hash of an evaluation's `count` sequences as canonical JSON: equal hashes, equal protocol."""
    rows = [[state, list(chain)] for state, chain in sequences(count)]
    text = json.dumps(rows, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


ROBOT_START = (
    (0.02586889, -0.2313129, 0.5712808),
    (3.09045411, -0.02908596, 1.50013585),
    (0.07999963,),
    (-1.21779124, 1.03987629, 2.11978254, -2.34205014, -0.87015899, 1.64119093, 0.55344928),
    (1.0,),
)
"""Where every sequence starts: tool position (m), Euler angles (rad), finger opening (m),
joint angles (rad), gripper command (open)."""
_CABINET = {
    "slider_left": (-2.40851662e-01, 9.24044687e-02, 4.60990009e-01),
    "slider_right": (7.03416330e-02, 9.24044687e-02, 4.60990009e-01),
}
_TABLE_SPOTS = (
    (5.00000896e-02, -1.20000177e-01, 4.59990009e-01),
    (2.29995412e-01, -1.19995140e-01, 4.59990010e-01),
)
_YAW_RANGE = (np.pi / 2 - np.pi / 8, np.pi / 2 + np.pi / 8)


def pose_seed(state: State) -> int:
    """32-bit FNV-style hash of a state's values, which seeds the blocks' poses.

    It starts from 0 (the published evaluator's library does) and reads UTF-16.
    """
    seed = 0
    for byte in str(state.values()).encode("utf-16-le"):
        seed = (seed * 0x01000193 & 0xFFFFFFFF) ^ byte
    return seed


def initial_pose(state: State) -> Tuple[np.ndarray, np.ndarray]:
    """The simulator's start for a state: robot float64 [15], scene float64 [24].

    The scene: slider, drawer (m), button, switch, lightbulb, led, then per block (red, blue,
    pink) position (m) and Euler angles (rad).
    """
    rng, spots, scene = np.random.RandomState(pose_seed(state)), list(_TABLE_SPOTS), np.zeros(24)
    rng.shuffle(spots)
    scene[0] = 0.28 if state["slider"] == "left" else 0.0
    scene[1] = 0.22 if state["drawer"] == "open" else 0.0
    scene[3] = 0.088 if state["lightbulb"] else 0.0
    scene[4:6] = state["lightbulb"], state["led"]
    for colour, block in zip(COLOURS, scene[6:].reshape(3, 6)):
        place = str(state[_block(colour)])
        block[:3] = _CABINET[place] if place in _CABINET else spots[_table_spot(state, colour)]
        block[5] = rng.uniform(*_YAW_RANGE)
    return np.concatenate(ROBOT_START), scene


def _table_spot(state: State, colour: str) -> int:
    """Pink always lies at the second spot; blue moves there when red has taken the first."""
    if colour == "blue":
        return int(state["red_block"] == "table")
    return int(colour == "pink")
