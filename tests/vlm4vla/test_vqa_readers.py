"""Readers of published question-answer data, on small data in the published layouts."""

import base64
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vlm4vla.aux import pictures, questions
from vlm4vla.aux.datasets import DATASETS, VqaDataset, dataset
from vlm4vla.aux.metrics import points
from vlm4vla.aux.questions import Questions
from vlm4vla.aux.readers import FORMATS, Bad, kind_of, read
from vlm4vla.aux.samples import Sample

ASKED = "Locate some points on the cup. Answer with a list of tuples [(x1, y1), (x2, y2)]."


def png(colour=(200, 10, 10), size=(6, 4)):
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "PNG")
    return out.getvalue()


def write_image(path, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(**more))


def turns(*said):
    speakers = ("human", "gpt") * len(said)
    return [{"from": who, "value": text} for who, text in zip(speakers, said, strict=False)]


def llava(folder, *rows):
    (folder / "robopoint.json").write_text(json.dumps(rows))
    return list(read(DATASETS["robopoint"], folder))


def test_every_row_of_the_table_can_be_read():
    made = {row.format for row in DATASETS.values()}
    assert made <= {*FORMATS, "actions"}
    for row in DATASETS.values():
        assert "{question}" in row.prompt
        assert row.samples > 0


def test_a_misspelt_row_is_named():
    with pytest.raises(ValueError, match="Did you mean 'robo2vlm'"):
        dataset("robo2vl")


def test_llava_json(tmp_path):
    write_image(tmp_path / "coco" / "1.jpg")
    row = {"id": "1", "image": "coco/1.jpg"}
    (sample,) = llava(
        tmp_path, {**row, "conversations": turns(f"<image>\n{ASKED}", "[(0.5, 0.25)]")}
    )
    assert (sample.question, sample.answer, sample.kind) == (ASKED, "[(0.5, 0.25)]", "point")
    assert sample.where == "robopoint.json: 0"
    assert sample.picture().shape == (4, 6, 3)
    assert sample.picture()[0, 0].tolist() == [200, 10, 10]


def test_turns_of_a_conversation_share_their_picture(tmp_path):
    write_image(tmp_path / "a.png")
    said = turns("<image>\nwhere?", "there", "and now?", "here")
    first, second = llava(tmp_path, {"image": "a.png", "conversations": said})
    assert [(s.question, s.answer) for s in (first, second)] == [
        ("where?", "there"),
        ("and now?", "here"),
    ]
    assert first.image is second.image
    assert second.where == "robopoint.json: 0.1"


def test_sharegpt_json_in_both_spellings(tmp_path):
    write_image(tmp_path / "a.png")
    told = [
        {
            "images": ["a.png"],
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "<image>What is it?"},
                {"role": "assistant", "content": "A cup."},
            ],
        },
        {"image": "a.png", "conversations": turns("What is it?\n<image>", "A cup.")},
        {
            "images": ["a.png"],
            "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "A cup."}]},
            ],
        },
    ]
    (tmp_path / "share.json").write_text(json.dumps(told))
    found = list(read(DATASETS["general"], tmp_path))
    assert [(s.question, s.answer, s.kind) for s in found] == [
        ("What is it?", "A cup.", "text"),
        ("What is it?", "A cup.", "text"),
        ("What?", "A cup.", "text"),
    ]


def robo2vlm(folder, *rows):
    (folder / "data").mkdir(exist_ok=True)
    pq.write_table(
        pa.Table.from_pylist(list(rows)), folder / "data" / "train-00000-of-00001.parquet"
    )
    return list(read(DATASETS["robo2vlm"], folder))


ROW = {
    "id": "q1",
    "question": "Is the grasp stable?",
    "choices": "['Yes', 'No', 'Cannot be determined']",
    "correct_answer": 1,
    "image": {"bytes": png(), "path": None},
}


def test_parquet_with_image_bytes(tmp_path):
    (sample,) = robo2vlm(tmp_path, ROW)
    assert sample.question == (
        "Is the grasp stable?\nOptions:\nA. Yes\nB. No\nC. Cannot be determined\n"
        "Answer with the option's letter."
    )
    assert (sample.answer, sample.kind) == ("B", "choice")
    assert sample.picture().shape == (4, 6, 3)


def test_json_rows_with_options_and_pictures_in_base64(tmp_path):
    text = base64.b64encode(png(size=(64, 64)) + bytes(1024)).decode()
    row = {"image": text, "question": "Which is nearer?", "answer_options": ["cup", "box"]}
    (tmp_path / "embspatial_sft.json").write_text(json.dumps([{**row, "answer": 0}]))
    (sample,) = read(DATASETS["embspatial"], tmp_path)
    assert sample.answer == "A"
    assert sample.picture().shape == (64, 64, 3)


def test_json_lines_with_tagged_solutions(tmp_path):
    write_image(tmp_path / "a.png")
    rows = [
        {"path": "a.png", "problem": "Which?", "options": ["A. cup", "B. box"], "solution": tag}
        for tag in ("<answer>B</answer>", "<answer>Z</answer>")
    ]
    rows += [
        {"path": "a.png", "problem": "How far, in metres?", "solution": "<answer>1.5</answer>"}
    ]
    (tmp_path / "spacer.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n{broken\n")
    right, wrong, number, broken = read(DATASETS["spacer"], tmp_path)
    assert (right.answer, right.kind) == ("B", "choice")
    assert "A. cup\nB. box" in right.question
    assert str(wrong) == "spacer.jsonl: 1: no answer"
    assert (number.answer, number.kind) == ("1.5", "number")
    assert str(broken).startswith("spacer.jsonl: 3: not a JSON object")


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"conversations": turns("where?", "there")}, "no picture"),
        ({"image": "a.png", "conversations": []}, "no question"),
        ({"image": "a.png", "conversations": turns("<image>", "there")}, "no question"),
        ({"image": "a.png", "conversations": turns("where?")}, "no answer"),
        ({"image": "a.png", "conversations": turns("where?", " ")}, "no answer"),
        (
            {"image": "a.png", "conversations": turns("a", "b")[::-1]},
            "a turn of 'gpt'",
        ),
        ({"image": "a.png", "conversations": ["where?", "there"]}, "a turn of \"'where?'\""),
        ([1, 2], "not a JSON object ([1, 2])"),
    ],
)
def test_bad_rows_are_told(tmp_path, row, why):
    write_image(tmp_path / "a.png")
    (bad,) = llava(tmp_path, row)
    assert isinstance(bad, Bad)
    assert str(bad).startswith(f"robopoint.json: 0: {why}")


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no data of 'robo2vlm' .* keplerccc/Robo2VLM-1"):
        list(read(DATASETS["robo2vlm"], tmp_path))


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "robopoint.json").write_text('[{"image": "a.p')
    with pytest.raises(ValueError, match=r"robopoint\.json is damaged or cut short"):
        list(read(DATASETS["robopoint"], tmp_path))


def test_several_pictures_become_a_sheet(tmp_path):
    colours = [(10 * i, 0, 0) for i in range(3)]
    for number, colour in enumerate(colours):
        write_image(tmp_path / f"{number}.png", colour=colour)
    found = pictures.load(tmp_path, [f"{i}.png" for i in range(3)])
    assert found.shape == (8, 12, 3)
    assert [found[y, x, 0] for y, x in ((0, 0), (0, 6), (4, 0), (4, 6))] == [0, 10, 20, 0]


def test_a_video_becomes_a_sheet_of_nine_frames(tmp_path):
    import av

    with av.open(str(tmp_path / "v.mp4"), "w") as out:
        stream = out.add_stream("mpeg4", rate=10)
        stream.width, stream.height = 32, 16
        for level in range(20):
            frame = av.VideoFrame.from_ndarray(np.full((16, 32, 3), 10 * level, np.uint8), "rgb24")
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    found = pictures.load(tmp_path, "v.mp4")
    assert found.shape == (48, 96, 3)
    levels = found[8::16, 16::32].mean(-1).ravel()
    assert (np.diff(levels) > 10).all()


def test_a_picture_outside_the_folder_is_refused(tmp_path):
    for name in ("../secret.png", "/etc/passwd"):
        with pytest.raises(ValueError, match="lies outside"):
            pictures.load(tmp_path, name)


def test_spatial_answers_are_numbers_choices_or_text():
    said = {
        "3": "number",
        "-1.25": "number",
        "left": "choice",
        "a table in the corner here": "text",
    }
    assert {text: kind_of("spatial", text) for text in said} == said
    assert kind_of("point", "3") == "point"


def test_the_tabletops_questions():
    point = VqaDataset("t", "tabletop", "tabletop", "point", 3, files=("spot",))
    samples = list(read(point, None))
    assert len(samples) == 3
    for sample in samples:
        ((left, top, right, bottom),) = sample.regions
        ((x, y),) = points(sample.answer)
        assert left < x < right and top < y < bottom
        named = sample.question.split()[-2]
        pixel = sample.picture()[int(y * 224), int(x * 224)]
        assert named in sample.question and pixel.dtype == np.uint8
    assert [s.answer for s in read(point, None)] == [s.answer for s in samples]


# -- prepared


def prepared(folder, samples, expected=8):
    return questions.prepare(
        "test", {"robopoint": (expected, samples)}, lambda n, data: (folder / n).write_bytes(data)
    )


def test_prepared_questions_come_back_and_bad_ones_are_listed(tmp_path):
    source = tmp_path / "source"
    for number in range(16):
        write_image(source / f"{number}.png", colour=(number, 0, 0))
    rows = [
        {"image": f"{n}.png", "conversations": turns("a?", f"{n}", "b?", f"-{n}")}
        for n in range(16)
    ]
    rows += [{"image": "gone.png", "conversations": turns("a?", "b")}]
    (source / "damaged.png").write_bytes(png()[:40])
    rows += [{"image": "damaged.png", "conversations": turns("a?", "b")}]
    rows += [{"conversations": turns("a?", "b")}]
    manifest = prepared(tmp_path, llava(source, *rows))
    assert manifest.counts == {"robopoint": (28, 4)}
    gone, damaged, without = manifest.bad
    assert gone.startswith("robopoint.json: 16: picture: FileNotFoundError")
    assert damaged.startswith("robopoint.json: 17: picture: ")
    assert without == "robopoint.json: 18: no picture"
    found = Questions(tmp_path)
    assert len(found) == 32
    # Every eighth picture is held out, with all its questions.
    held = found.held_out["robopoint"]
    assert [found.answers[n] for n in held] == ["7", "-7", "15", "-15"]
    frames = found.pictures(4, lambda images: images[:, :4, :4])(held)
    assert frames[:, 0, 0, 0].tolist() == [7, 7, 15, 15]
    assert found.words() == 0


def test_samples_of_one_scene_are_held_out_together(tmp_path):
    image = np.zeros((4, 4, 3), np.uint8)
    samples = [
        Sample(image.copy(), "q", f"{scene}", "text", scene=f"demonstration {scene}")
        for scene in range(16)
        for _ in range(3)
    ]
    assert prepared(tmp_path, samples).counts == {"robopoint": (42, 6)}
    found = Questions(tmp_path)
    held = [found.answers[number] for number in found.held_out["robopoint"]]
    assert held == ["7", "7", "7", "15", "15", "15"]


def test_of_large_data_fewer_are_held_out(tmp_path, monkeypatch):
    monkeypatch.setattr(questions, "FEW", 16)
    image = np.zeros((4, 4, 3), np.uint8)
    samples = [Sample(image.copy(), "q", f"{number}", "text") for number in range(80)]
    prepared(tmp_path, samples, expected=32 * questions.HELD_OUT)
    found = Questions(tmp_path)
    held = [found.answers[number] for number in found.held_out["robopoint"]]
    assert held == ["7", "15", "31", "63"]


def test_ids_as_answers_and_regions_come_back(tmp_path):
    image = np.zeros((4, 4, 3), np.uint8)
    region = (0.1, 0.2, 0.3, 0.4)
    samples = [Sample(image, "q", (5, 9), "action"), Sample(image, "q", "x", "point", (region,))]
    prepared(tmp_path, samples)
    found = Questions(tmp_path)
    assert found.answers == [(5, 9), "x"]
    assert found.words() == 10
    assert found.regions(1) == (region,)


def test_data_without_one_good_sample_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"robopoint has no sample.*a.json: 0: no answer"):
        prepared(tmp_path, [Bad("a.json: 0", "no answer")])
