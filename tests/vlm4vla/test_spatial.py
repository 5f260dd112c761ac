"""Spatial questions on a scene that can be checked by hand, and geometry there and back."""

import numpy as np
import pytest

from envs.api import Camera, Thing
from vlm4vla.aux.spatial import RELATIONS, Margins, askable, back_project, project, questions

# One metre above the table's edge, looking along +x and 45 degrees down: right is -y.
S = np.sqrt(0.5)
POSE = np.array([[0, -S, S, 0], [-1, 0, 0, 0], [0, -S, -S, 1], [0, 0, 0, 1.0]])
CAMERA = Camera(200.0, 224, 224, POSE)
MIRRORED = Camera(200.0, 224, 224, POSE @ np.diag([-1.0, 1, 1, 1]))


def thing(name, centre, extent=(0.06, 0.06, 0.06), pixels=400):
    return Thing(name, np.array(centre, float), np.array(extent, float), pixels)


# left is +y; the box stands beyond the cup, on a shelf
CUP = thing("cup", (0.9, 0.2, 0.0))
BOX = thing("box", (1.5, -0.2, 0.3), (0.2, 0.2, 0.2))
TWIN = thing("cup twin", (0.9, 0.21, 0.0))


def answers(things, camera=CAMERA, seeds=40):
    """Every question that some seed asks, with its answer."""
    return {
        (q.text, q.answer)
        for seed in range(seeds)
        for q in questions(things, camera, np.random.default_rng(seed))
    }


def test_a_point_ahead_is_in_the_middle():
    assert project(np.array([[1.0, 0, 0]]), CAMERA)[0] == pytest.approx([112, 112, np.sqrt(2)])
    left = project(np.array([[1.0, 0.1, 0]]), CAMERA)[0]
    assert left == pytest.approx([112 - 200 * 0.1 / np.sqrt(2), 112, np.sqrt(2)])
    assert project(np.array([[1.0, 0.1, 0]]), MIRRORED)[0, 0] == pytest.approx(224 - left[0])


@pytest.mark.parametrize("camera", [CAMERA, MIRRORED])
def test_projection_is_undone(camera):
    depth = np.random.default_rng(0).uniform(0.5, 3, (224, 224))
    found = project(back_project(depth, camera).reshape(-1, 3), camera).reshape(224, 224, 3)
    rows, columns = np.indices(depth.shape) + 0.5
    assert np.allclose(found, np.stack([columns, rows, depth], -1))


def test_every_relation_has_the_right_answer_in_every_wording():
    found = answers([CUP, BOX])
    expected = {
        ("Which is more to the left, the cup or the box?", "The cup is more to the left."),
        ("Which is more to the right, the box or the cup?", "The box is more to the right."),
        ("Is the cup to the left of the box?", "Yes"),
        ("Is the box to the left of the cup?", "No"),
        ("Is the cup to the right of the box?", "No"),
        ("Is the box above the cup?", "Yes"),
        ("Which is lower down, the box or the cup?", "The cup is lower down."),
        ("Is the cup in front of the box?", "Yes"),
        (
            "Which is farther from the camera, the cup or the box?",
            "The box is farther from the camera.",
        ),
        ("Is the cup bigger than the box?", "No"),
        ("Which is smaller, the box or the cup?", "The cup is smaller."),
        ("How many centimetres are the middles of the cup and the box apart?", "78"),
    }
    assert expected <= found
    # 2 wordings x 2 directions x 2 orders of 4 relations, and the distance in 2 orders.
    assert len(found) == 4 * 8 + 2


def test_a_mirrored_picture_swaps_left_and_right_alone():
    plain, mirrored = answers([CUP, BOX]), answers([CUP, BOX], MIRRORED)
    assert ("Is the cup to the left of the box?", "No") in mirrored
    sides = {pair for pair in plain if "left" in pair[0] or "right" in pair[0]}
    assert plain - sides == {p for p in mirrored if "left" not in p[0] and "right" not in p[0]}


def test_pairs_that_are_not_clear_are_not_asked_about():
    assert {q.split()[0] for q, _ in answers([CUP, TWIN])} == {"How"}
    # Higher in the picture only because it is farther: no question about height.
    behind = thing("plate", (1.2, 0.2, 0.0))
    assert not any("above" in q or "higher" in q for q, _ in answers([CUP, behind]))
    # Longer, but of less volume.
    stick = thing("stick", (0.9, -0.2, 0.0), (0.2, 0.01, 0.01))
    assert not any("bigger" in q or "smaller" in q for q, _ in answers([CUP, stick]))


def test_margins_decide():
    strict = Margins(side=1, height=9, depth=9, size=99)
    asked = questions([CUP, BOX], CAMERA, np.random.default_rng(0), margins=strict)
    assert [q.relation for q in asked] == ["distance"]


def test_things_nobody_could_tell_are_left_out():
    others = [
        thing("bowl", (0.9, 0.0, 0.0)),
        thing("bowl", (1.0, 0.3, 0.0)),
        thing("hidden", (0.9, 0.1, 0.0), pixels=3),
        thing("table", (1.0, 0.0, -0.1), (1.0, 1.0, 0.1)),
        thing("outside", (0.9, 3.0, 0.0)),
        thing("behind", (-1.0, 0.0, 2.0)),
    ]
    found = askable([CUP, *others], CAMERA, Margins())
    assert [placed.thing.name for placed in found] == ["cup"]
    assert found[0].depth == pytest.approx(1.9 * S)


def test_the_generator_alone_decides():
    one, two = (questions([CUP, BOX, TWIN], CAMERA, np.random.default_rng(5), 4) for _ in "12")
    assert one == two and len(one) == 4


def test_answers_are_balanced():
    """Neither the thing named first nor "Yes" is the answer more often than the other."""
    asked = [q for s in range(400) for q in questions([CUP, BOX], CAMERA, np.random.default_rng(s))]
    yes = [q.answer == "Yes" for q in asked if q.text.startswith("Is")]
    first = [
        q.answer.split()[1] == q.text.split("the ")[-2].split()[0]
        for q in asked
        if q.text.startswith("Which")
    ]
    assert 0.4 < np.mean(yes) < 0.6 and 0.4 < np.mean(first) < 0.6
    assert {q.relation for q in asked} == {*RELATIONS, "distance"}
