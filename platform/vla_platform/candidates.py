"""What a user may call a policy: a run of the store, a folder, the hub, or a server.

RUN, RUN@1200, RUN@all             checkpoints of the store: the last, one, or every one
policies/RUN/step-00001200         the same, as the store names it
FOLDER                             policy.safetensors and policy.json, as exported
hf:ORGANISATION/NAME[@REVISION]    such a folder on the Hugging Face hub
ws://HOST:PORT                     a server that speaks openpi's protocol
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from envs.api import ActionSpec, Benchmark, did_you_mean
from envs.benchmarks import benchmark, evaluated
from envs.hashing import canonical_json
from vla_platform import artifacts
from vla_platform.adapters import adapter, declared_actions, require_alike, showing
from vla_platform.artifacts import DESCRIPTION, WEIGHTS, Checkpoint
from vla_platform.assignments import AnyPolicy
from vla_platform.remote import Remote, metadata_of
from vla_platform.store import Store

LAYOUTS = (("model.safetensors", "config.json"), (WEIGHTS, DESCRIPTION))
"""(weights, description) of a policy's folder: exported for others, or as trainings write it."""
_RUN = re.compile(r"(?:policies/)?(?P<run>[^/@]+)(?:/step-|@)?(?P<step>\d+|all)?/?")


@dataclass(frozen=True)
class Served:
    """How servers are asked, and under which id their answers are kept."""

    evaluation: str
    adapter: str
    actions: str


@dataclass(frozen=True)
class Candidate:
    """A policy on a benchmark it fits. chunk: actions it predicts at a time, None if unsaid.

    profile: of its training; `row` is the one on which policies of it are played.
    """

    name: str
    policy: AnyPolicy
    row: Benchmark
    chunk: int | None
    profile: str = "paper"

    def horizon(self, asked: int | None) -> int:
        """An allowed horizon; half the benchmark's chunk for None."""
        if self.chunk is None:
            return self.row.choose_horizon(asked) if asked is None else _positive(asked)
        return self.row.choose_horizon(asked, self.chunk)


def candidates(
    text: str, benchmarks: list[str] | None, store: Store, served: Served
) -> list[Candidate]:
    """The policies that `text` names, on the benchmarks or on those they were trained for.

    ValueError, KeyError or FileNotFoundError says in one sentence what there is not.
    """
    if text.startswith(("ws://", "wss://")):
        return [_remote(text, benchmark(name), served) for name in _named(benchmarks, text)]
    return [
        _fitting(name, checkpoint, description, benchmark(chosen))
        for name, checkpoint in _checkpoints(text, store)
        for description in [_description(store, checkpoint)]
        for chosen in benchmarks or [description["run"]["benchmark"]]
    ]


def _named(benchmarks: list[str] | None, text: str) -> list[str]:
    if not benchmarks:
        raise ValueError(f"{text} is a server: say with --benchmark what to play with it")
    return benchmarks


def _remote(url: str, row: Benchmark, served: Served) -> Candidate:
    by = adapter(served.adapter)
    metadata = metadata_of(url, by.dialect)
    actions = declared_actions(metadata, by, served.actions)
    require_alike(actions, row.action_spec, f"the policy at {url}", row.name)
    # Kept as it was read: a later connection must be told the same, to the letter.
    declared = canonical_json(metadata)
    policy = Remote(url, declared, served.evaluation, served.adapter, actions, row.action_spec)
    chunk = metadata.get("chunk")
    return Candidate(url, policy, showing(row, by), chunk if isinstance(chunk, int) else None)


def _fitting(name: str, checkpoint: Checkpoint, description: dict, row: Benchmark) -> Candidate:
    ActionSpec(**description["action_spec"]).require_same(row.action_spec, name, row.name)
    profile = description["run"].get("profile", "paper")
    played = evaluated(row, profile)
    return Candidate(name, checkpoint, played, int(description["chunk"]), profile)


def policy_files(text: str, store: Store) -> tuple[Path, Path]:
    """Local files (weights, description) of the one policy that `text` names; servers are none.

    Errors as those of `candidates`.
    """
    if outside := _folder(text):
        return _layout(outside[1])
    found = [checkpoint for _, checkpoint in _of_run(text, store)]
    if len(found) > 1:
        raise ValueError(f"{text} is {len(found)} policies: name one as {found[0].run}@STEP")
    return _layout(artifacts.fetch_policy(store, found[0]))


def _checkpoints(text: str, store: Store) -> Iterator[tuple[str, Checkpoint]]:
    """(name in the table, checkpoint) of everything but servers."""
    if outside := _folder(text):
        yield outside[0], import_folder(store, outside[1])
    else:
        yield from _of_run(text, store)


def _folder(text: str) -> tuple[str, Path] | None:
    """(name in the table, folder) of a policy from outside the store; None for a run's name."""
    path = Path(text).expanduser()
    if text.startswith("hf:"):
        return text, _from_hub(text.removeprefix("hf:"))
    if path.is_dir():
        return path.resolve().name, path
    if path.exists():
        raise FileNotFoundError(
            f"{text} is a file, a policy is a folder; for one that the paper's authors released "
            "evaluate.py also takes --backbone NAME and --benchmark NAME"
        )
    if text.startswith(("/", ".", "~")):
        raise FileNotFoundError(f"there is no folder {text}")
    return None


def _of_run(text: str, store: Store) -> Iterator[tuple[str, Checkpoint]]:
    match = _RUN.fullmatch(text)
    runs = [name.rstrip("/") for name in store.children("policies")]
    if not match or match["run"] not in runs:
        if not runs:
            raise ValueError(f"no policy {text!r}: there are none in {store.url}")
        raise did_you_mean(f"run in {store.url}:", match["run"] if match else text, tuple(runs))
    run, step = match["run"], match["step"]
    found = {checkpoint.step: checkpoint for checkpoint in artifacts.checkpoints(store, run)}
    if not found:
        raise ValueError(f"run {run} has no complete checkpoint in {store.url}: train it first")
    wanted = [max(found)] if step is None else list(found) if step == "all" else [int(step)]
    for each in wanted:
        if each not in found:
            raise ValueError(f"run {run} has no checkpoint at step {each}; it has {list(found)}")
        yield f"{run}@{each}", found[each]


def _description(store: Store, checkpoint: Checkpoint) -> dict:
    found = json.loads(store.get(checkpoint.key(DESCRIPTION)))
    lacking = {"run", "chunk", "action_spec"} - set(found)
    if lacking:
        raise ValueError(f"{checkpoint}: {DESCRIPTION} lacks {', '.join(sorted(lacking))}")
    return dict(found)


def import_folder(store: Store, folder: Path) -> Checkpoint:
    """A policy's folder in the store, where every node can read it; once for the same weights.

    ValueError when the same weights are there with another description: episodes are kept under
    the weights' digest, and would be mixed.
    """
    weights, description = _read_folder(folder)
    digest = artifacts.file_digest(weights)
    run = f"import-{digest[:16]}"
    known = artifacts.checkpoints(store, run)
    if not known:
        prefix = artifacts.checkpoint_prefix(run, 0)
        store.upload(weights, f"{prefix}/{WEIGHTS}")
        store.put(f"{prefix}/{DESCRIPTION}", json.dumps(description, indent=1).encode())
        return artifacts.complete_policy(store, run, 0, digest)
    if _description(store, known[0]) != description:
        raise ValueError(
            f"{folder}: {store.url} has the same weights as {run}, described otherwise; use "
            "another store, or the description it has"
        )
    return known[0]


def _read_folder(folder: Path) -> tuple[Path, dict]:
    """Its weights and what describes them."""
    weights, description = _layout(folder)
    about_layout = ("model_type", "architectures")
    told = json.loads(description.read_text())
    return weights, {k: v for k, v in told.items() if k not in about_layout}


def _layout(folder: Path) -> tuple[Path, Path]:
    """The files of weights and description in a policy's folder."""
    for layout in LAYOUTS:
        weights, description = (folder / name for name in layout)
        if weights.is_file() and description.is_file():
            return weights, description
    known = " nor ".join(" and ".join(names) for names in LAYOUTS)
    raise FileNotFoundError(f"{folder} is no policy's folder: it has neither {known}")


def _from_hub(name: str) -> Path:
    """A local copy of a repository's two files."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repository, _, revision = name.partition("@")
    files = [file for layout in LAYOUTS for file in layout]
    try:
        found = snapshot_download(
            repository, revision=revision or None, allow_patterns=files, etag_timeout=5
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise FileNotFoundError(f"hf:{name} cannot be had from the hub: {lines[0]}") from None
    return Path(found)


def _positive(horizon: int) -> int:
    if horizon < 1:
        raise ValueError(f"a horizon is at least 1, not {horizon}")
    return horizon
