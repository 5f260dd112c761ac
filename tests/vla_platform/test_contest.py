"""Contests with known outcomes on a real store and ledger; nothing is trained or simulated."""

from types import SimpleNamespace

import numpy as np
import pytest
from vla_platform.artifacts import Checkpoint
from vla_platform.contest import Contest, Entrant, Rules, UnplayedError
from vla_platform.ledger import Ledger
from vla_platform.rows import Cell, Row
from vla_platform.store import open_store

from envs.benchmarks import benchmark
from tests.bench.racing import race
from vlm4vla.selection import confirmation_states, select
from vlm4vla.sequential import hopeless, order

TABLETOP = benchmark("tabletop")
JUDGE = SimpleNamespace(
    order=order, hopeless=hopeless, select=select, confirmation_states=confirmation_states
)
RATES = {(100, 4): 0.2, (100, 2): 0.5, (200, 4): 0.3, (200, 2): 0.9}
CHECKPOINTS = [Checkpoint("run", step, f"{step:064d}") for step in (100, 200)]


def rules(**changes):
    chosen = {"tasks": TABLETOP.tasks, "states": 20, "horizons": (4, 2), "confirm": 5}
    return Rules(**{**chosen, "error": 0.05, "look": 30, **changes})


class Player:
    """Commits a row for every episode, successful at the rate of its cell, and remembers it."""

    def __init__(self, ledger):
        self.ledger, self.played = ledger, []

    def __call__(self, assignments):
        for assignment in assignments:
            episode = assignment.episode
            rate = RATES[assignment.checkpoint.step, episode.cell.horizon]
            draw = np.random.default_rng([episode.initial_state, len(episode.task)]).random()
            self.played.append(episode)
            won = bool(draw < rate)
            row = Row(episode, won, won, won, 1, 1, 0.0, 0.0, writer=episode.key)
            assert self.ledger.commit(row)


def hold(ledger, rules, play, **fields):
    contest = Contest(ledger, TABLETOP, "print", rules, JUDGE, (100, 200), play, **fields)
    for checkpoint in CHECKPOINTS:
        contest.enter(checkpoint)
    return contest.finish()


@pytest.fixture
def ledger(tmp_path):
    return Ledger(open_store(str(tmp_path)))


def test_full_evaluation_plays_everything_and_finds_the_best(ledger):
    player = Player(ledger)
    standing = hold(ledger, rules(error=None, confirm=0), player)
    assert (standing.played, standing.saved, standing.confirmed) == (4 * 60, 0, 0)
    assert len(player.played) == 4 * 60
    winner = standing.selection.winner
    assert (winner.step, winner.horizon) == (200, 2)
    assert standing.selection.confirmed is None
    assert standing.states == len(standing.outcomes) == 60
    assert np.mean(standing.outcomes) == pytest.approx(standing.selection.best.value)
    assert 0.8 < standing.selection.best.value <= 1.0


def test_hopeless_cells_are_stopped_and_the_winner_stays(ledger):
    player = Player(ledger)
    standing = hold(ledger, rules(), player)
    winner = standing.selection.winner
    assert (winner.step, winner.horizon) == (200, 2)
    assert standing.saved > 20
    assert standing.played + standing.saved == 4 * 60
    assert len(player.played) == standing.played + standing.confirmed


@pytest.mark.parametrize("seed", range(2))
def test_a_simulated_race_is_a_contest(ledger, seed):
    """`tests/bench/bench_sequential.py` measures the error of races."""
    states, horizons, steps = 10, (4, 2), (100, 200, 300)
    rng, rates = np.random.default_rng(seed), (0.1, 0.3, 0.5, 0.6, 0.95, 0.2)
    scores = (rng.random((6, 30)) < np.array(rates)[:, None]).astype(float)
    places = [(step, horizon) for step in steps for horizon in horizons]
    turns = {state: turn for turn, state in enumerate(order(TABLETOP.tasks, states))}

    def play(assignments):
        for assignment in assignments:
            episode, step = assignment.episode, assignment.checkpoint.step
            cell = places.index((step, episode.cell.horizon))
            won = bool(scores[cell, turns[episode.task, episode.initial_state]])
            ledger.commit(Row(episode, won, won, won, 1, 1, 0.0, 0.0, writer=episode.key))

    wanted = rules(states=states, look=5, confirm=0)
    contest = Contest(ledger, TABLETOP, "print", wanted, JUDGE, steps, play)
    for step in steps:
        contest.enter(Checkpoint("run", step, f"{step:064d}"))
    winner = contest.finish().selection.winner
    played = {(e.step, e.horizon): len(outcomes) for e, outcomes in contest.outcomes.items()}
    found = race(scores, 0.05, batch=5, groups=[[0, 1], [2, 3], [4, 5]])
    assert tuple(played[place] for place in places) == found.played
    assert (winner.step, winner.horizon) == places[found.winner]
    assert min(found.played) < 30


def test_confirmation_is_on_states_that_chose_nothing(ledger):
    player = Player(ledger)
    standing = hold(ledger, rules(), player)
    assert standing.confirmed == 5 * len(TABLETOP.tasks)
    fresh = [e for e in player.played if e.initial_state >= TABLETOP.trials]
    assert len(fresh) == standing.confirmed
    assert {e.cell.horizon for e in fresh} == {standing.selection.winner.horizon}
    assert standing.selection.confirmed is not None


def test_confirmation_is_as_long_as_the_interval_asked_for_needs(ledger):
    standing = hold(ledger, rules(within=0.06), Player(ledger))
    confirmed = standing.selection.confirmed
    assert standing.confirmed > 2 * 5 * len(TABLETOP.tasks)
    assert (confirmed.high - confirmed.low) / 2 == pytest.approx(0.06, abs=0.015)
    assert hold(ledger, rules(within=0.06), None) == standing


def test_a_contest_that_was_killed_takes_the_same_decisions(ledger):
    first = hold(ledger, rules(), Player(ledger))
    again = Player(ledger)
    assert hold(ledger, rules(), again) == first
    assert again.played == []
    assert hold(ledger, rules(), None) == first


def test_more_states_play_only_what_is_new(ledger):
    hold(ledger, rules(error=None, confirm=0), Player(ledger))
    more = Player(ledger)
    hold(ledger, rules(error=None, confirm=0, states=25), more)
    assert len(more.played) == 4 * 5 * len(TABLETOP.tasks)


def test_cells_carry_the_runs_profile_and_the_papers_keep_their_ids(ledger):
    paper, official = Player(ledger), Player(ledger)
    hold(ledger, rules(), paper)
    hold(ledger, rules(), official, profile="official")
    cells = {e.cell for e in paper.played}
    assert cells == {Cell(c.digest, "tabletop", h, "print") for c in CHECKPOINTS for h in (4, 2)}
    assert {e.cell.profile for e in official.played} == {"official"}
    assert len(official.played) == len(paper.played)


def test_nobody_to_play_what_is_missing(ledger):
    with pytest.raises(UnplayedError, match="have no row yet"):
        hold(ledger, rules(), None)


def test_chains_count_their_completed_share(ledger):
    row = SimpleNamespace(**{**vars(TABLETOP), "chain": 5, "step_limit": TABLETOP.step_limit})
    contest = Contest(ledger, row, "print", rules(error=None), JUDGE, (100, 200))
    entrant, states = Entrant(CHECKPOINTS[0], 4), [("reach", 0)]
    episode = contest._episodes(entrant, states)[0]
    ledger.commit(Row(episode, False, False, False, 1, 1, 0.0, 0.0, writer="w", completed=3))
    assert contest._played([entrant], states) == {entrant: [0.6]}


def test_a_finished_cell_is_read_once(ledger, monkeypatch):
    hold(ledger, rules(), Player(ledger))
    asked, get = [], type(ledger.store).get
    monkeypatch.setattr(
        type(ledger.store), "get", lambda store, key: asked.append(key) or get(store, key)
    )
    hold(ledger, rules(), None)
    files = [key for key in asked if "/cell-" in key]
    assert len({key.split("/")[1] for key in files}) == 4
    assert len(files) == len(set(files)), "missing, reading and compacting each fetched it"
    assert not any("/episodes/" in key for key in asked)
