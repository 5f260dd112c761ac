"""Fine-tuning a backbone on questions: what the loss is on, and a stage from data to policy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.vlm4vla.train_worker import FolderSink, Stopped, make_dataset
from vlm4vla.aux import questions
from vlm4vla.aux.fast import Fast
from vlm4vla.aux.fast_qa import ActionWords
from vlm4vla.aux.prepare import prepare_questions
from vlm4vla.aux.questions import Questions
from vlm4vla.aux.readers import read
from vlm4vla.aux.samples import Sample
from vlm4vla.aux.scoring import score_stage
from vlm4vla.aux.sft import build
from vlm4vla.aux.stage_job import Asked, StageJob, too_long
from vlm4vla.backbones import backbone
from vlm4vla.data.prepared import Prepared
from vlm4vla.engine import Engine
from vlm4vla.policies import build_policy
from vlm4vla.run import Run
from vlm4vla.stages import TINY_STAGES, AuxStage
from vlm4vla.tokenizers import tiny_tokenizer
from vlm4vla.train import train

STAGE = AuxStage(
    "test",
    "tiny-paligemma-1",
    (("tabletop-number", 1.0), ("tabletop-choice", 1.0)),
    init="scratch",
    steps=4,
    batch=8,
    lr=2e-3,
    warmup=1,
)
_QWEN = (
    "<|im_start|> system \n you are a helpful assistant . <|im_end|> \n <|im_start|> user \n "
    "<|vision_start|> IMG*16 <|vision_end|> is it red [ <|im_end|> \n <|im_start|> assistant \n | "
    "yes <|im_end|> ]"
)
MASKS = {
    "tiny-paligemma-1": "IMG*16 <bos> is it red [ \n | yes <eos> ]",
    "tiny-paligemma-2": "IMG*16 <bos> is it red [ \n | yes <eos> ]",
    "tiny-kosmos-2": ("<s> <image> IMG*32 </image> question : is it red [ answer : | yes </s> ]"),
    "tiny-prism-dinosiglip-224px-7b": ("<s> IMG*16 in : is it red [ \n o u t : | yes </s> ]"),
    "tiny-qwen2.5vl-3b": _QWEN,
    "tiny-qwen3vl-2b": _QWEN,
    "tiny-qwen3vl-30b-a3b": _QWEN,
}
"""The whole of a sample, its loss between | and ]; from [ on is what follows the question."""


@pytest.mark.parametrize("name", MASKS)
def test_the_loss_is_on_the_answer_and_its_end_alone(name):
    model = build(replace(STAGE, backbone=name), 0, None)
    image = np.zeros((2, 112, 112, 3), np.uint8)
    batch = model.prepare_text(image, ["is it red", "is it the red block"], ["yes", "no"])
    ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
    image_token = model.family.image_token
    before, rest = MASKS[name].replace("[ ", "").split(" | ")
    answer = rest.removesuffix(" ]")
    for count in (16, 32):
        before = before.replace(f"IMG*{count}", " ".join([image_token] * count))
    labelled = [place for place, label in enumerate(labels) if label != -100]
    assert tiny_tokenizer().decode(ids[: labelled[0]]) == before
    assert tiny_tokenizer().decode([labels[place] for place in labelled]) == answer
    assert labelled == list(range(labelled[0], labelled[-1] + 1))
    assert all(label in (-100, token) for token, label in zip(ids, labels, strict=True))
    # What follows is padding, which the longer neighbour made necessary.
    assert batch["attention_mask"][0, labelled[-1] + 1 :].sum() == 0


def test_answers_in_ids_are_taken_as_they_are():
    model = build(STAGE, 300, None)
    assert model.vlm.get_input_embeddings().weight.shape[0] == 300
    batch = model.prepare_text(np.zeros((1, 112, 112, 3), np.uint8), ["move"], [(299, 260)])
    labels = batch["labels"][0]
    assert labels[labels >= 0].tolist() == [299, 260, tiny_tokenizer().token_id("<eos>")]
    loss, _ = model.loss(batch)
    assert torch.isfinite(loss)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """64 questions of each of the stage's rows."""
    folder = tmp_path_factory.mktemp("questions")
    rows = [replace(row, samples=64) for row in STAGE.rows]
    sources = {row.name: (row.samples, read(row, folder)) for row in rows}
    questions.prepare("test", sources, lambda name, data: (folder / name).write_bytes(data))
    return folder


def test_workers_share_one_batch_whatever_their_number(data):
    found, model = Questions(data), build(STAGE, 0, None)
    alone = next(Asked(STAGE, found, model, 0, 1, 1).steps(3, 4))[1]
    shared = [next(Asked(STAGE, found, model, rank, 3, 1).steps(3, 4))[1] for rank in range(3)]
    rows = [row for (part,) in [alone] for row in unpadded(part)]
    assert rows == [row for (part,) in shared for row in unpadded(part)]
    # Means over micro-batches, weighted and averaged over workers, are the mean over all tokens.
    total = sum(int((part.inputs["labels"] >= 0).sum()) for (part,) in shared)
    for (part,) in shared:
        answered = int((part.inputs["labels"] >= 0).sum())
        assert part.weight / 3 == pytest.approx(answered / total)


def unpadded(part):
    inputs = part.inputs
    lengths = inputs["attention_mask"].sum(1).tolist()
    return [row[:n] for row, n in zip(inputs["input_ids"].tolist(), lengths, strict=True)]


def test_a_stage_stops_resumes_and_becomes_a_policy(data, tmp_path):
    whole = FolderSink(tmp_path / "whole")
    job = StageJob(STAGE, data, tmp_path / "a", log_every=1)
    train(job, whole)
    assert [row["step"] for row in whole.rows] == [1, 2, 3, 4]
    assert {"loss", "token_accuracy", "grad_norm"} <= whole.rows[0].keys()
    cut = FolderSink(tmp_path / "cut", stop_after=3)
    again = replace(job, scratch=tmp_path / "b", engine=Engine(checkpoint_every=2))
    with pytest.raises(Stopped):
        train(again, cut)
    train(again, FolderSink(tmp_path / "cut"))
    first, second = whole.weights(4), cut.weights(4)
    assert all(torch.equal(first[name], second[name]) for name in first)
    file = tmp_path / "whole" / "step-00000004" / "policy.safetensors"
    policy = build_policy(Run(STAGE.backbone, "tabletop", aux=STAGE.id), 4, stage=file)
    state = policy.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in load_file(file).items())
    assert {name for name in state if not name.startswith("vlm.")} >= {"query"}


def test_frozen_groups_stay_as_they_were(data, tmp_path):
    stage, sink = replace(STAGE, steps=2, freeze=("vision",)), FolderSink(tmp_path / "run")
    before = build(stage, 0, None).state_dict()
    train(StageJob(stage, data, tmp_path / "scratch"), sink)
    changed = {n for n, t in sink.weights(2).items() if not torch.equal(t, before[n])}
    assert changed
    assert not any("vision_tower" in name for name in changed)


def test_words_that_a_stage_added_do_not_reach_the_policy(tmp_path):
    wide = build(STAGE, 400, None)
    weights = {n: t.clone().contiguous() for n, t in wide.state_dict().items()}
    save_file(weights, tmp_path / "wide.safetensors")
    policy = build_policy(
        Run(STAGE.backbone, "tabletop", aux="any"), 4, stage=tmp_path / "wide.safetensors"
    )
    kept = policy.vlm.get_input_embeddings().weight
    assert kept.shape[0] == 256
    assert torch.equal(kept, wide.vlm.get_input_embeddings().weight[:256])


def test_a_run_without_its_stage_says_what_is_missing():
    run = Run("tiny-qwen2.5vl-3b", "tabletop", aux=TINY_STAGES["robopoint"].id)
    with pytest.raises(ValueError, match=r"tiny-robopoint-.*train the stage first"):
        build_policy(run, 4)


@pytest.mark.parametrize("name", ["tiny-paligemma-1", "tiny-kosmos-2", "tiny-qwen3vl-2b"])
def test_greedy_answers_follow_the_scores(name):
    model = build(replace(STAGE, backbone=name), 0, None).eval()
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (2, 112, 112, 3), dtype=np.uint8)
    asked = ["is it red", "where is the red block"]
    said = model.answers(image, asked, 3)
    for row, ids in enumerate(said):
        spelled = tuple(ids)
        for place, word in enumerate(spelled):
            batch = model.prepare_text(image[row : row + 1], asked[row : row + 1], [spelled])
            with torch.no_grad():
                scores = model.lm_logits(batch)[0, int(batch["last_index"][0]) + place]
            assert int(scores.argmax()) == word


def test_answers_longer_than_the_context_are_listed(tmp_path):
    image = np.zeros((4, 4, 3), np.uint8)
    sizes = (3, 600, 3, 3, 3, 3, 3, 601, 3)
    samples = [
        Sample(image.copy(), "q", "x " * n, "text", where=f"f {i}: {n}")
        for i, n in enumerate(sizes)
    ]
    put = lambda name, data: (tmp_path / name).write_bytes(data)  # noqa: E731
    questions.prepare("test", {"tabletop-general": (9, samples)}, put)
    stage = replace(STAGE, mixture=(("tabletop-general", 1.0),), batch=4)
    found, model = Questions(tmp_path), build(stage, 0, None)
    long = too_long(found, model)
    assert list(long) == [1, 7]
    assert long[1].startswith("f 1: 600: needs 6") and long[1].endswith("of 512")
    fed = Asked(stage, found, model, 0, 1, 1)
    assert {number for step in range(8) for number in fed.samples(step)} == {0, 2, 3, 4, 5, 6, 8}
    # The eighth is held out, and cannot be asked either.
    told = score_stage(stage, tmp_path, None)
    assert told["left_out"] == list(long.values())
    assert told["scores"] == {}


def test_data_of_which_nothing_fits_are_refused(tmp_path):
    samples = [Sample(np.zeros((4, 4, 3), np.uint8), "q", "x " * 600, "text", where="f: 0")]
    put = lambda name, data: (tmp_path / name).write_bytes(data)  # noqa: E731
    questions.prepare("test", {"tabletop-general": (2, samples)}, put)
    stage = replace(STAGE, mixture=(("tabletop-general", 1.0),))
    with pytest.raises(ValueError, match=r"no question of tabletop-general fits .* f: 0: needs 6"):
        Asked(stage, Questions(tmp_path), build(stage, 0, None), 0, 1, 1)


def test_scores_name_rows_and_kinds_and_what_was_left_out(data):
    told = score_stage(STAGE, data, None)
    assert set(told["scores"]) == {"tabletop-number/number", "tabletop-choice/choice"}
    assert all(found["asked"] == 8 for found in told["scores"].values())
    assert told["counts"] == {"tabletop-number": (56, 8), "tabletop-choice": (56, 8)}
    assert told["left_out"] == []


def test_published_data_need_a_folder(tmp_path):
    stage = replace(STAGE, mixture=(("robo2vlm", 1.0),))
    with pytest.raises(ValueError, match="no folder was named for robo2vlm"):
        prepare_questions(stage, {}, lambda name, data: None)


def test_demonstrations_become_questions_about_actions(tmp_path):
    demonstrations, data = tmp_path / "demonstrations", tmp_path / "questions"
    demonstrations.mkdir()
    data.mkdir()
    make_dataset(demonstrations)
    stage = replace(TINY_STAGES["fast-vision-frozen"], steps=2, batch=4, init="scratch")
    folders = {"tabletop-actions": demonstrations}
    put = lambda name, data_: (data / name).write_bytes(data_)  # noqa: E731
    manifest = prepare_questions(stage, folders, put)
    found = Questions(data)
    assert manifest.bad == ()
    assert set(found.kinds) == {"action"}
    assert found.questions[0].startswith("What action should the robotic arm take to reach the")
    fast = Fast.load(data)
    assert found.words() <= 256 + fast.size
    words = ActionWords.of(fast, backbone(stage.backbone), tiny_tokenizer())
    first = Prepared(demonstrations).read(0)
    (chunk,) = words.actions([found.answers[0]])
    np.testing.assert_allclose(chunk, first.actions[:4], atol=1 / 3)
    sink = FolderSink(tmp_path / "run")
    train(StageJob(stage, data, tmp_path / "scratch"), sink)
    file = tmp_path / "run" / "step-00000002" / "policy.safetensors"
    assert build_policy(Run(stage.backbone, "tabletop", aux=stage.id), 4, stage=file)
    scores = score_stage(stage, data, file)["scores"]
    assert 0 <= scores["tabletop-actions/action"]["score"] <= 1
    assert 0 <= scores["tabletop-actions/tokens"]["score"] <= 1


def test_token_accuracy_is_of_each_answer_with_its_end():
    model = build(STAGE, 300, None).eval()
    image = np.random.default_rng(0).integers(0, 256, (2, 112, 112, 3), np.uint8)
    asked = ["is it red", "where"]
    batch = model.prepare_text(image, asked, [(299, 260), (270,)])
    likeliest = model.lm_logits(batch).argmax(-1)
    labels = batch["labels"]
    by_hand = [
        [
            int(likeliest[row, place - 1]) == label
            for place, label in enumerate(labels[row].tolist())
            if label >= 0
        ]
        for row in range(2)
    ]
    assert [len(each) for each in by_hand] == [3, 2]
    assert model.token_accuracy(batch) == pytest.approx([np.mean(each) for each in by_hand])
    (said,) = model.answers(image[:1], asked[:1], 2)
    own = model.prepare_text(image[:1], asked[:1], [said])
    assert model.token_accuracy(own)[0] >= len(said) / (len(said) + 1)


def test_actions_need_their_demonstrations():
    with pytest.raises(ValueError, match="no folder was named for tabletop-actions"):
        prepare_questions(TINY_STAGES["fast-vision-frozen"], {}, lambda name, data: None)
