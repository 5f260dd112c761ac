"""Every benchmark one after the other, and one page of what they found: RESULTS.md.

    make bench [QUICK=1] [ONLY="train data"]
    python -m tests.bench.results --page        the page anew, from what was measured before

A benchmark writes its figures beside itself, with the machine, the versions, the date and the
command they were measured with. What was not measured yet is said to be missing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PAGE = HERE / "RESULTS.md"
Found = Mapping[str, Any]


@dataclass(frozen=True)
class Ratio:
    """Ours over another's, and how much it should be at least."""

    what: str
    value: float
    wanted: float
    behind: str = ""

    def row(self) -> list[str]:
        verdict = "yes" if self.value >= self.wanted else f"no: {self.behind or 'short of it'}"
        return [self.what, f"{self.value:.2f} ×", f"{self.wanted:g} ×", verdict]


@dataclass(frozen=True)
class Bench:
    """target: of make, which writes `file`. ratios: its promises. growth: its other tables."""

    title: str
    target: str
    file: str
    ratios: Callable[[Found], Iterable[Ratio]] = lambda found: ()
    growth: Callable[[Found], Iterable[str]] = lambda found: ()


def table(heads: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    lines = [list(heads), *([str(cell) for cell in row] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def shown(value: Any) -> str:
    if not isinstance(value, float):
        return f"{value}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def columns(rows: Iterable[Found], names: Iterable[str]) -> str:
    names = list(names)
    return table(names, ([shown(row[name]) for name in names] for row in rows))


def rollouts(found: Found) -> Iterable[Ratio]:
    wanted = {
        "to_limit": (0.95, "LIBERO, steps/s of our pool over a bare loop's with the same recipe"),
        "to_peer": (7, "LIBERO, one 224 px view, over vla-eval"),
        "to_peer_two_views": (5, "LIBERO, vla-eval's own two 256 px views, over vla-eval"),
        "control_plane": (0.9, "250 simulated environments over the ideal rate"),
    }
    return [Ratio(what, found[k], least) for k, (least, what) in wanted.items() if k in found]


def rollouts_growth(found: Found) -> Iterable[str]:
    if "libero_figures" in found and "horizons" in found["libero_figures"]:
        names = ("horizon", "limit_steps_per_s", "pool_steps_per_s", "to_limit", "to_limit_by_cpu")
        yield columns(found["libero_figures"]["horizons"], names)
    if "control_plane_figures" in found:
        names = ("environments", "ratio", "chunks_per_s", "chunk_wait_ms", "cpu_ms_per_chunk")
        yield columns(found["control_plane_figures"]["environments"], names)
    if "ledger_figures" in found:
        sizes = found["ledger_figures"]["sizes"]
        yield columns(sizes, sizes[0])
        scheduling = found["ledger_figures"]["scheduling"]
        yield columns(scheduling, scheduling[0])


def simulators(found: Found) -> Iterable[Ratio]:
    wanted = {("libero_object", 8): 6, ("calvin", 10): 6, ("simpler", 4): 2}
    for (name, horizon), least in wanted.items():
        for row in found.get(name, {}).get("rows", ()):
            if row["horizon"] == horizon and row["drawn"] != "every step":
                what = f"{name}, {row['processes']} processes, a frame every {horizon} steps"
                value = row["times_every step"]
                by_cpu = row["times_every step, cpu"]
                yield Ratio(f"{what}, over one every step ({by_cpu:.1f} by CPU)", value, least)
                yield Ratio(f"{what}, over the published loop", row["times_published"], least)


def simulators_growth(found: Found) -> Iterable[str]:
    names = ("processes", "drawn", "steps_per_s", "reset_s", "chunk_s", "rss_mb")
    for name in ("libero_object", "calvin", "simpler"):
        if name in found:
            yield f"`{name}`\n\n" + columns(found[name]["rows"], names)


def train(found: Found) -> Iterable[Ratio]:
    yield Ratio("Ray Train + DeepSpeed over a bare loop, worst", found["to_bare"], 0.97)
    yield Ratio("one worker over transformers' Trainer, worst", found["to_trainer"], 1.0)


def train_growth(found: Found) -> Iterable[str]:
    for workers, scene in found["workers"].items():
        rates = scene["samples_per_s"]
        sizes = list(next(iter(rates.values())))
        rows = ([name, *by.values()] for name, by in rates.items())
        yield f"{workers} workers, samples/s by global batch\n\n" + table(("", *sizes), rows)
        later = max(found["next_startup_s"][workers])
        startup = (*scene["startup_s"].items(), ("later runs in one group, at most", later))
        yield "start-up, s\n\n" + table(("", "s"), startup)


def data(found: Found) -> Iterable[Ratio]:
    yield Ratio("prepared JPEG over lerobot's loader (its own videos)", found["to_lerobot"], 3)
    yield Ratio("prepared JPEG over npz as CALVIN publishes it", found["to_npz"], 2)


def data_growth(found: Found) -> Iterable[str]:
    yield table(("reader", "samples/s"), found["samples_per_s"].items())
    rates = found["prepared_frames_per_cpu_s"].items()
    yield table(("frames prepared", "frames per CPU second"), rates)
    yield f"Own memory over an epoch, MB: {', '.join(map(shown, found['epoch_own_mb']))}"


def serving(found: Found) -> Iterable[Ratio]:
    for what, ratio in found["ratios"].items():
        alone = what.startswith("1 client")
        behind = "two threads hand each other an observation that openpi's one keeps"
        yield Ratio(what, ratio["median"], 1 if alone else 3, behind if alone else "")


def sft(found: Found) -> Iterable[Ratio]:
    for batch, value in found["to_trl"].items():
        yield Ratio(f"a stage's samples/s over TRL's SFTTrainer, batch {batch}", value, 1)


def sft_growth(found: Found) -> Iterable[str]:
    rates = found["samples_per_s"]
    names = next(iter(rates.values()))
    rows = ([batch, *by.values()] for batch, by in rates.items())
    yield "samples/s\n\n" + table(("batch", *names), rows)


def serving_growth(found: Found) -> Iterable[str]:
    yield columns(found["rows"], found["rows"][0])


def scale(found: Found) -> Iterable[str]:
    """The model beside what ran, at sizes it was not fitted to."""
    told = [line for line in found["check"] if not line["fitted"]]
    yield columns(told, ("what", "unit", "predicted", "measured"))


def overhead(found: Found) -> Iterable[str]:
    yield columns(found["rows"], ("name", "overhead_percent", "bare_ms", "policy_ms"))


def sizes(found: Found) -> Iterable[str]:
    """How cost grows, where a file has a row for each size."""
    yield columns(found["sizes"], found["sizes"][0])


def faults(found: Found) -> Iterable[str]:
    yield table(("injected", ""), found["faults"].items())
    lost, episodes = found["episodes_lost_doubled_or_changed"], found["episodes_in_all"]
    yield f"Of {episodes} episodes {lost} were lost, doubled or changed."


def soak(found: Found) -> Iterable[str]:
    yield table(("injected", ""), found["faults"].items())
    yield (
        f"{found['minutes']} minutes, {len(found['rounds'])} studies, {found['faults_in_all']} "
        f"faults: of {found['episodes_in_all']} episodes and {found['checkpoints_in_all']} "
        f"checkpoints {found['lost_doubled_or_changed']} were lost, doubled or changed."
    )
    yield columns(found["rounds"], ("seconds", "ray_mb", "ray_files", "ray_log_mb", "log_bytes"))


def fuzz(found: Found) -> Iterable[str]:
    targets = found["targets"].items()
    yield table(("target", "inputs"), ([name, f"{of['inputs']:,}"] for name, of in targets))
    yield f"{found['inputs']:,} inputs in all; tests/bench/fuzz.json has how each was answered."


BENCHES: Mapping[str, Bench] = {
    "rollouts": Bench("Rollouts", "bench-rollouts", "rollouts.json", rollouts, rollouts_growth),
    "simulators": Bench(
        "Simulators", "bench-simulators", "simulators.json", simulators, simulators_growth
    ),
    "train": Bench("Training", "bench-train", "train.json", train, train_growth),
    "data": Bench("Demonstrations", "bench-data", "data.json", data, data_growth),
    "serving": Bench("Serving policies", "bench-serving", "serving.json", serving, serving_growth),
    "sft": Bench("Fine-tuning on questions", "bench-sft", "sft.json", sft, sft_growth),
    "overhead": Bench(
        "A policy beside its bare VLM", "bench-overhead", "policy_overhead.json", growth=overhead
    ),
    "resume": Bench("A finished study's command", "bench-resume", "resume.json", growth=sizes),
    "report": Bench("The report", "bench-report", "report.json", growth=sizes),
    "faults": Bench("Faults", "bench-faults", "faults.json", growth=faults),
    "scale": Bench("Past this machine (docs/scale.md)", "bench-scale", "scale.json", growth=scale),
    "soak": Bench("Soak", "soak", "soak.json", growth=soak),
    "fuzz": Bench("Bad input", "fuzz", "fuzz.json", growth=fuzz),
}


def run(bench: Bench, quick: bool) -> bool:
    """Whether it ended well and left figures."""
    command = ["make", bench.target, *(["QUICK=1"] if quick else [])]
    began = time.time()
    print(f"{' '.join(command)} …", flush=True)
    code = subprocess.run(command, cwd=ROOT).returncode
    path = HERE / bench.file
    if code or not path.exists() or path.stat().st_mtime < began:
        print(f"{' '.join(command)} ended with {code} and left no new figures", file=sys.stderr)
        return False
    return True


def page(found: Mapping[str, Found]) -> str:
    """Markdown of all that was measured: the promises first, then each benchmark's tables."""
    promises = [ratio.row() for name, bench in BENCHES.items() for ratio in _of(bench, found, name)]
    parts = [
        "# Results",
        "Written by `make bench`. Ratios are of figures from one run on one machine; higher is "
        "better. Every benchmark's file says how it measures.",
        table(("measured", "ratio", "wanted", "reached"), promises),
    ]
    for name, bench in BENCHES.items():
        parts.append(f"## {bench.title}")
        if name not in found:
            parts.append(f"Not measured yet: `make {bench.target}`.")
            continue
        parts.append(_about(bench, found[name]))
        parts += bench.growth(found[name])
    return "\n\n".join(parts) + "\n"


def _of(bench: Bench, found: Mapping[str, Found], name: str) -> Iterable[Ratio]:
    return bench.ratios(found[name]) if name in found else ()


def _about(bench: Bench, found: Found) -> str:
    about = found["ran"]
    forms = {
        "date": "{}",
        "took_s": "{} s",
        "command": "`{}`",
        "processor": "{}",
        "cores": "{} cores",
        "memory_gb": "{} GB",
        "load_before": "load {} before",
        "python": "Python {}",
    }
    said = [form.format(about[key]) for key, form in forms.items() if key in about]
    versions = [f"{name} {value}" for name, value in about.get("versions", {}).items()]
    return f"`make {bench.target}`, {', '.join([*said, *versions])}."


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=BENCHES, help="all by default")
    parser.add_argument("--quick", action="store_true", help="each in under five minutes")
    parser.add_argument("--page", action="store_true", help="measure nothing")
    options = parser.parse_args()
    chosen = [] if options.page else options.only or list(BENCHES)
    failed = [name for name in chosen if not run(BENCHES[name], options.quick)]
    files = {name: HERE / bench.file for name, bench in BENCHES.items()}
    found = {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}
    PAGE.write_text(page(found), encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
