"""Capability scores: A.4's averages, sources, and the result files of two toolkits."""

import json

import pytest

from vlm4vla.audit import paper_tables
from vlm4vla.backbones import full_rows
from vlm4vla.capability import (
    _REFCOCO,
    GENERAL,
    KNOWN,
    SUITES,
    Score,
    capability,
    family,
    import_scores,
    parse,
    shipped,
)


def test_every_shipped_number_has_a_source_and_a_backbone():
    scores = shipped()
    names = {row.name for row in full_rows()}
    assert scores and len({(s.backbone, s.benchmark) for s in scores}) == len(scores)
    for score in scores:
        assert score.source.startswith("https://") and score.backbone in names


def test_shipped_means_are_the_means_of_the_parts_they_name():
    by_name = {(s.backbone, s.benchmark): s.score for s in shipped()}
    kosmos = [52.32, 57.42, 47.26, 45.48, 50.73, 42.24, 60.57, 61.65]
    assert by_name["kosmos-2", "RefCOCO (all)"] == pytest.approx(sum(kosmos) / 8, abs=0.006)
    pali = [73.40, 68.32, 67.65]
    assert by_name["paligemma-1", "RefCOCO (all)"] == pytest.approx(sum(pali) / 3, abs=0.006)


def test_suites_are_the_papers():
    assert len(GENERAL) == 18 and set(SUITES["paligemma"]) - set(GENERAL) == {"GQA"}
    for name in paper_tables()["table9_architecture"].rows:
        assert family(name) == family("tiny-" + name) in SUITES
    with pytest.raises(ValueError, match="names no benchmarks for florence"):
        family("florence-2")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (("kosmos-2", "Chess", 3.0, "x"), "in no suite"),
        (("kosmos-2", "GQA", 103.0, "x"), "no percentage"),
        (("kosmos-2", "GQA", 3.0, " "), "no source"),
    ],
)
def test_a_number_without_meaning_or_source_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Score(*fields)


def test_the_down_weighting_touches_specialised_families_alone():
    scores = [
        Score("qwen3vl-2b", "MMMU", 50.0, "a"),
        Score("qwen3vl-2b", "MMStar", 60.0, "a"),
        Score("kosmos-2", "RefCOCO (all)", 52.0, "b"),
    ]
    qwen, kosmos = (capability(name, scores, 0.5) for name in ("qwen3vl-2b", "kosmos-2"))
    assert qwen.value == 55.0 and qwen.weight == 1 and len(qwen.missing) == 16
    assert kosmos.value == 26.0 and kosmos.weight == 0.5 and kosmos.missing == ()
    assert capability("kosmos-2", scores).value == 52.0
    assert capability("paligemma-2", scores) is None
    with pytest.raises(ValueError, match="down-weighting"):
        capability("kosmos-2", scores, 0.0)


VLMEVALKIT = {
    "Q_MMBench_DEV_EN_V11_acc.csv": (
        "split,Overall,AR\ndev,0.7815,0.8\n",
        "MMBench v1.1 (en)",
        78.15,
    ),
    "Q_MMStar_acc.csv": ("split,Overall,math\nnone,0.559,0.6\n", "MMStar", 55.9),
    "Q_MMMU_DEV_VAL_acc.csv": (
        "split,Overall\nvalidation,0.531\ndev,0.6\n",
        "MMMU",
        53.1,
    ),
    "Q_HallusionBench_score.csv": (
        "split,aAcc,fAcc,qAcc\nOverall,63.0,40.0,47.0\nVD,1,2,3\n",
        "HallusionBench",
        50.0,
    ),
    "Q_MathVista_MINI_gpt-4o-mini_score.csv": (
        "Task&Skill,tot,prefetch,hit,prefetch_rate,acc\nOverall,1000,1,623,0.1,62.3\nALG,1,1,1,1,9\n",
        "MathVista",
        62.3,
    ),
    "Q_OCRBench_score.json": (
        json.dumps({"Final Score": 797, "Final Score Norm": 79.7}),
        "OCRBench",
        79.7,
    ),
}


@pytest.mark.parametrize("name", VLMEVALKIT)
def test_vlmevalkit_files(tmp_path, name):
    text, benchmark, value = VLMEVALKIT[name]
    (tmp_path / name).write_text(text)
    (score,) = import_scores(tmp_path / name, "qwen2.5vl-3b").scores
    assert (score.benchmark, score.score) == (benchmark, pytest.approx(value))
    assert name in score.source and "sha256" in score.source
    assert parse(json.dumps({"scores": [vars(score)]})) == [score]


def test_lmms_eval_results(tmp_path):
    results = {
        "mmmu_val": {"alias": "mmmu_val", "mmmu_acc,none": 0.41, "mmmu_acc_stderr,none": "N/A"},
        "videomme": {"videomme_perception_score,none": 61.5},
        "docvqa_val": {"anls,none": 0.9},
        **{split: {"refcoco_ACC@0.5,none": 0.1 * n} for n, split in enumerate(_REFCOCO, 1)},
    }
    path = tmp_path / "20250101_results.json"
    path.write_text(json.dumps({"results": results, "configs": {}}))
    found = import_scores(path, "kosmos-2")
    values = {score.benchmark: score.score for score in found.scores}
    assert values == pytest.approx({"MMMU": 41.0, "VideoMME": 61.5, "RefCOCO (all)": 45.0})
    assert found.skipped == ("docvqa_val",) and set(values) <= KNOWN


def test_half_of_refcoco_is_not_all_of_it(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"results": {_REFCOCO[0]: {"refcoco_ACC@0.5,none": 0.5}}}))
    found = import_scores(path, "kosmos-2")
    assert found.scores == () and found.skipped == (_REFCOCO[0],)


def test_what_is_no_result_file(tmp_path):
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n")
    assert import_scores(tmp_path / "notes.csv", "kosmos-2").skipped == ("notes.csv",)
    (tmp_path / "X_MMStar_acc.csv").write_text("split,Total\nnone,0.5\n")
    with pytest.raises(ValueError, match="does not hold what its name says"):
        import_scores(tmp_path / "X_MMStar_acc.csv", "kosmos-2")
