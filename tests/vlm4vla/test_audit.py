"""The auditor: silent on honest tables, loud on the paper's own contradictions."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm4vla.audit import RULES, PrintedTable, audit, audit_paper, paper_tables

CHAIN = {"rates": ["one", "two", "three"], "length": "length"}


def chain_table(*row: float) -> PrintedTable:
    columns = {"one": 3, "two": 3, "three": 3, "length": 3}
    trials = dict.fromkeys(("one", "two", "three"), 1000)
    return PrintedTable("t", columns, {"row": row}, chain=CHAIN, trials=trials)


def task_table(*row: float) -> PrintedTable:
    trials = {"a": 24, "b": 24, "mean": 48}
    return PrintedTable(
        "t",
        {"a": 1, "b": 1, "mean": 1},
        {"row": row},
        percent=True,
        averages={"mean": ("a", "b")},
        trials=trials,
    )


def rules_broken(table: PrintedTable) -> list[str]:
    return [finding.rule for finding in audit(table)]


@pytest.mark.parametrize(
    ("table", "broken"),
    [
        (chain_table(0.9, 0.8, 0.7, 2.4), []),
        (chain_table(0.9, 0.8, 0.801, 2.501), ["chain_monotone"]),
        (chain_table(0.9, 0.8, 0.7, 2.402), []),  # could still be rounding
        (chain_table(0.9, 0.8, 0.7, 2.403), ["chain_sum"]),
        (task_table(20.8, 50.0, 35.4), []),
        (task_table(20.8, 50.0, 35.5), ["average", "possible_rate"]),
        (task_table(20.9, 50.0, 35.4), ["possible_rate"]),
        (task_table(20.9, 50.0, 37.5), ["average", "possible_rate"]),
    ],
)
def test_each_rule_fires_only_when_it_must(table: PrintedTable, broken: list[str]):
    assert rules_broken(table) == broken


@pytest.mark.parametrize("printed", ["6.2", "6.3"])
def test_a_tie_may_round_either_way_and_a_rate_may_be_cut(printed: str):
    table = PrintedTable("t", {"a": 1}, {"row": (float(printed),)}, percent=True, trials={"a": 16})
    assert audit(table) == []
    assert rules_broken(replace(table, trials={"a": 15})) == ["possible_rate"]


def test_differences_halves_and_squares():
    table = PrintedTable(
        "t",
        {"x": 1, "y": 1},
        {"base": (40.0, 20.0), "row": (25.0, 12.5)},
        differences={"row": {"from": "base", "x": -15.0, "y": -7.3}},
        halves={"y": "x"},
    )
    (finding,) = audit(table)
    assert finding.rule == "difference"
    assert finding.detail == "y: 12.5 - 20.0 is -7.5, printed -7.3"
    assert rules_broken(replace(table, differences={}, halves={"x": "y"})) == ["half"] * 2
    square = PrintedTable("t", {"r": 3, "r2": 3}, {"a": (-0.358, 0.128)}, squares={"r2": "r"})
    assert audit(square) == []
    assert rules_broken(replace(square, rows={"a": (-0.358, 0.130)})) == ["r_squared"]


@given(st.lists(st.integers(0, 3), min_size=1000, max_size=1000))
def test_chains_that_happened_are_never_accused(completed: list[int]):
    rates = [sum(c > k for c in completed) / 1000 for k in range(3)]
    row = tuple(round(x, 3) for x in (*rates, sum(completed) / 1000))
    assert audit(chain_table(*row)) == []


@given(st.integers(0, 24), st.integers(0, 24))
def test_scores_that_happened_are_never_accused(a: int, b: int):
    row = tuple(round(100 * x, 1) for x in (a / 24, b / 24, (a + b) / 48))
    assert audit(task_table(*row)) == []


def test_the_paper_is_transcribed_whole():
    tables = paper_tables()
    assert [name.split("_")[0] for name in tables] == [
        *(f"table{number}" for number in range(1, 11)),
        "figure3",
    ]
    for table in tables.values():
        assert all(len(row) == len(table.columns) for row in table.rows.values())
        assert set(table.differences) | set(table.row_trials) <= set(table.rows)
    kosmos = tables["table2_simpler_libero"]
    assert kosmos.shown("kosmos-2", "simpler") == "60.4"
    assert kosmos.trials_of("pi0*", "carrot") == 240 and kosmos.trials_of("openvla", "cube") == 24


def test_what_is_printed_twice_is_the_same_everywhere():
    tables = paper_tables()
    first, last = tables["table1_calvin"], tables["table10_aux_calvin"]
    for row in ("qwen2.5vl-3b", "qwen2.5vl-7b"):
        assert last.rows[row] == first.rows[row][1:]
        for name in ("table3_freeze", "table8_scratch"):
            assert tables[name].value(row, "calvin") == first.value(row, "avg_len")


PAPER = {
    ("table1_calvin", "pi0*", "chain_monotone"),
    ("table1_calvin", "pi0*", "chain_sum"),
    ("table2_simpler_libero", "thinkact", "possible_rate"),
    ("table2_simpler_libero", "qwen2.5vl-3b", "average"),
    ("table2_simpler_libero", "qwen2.5vl-3b", "possible_rate"),
    ("table2_simpler_libero", "paligemma-1", "average"),
    ("table2_simpler_libero", "paligemma-1", "possible_rate"),
    ("table3_freeze", "qwen2.5vl-3b", "possible_rate"),
    ("table3_freeze", "qwen2.5vl-7b", "possible_rate"),
    ("table3_freeze", "qwen2.5vl-7b+freeze_vision", "possible_rate"),
    ("table3_freeze", "paligemma-1", "possible_rate"),
    ("table3_freeze", "paligemma-1+freeze_vision", "possible_rate"),
    ("table3_freeze", "paligemma-1+freeze_embed", "possible_rate"),
    ("table4_action_injection", "freeze_vision/baseline", "possible_rate"),
    ("table4_action_injection", "freeze_vision/freeze_vision_ft", "possible_rate"),
    ("table4_action_injection", "freeze_vision/unfreeze_vision_ft", "possible_rate"),
    ("table6_prompt", "qwen2.5vl-3b long", "possible_rate"),
    ("table6_prompt", "qwen2.5vl-3b short", "possible_rate"),
    ("table6_prompt", "qwen2.5vl-7b long", "possible_rate"),
    ("table6_prompt", "qwen2.5vl-7b short", "possible_rate"),
    ("table8_scratch", "qwen2.5vl-3b", "possible_rate"),
    ("table8_scratch", "qwen2.5vl-3b scratch", "possible_rate"),
    ("table8_scratch", "qwen2.5vl-7b", "possible_rate"),
    ("table8_scratch", "qwen2.5vl-7b scratch", "difference"),
    ("table8_scratch", "qwen2.5vl-7b scratch", "possible_rate"),
    ("table8_scratch", "paligemma-1", "possible_rate"),
    ("table8_scratch", "paligemma-1 scratch", "possible_rate"),
    ("table9_architecture", "paligemma-2", "half"),
    ("table10_aux_calvin", "qwen2.5vl-7b+omni-generation", "chain_sum"),
}


def test_the_papers_contradictions():
    """pi0*'s length is right if its task 3 is read as 0.686; 18.20 - 46.75 is not -28.75."""
    found = audit_paper()
    assert {(f.table, f.row, f.rule) for f in found} == PAPER and len(found) == len(PAPER)
    assert {f.rule for f in found} <= set(RULES)
    details = {(f.row, f.rule): f.detail for f in found}
    assert details["pi0*", "chain_sum"] == "the rates add up to 3.609, avg_len says 3.509"
    assert "is -28.55, printed -28.75" in details["qwen2.5vl-7b scratch", "difference"]
