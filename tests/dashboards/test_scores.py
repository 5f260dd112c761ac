import re

from dashboards.scores import draw


def row(backbone, task, label, successes):
    low, high = max(0, successes / 10 - 0.2), min(1, successes / 10 + 0.2)
    fields = {"backbone": backbone, "task": task, "checkpoint": label, "successes": successes}
    return {**fields, "trials": 10, "low": low, "high": high}


def test_every_task_and_kind_is_drawn_and_a_redraw_is_equal(tmp_path):
    rows = [
        row(backbone, task, label, count)
        for backbone in ("tiny-a", "tiny-b")
        for task in ("reach", "push")
        for label, count in (("trained", 7), ("untrained", 0))
    ]
    draw(rows, tmp_path / "first.svg")
    draw(rows, tmp_path / "second.svg")
    text = (tmp_path / "first.svg").read_text()
    assert text == (tmp_path / "second.svg").read_text()
    drawn = re.findall(r"<!-- (.*?) -->", text)
    assert {"reach", "push", "trained", "untrained", "a", "b"} <= set(drawn)
