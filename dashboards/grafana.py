"""Four Grafana boards as data: sweep, training, rollouts, store. Built with Grafana's own SDK.

    python -m dashboards.grafana [FOLDER]     writes dashboards/boards/*.json again

Provision the folder beside Ray's own (`dashboards/boards/provisioning.yml`). Every board asks
the data source that its variable names, which is Ray's Prometheus unless chosen otherwise.
Metrics are those of `vla_platform`, which Ray exports with `ray_` before their names.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("boards")
WIDTH, HEIGHT = 8, 8
"""Of a panel, in Grafana's 24 columns."""
SECONDS, RATIO, BYTES, COUNT, PER_SECOND = "s", "percentunit", "bytes", "short", "cps"


@dataclass(frozen=True)
class Panel:
    """queries: PromQL by legend. unit: Grafana's word for it. top: of a scale that has one."""

    title: str
    unit: str
    queries: Mapping[str, str]
    text: str = ""
    top: float | None = None


@dataclass(frozen=True)
class Board:
    """variables: label -> the metric whose values it may take."""

    title: str
    panels: tuple[Panel, ...]
    variables: Mapping[str, str] = field(default_factory=dict)


_RATE = "[$__rate_interval]"
_EPISODES = 'ray_vla_episodes_total{benchmark=~"$benchmark"}'
_SECONDS = 'ray_vla_episode_seconds_bucket{benchmark=~"$benchmark"}'
_CALLS = "ray_vla_inference_seconds"


def _train(metric: str) -> dict[str, str]:
    return {"{{run}}": f'max by (run) (ray_vla_train_{metric}{{run=~"$run"}})'}


_MFU, _STEP = (_train(metric)["{{run}}"] for metric in ("mfu_ratio", "step"))


def _quantile(q: float, buckets: str, by: str) -> str:
    return f"histogram_quantile({q}, sum by (le, {by}) (rate({buckets}{_RATE})))"


_FINISHED = 'ray_vla_episodes_total{benchmark=~"$benchmark",outcome=~"success|failure"}'
_WON = 'ray_vla_episodes_total{benchmark=~"$benchmark",outcome="success"}'
_USED = 'ray_resources{{Name="{name}",State=~"USED.*"}}'

SWEEP = Board(
    "VLM4VLA sweep",
    (
        Panel("Episodes left", COUNT, {"{{state}}": "sum by (state) (ray_vla_queue_episodes)"}),
        Panel(
            "Episodes per second",
            PER_SECOND,
            {"{{benchmark}}": f"sum by (benchmark) (rate({_FINISHED}{_RATE}))"},
        ),
        Panel(
            "Success",
            RATIO,
            {
                "{{benchmark}}": f"sum by (benchmark) (increase({_WON}[15m]))"
                f" / sum by (benchmark) (increase({_FINISHED}[15m]))"
            },
            "Of the episodes of the last 15 minutes, all policies together: a sign of life, not"
            " a result. Results are in the report.",
            top=1,
        ),
        Panel("Trainings at work", COUNT, {"runs": "count(max by (run) (ray_vla_train_step))"}),
        Panel("Steps trained", COUNT, {"{{run}}": "max by (run) (ray_vla_train_step)"}),
        Panel(
            "CPUs and GPUs in use",
            COUNT,
            {
                "CPU": f"sum({_USED.format(name='CPU')})",
                "GPU": f"sum({_USED.format(name='GPU')}) or vector(0)",
            },
        ),
        Panel(
            "GPU-hours of the last 24 hours",
            COUNT,
            {"used": "vla:gpu_hours:24h", "budget": "vla:gpu_hours_budget:24h"},
        ),
        Panel(
            "Episodes lost to errors",
            RATIO,
            {"{{benchmark}}": "vla:episode_errors:ratio15m or vector(0)"},
            top=1,
        ),
    ),
    {"benchmark": "ray_vla_episodes_total"},
)
TRAINING = Board(
    "VLM4VLA training",
    (
        Panel("Loss", COUNT, _train("loss")),
        Panel("Gripper accuracy", RATIO, _train("gripper_accuracy_ratio"), top=1),
        Panel("Action error", COUNT, _train("action_error"), "Normalised units."),
        Panel("Samples per second", PER_SECOND, _train("samples_per_second")),
        Panel("Tokens per second", PER_SECOND, _train("tokens_per_second")),
        Panel(
            "Model FLOPs utilisation",
            RATIO,
            {"{{run}}": f"{_MFU} or 0 * {_STEP}"},
            "Of GPUs; 0 where a training has none.",
        ),
        Panel("Step", SECONDS, _train("step_seconds")),
        Panel(
            "Waiting for data",
            RATIO,
            {"{{run}}": 'vla:data_wait:ratio{run=~"$run"}'},
            "Share of the step; an alert fires above a fifth.",
            top=1,
        ),
        Panel("Gradient norm", COUNT, _train("grad_norm")),
        Panel("Learning rate", COUNT, _train("learning_rate")),
        Panel("Checkpoint", SECONDS, _train("checkpoint_seconds")),
        Panel("Steps", COUNT, _train("step")),
    ),
    {"run": "ray_vla_train_step"},
)
ROLLOUTS = Board(
    "VLM4VLA rollouts",
    (
        Panel(
            "Episodes by outcome",
            PER_SECOND,
            {"{{outcome}}": f"sum by (outcome) (rate({_EPISODES}{_RATE}))"},
        ),
        Panel(
            "Duration of an episode",
            SECONDS,
            {
                "median {{benchmark}}": _quantile(0.5, _SECONDS, "benchmark"),
                "95% {{benchmark}}": _quantile(0.95, _SECONDS, "benchmark"),
            },
        ),
        Panel(
            "Control steps per second",
            PER_SECOND,
            {
                "{{benchmark}}": "sum by (benchmark) (rate(ray_vla_env_steps_total"
                f'{{benchmark=~"$benchmark"}}{_RATE}))'
            },
        ),
        Panel("Hosts", COUNT, {"{{state}}": "sum by (state) (ray_vla_rollout_hosts)"}),
        Panel(
            "Attempts repeated",
            PER_SECOND,
            {
                "{{benchmark}}": "sum by (benchmark) (rate(ray_vla_episode_retries_total"
                f"{_RATE})) or vector(0)"
            },
        ),
        Panel(
            "Processes replaced",
            PER_SECOND,
            {
                "{{cause}}": f"sum by (cause) (rate(ray_vla_worker_restarts_total{_RATE}))"
                " or vector(0)"
            },
        ),
        Panel(
            "Observations per inference call",
            COUNT,
            {
                "mean": f"sum(rate(ray_vla_inference_batch_observations_sum{_RATE}))"
                f" / sum(rate(ray_vla_inference_batch_observations_count{_RATE}))"
            },
        ),
        Panel(
            "Inference call",
            SECONDS,
            {
                "median {{kind}}": _quantile(0.5, f"{_CALLS}_bucket", "kind"),
                "95% {{kind}}": _quantile(0.95, f"{_CALLS}_bucket", "kind"),
            },
        ),
        Panel(
            "Inference calls per second",
            PER_SECOND,
            {"{{kind}}": f"sum by (kind) (rate({_CALLS}_count{_RATE}))"},
        ),
    ),
    {"benchmark": "ray_vla_episodes_total"},
)
STORE = Board(
    "VLM4VLA store",
    (
        Panel(
            "Written per second",
            "Bps",
            {"{{kind}}": f"sum by (kind) (rate(ray_vla_stored_bytes_total{_RATE}))"},
        ),
        Panel("Written", BYTES, {"{{kind}}": "sum by (kind) (ray_vla_stored_bytes_total)"}),
        Panel(
            "Requests repeated",
            PER_SECOND,
            {"{{verb}}": "sum by (verb) (vla:store_retries:rate5m) or vector(0)"},
            "Transient failures that were ridden out; an alert fires when they last.",
        ),
        Panel(
            "Episodes committed",
            PER_SECOND,
            {"rows": f'sum(rate(ray_vla_episodes_total{{outcome!="error"}}{_RATE}))'},
        ),
        Panel(
            "Free on the nodes' disks",
            BYTES,
            {"{{ip}}": "min by (ip) (ray_node_disk_free)"},
            "Caches of policies and datasets lie there.",
        ),
        Panel(
            "Checkpoint copies",
            SECONDS,
            {"{{run}}": "max by (run) (ray_vla_train_checkpoint_seconds)"},
            "For how long the last training step stood still.",
        ),
    ),
)
BOARDS: Mapping[str, Board] = {
    "sweep": SWEEP,
    "training": TRAINING,
    "rollouts": ROLLOUTS,
    "store": STORE,
}


def build(name: str) -> str:
    """The board's JSON, as Grafana provisions it."""
    from grafana_foundation_sdk.builders import dashboard
    from grafana_foundation_sdk.cog.encoder import JSONEncoder

    board = BOARDS[name]
    made = dashboard.Dashboard(board.title).uid(f"vla-{name}").tags(["vla"])
    made = made.refresh("30s").time("now-1h", "now").timezone("browser").readonly()
    made = made.with_variable(dashboard.DatasourceVariable("datasource").type("prometheus"))
    for label, metric in board.variables.items():
        made = made.with_variable(_variable(label, metric))
    for number, panel in enumerate(board.panels):
        made = made.with_panel(_panel(panel, number))
    return JSONEncoder(sort_keys=True, indent=1).encode(made.build()) + "\n"


def _source() -> Any:
    from grafana_foundation_sdk.models.dashboard import DataSourceRef

    return DataSourceRef(type_val="prometheus", uid="${datasource}")


def _variable(label: str, metric: str) -> Any:
    from grafana_foundation_sdk.builders.dashboard import QueryVariable
    from grafana_foundation_sdk.models.dashboard import VariableRefresh

    made = QueryVariable(label).datasource(_source()).query(f"label_values({metric}, {label})")
    made = made.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
    return made.multi(True).include_all(True).all_value(".*")


def _panel(panel: Panel, number: int) -> Any:
    from grafana_foundation_sdk.builders.prometheus import Dataquery
    from grafana_foundation_sdk.builders.timeseries import Panel as Timeseries
    from grafana_foundation_sdk.models.dashboard import GridPos

    across = 24 // WIDTH
    place = GridPos(HEIGHT, WIDTH, number % across * WIDTH, number // across * HEIGHT)
    made = Timeseries().title(panel.title).description(panel.text).unit(panel.unit).min(0)
    made = made.datasource(_source()).grid_pos(place).fill_opacity(8)
    if panel.top is not None:
        made = made.max(panel.top)
    for letter, (legend, expression) in zip("ABC", panel.queries.items(), strict=False):
        query = Dataquery().expr(expression).legend_format(legend).ref_id(letter)
        made = made.with_target(query)
    return made


def main(folder: Path = FOLDER) -> None:
    folder.mkdir(exist_ok=True)
    for name in BOARDS:
        (folder / f"{name}.json").write_text(build(name))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
