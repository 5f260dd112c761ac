"""FAST: packing is exact, rounding bounded, and its words are none that a prompt uses."""

import json

import numpy as np
import pytest

from envs.api import Demonstration
from vlm4vla.aux import fast_qa
from vlm4vla.aux.fast import Fast
from vlm4vla.aux.fast_qa import ActionWords, prompt_ids
from vlm4vla.backbones import backbone
from vlm4vla.data.normalise import Normaliser, Statistics
from vlm4vla.families import family_of
from vlm4vla.tokenizers import tokenizer_of

UNIT = Normaliser("identity", Statistics.of(np.array([[-1.0] * 7, [1.0] * 7])))


def smooth(count: int, length: int, seed: int = 0) -> np.ndarray:
    """Chunks of slow waves with a gripper at -1 or 1; float32 [count, length, 7]."""
    rng = np.random.default_rng(seed)
    time = np.arange(length)[None, :, None] / length
    rates, phases = rng.uniform(0.2, 1.0, (count, 1, 7)), rng.uniform(0, 6, (count, 1, 7))
    chunks = 0.9 * np.sin(2 * np.pi * rates * time + phases)
    chunks[..., 6] = np.where(rng.random((count, 1)) < 0.5, -1, 1)
    return chunks.astype(np.float32)


def fitted(length: int = 10, **options) -> Fast:
    return Fast.fit(smooth(300, length), UNIT, **options)


def test_coefficients_are_those_of_the_orthonormal_transform():
    # Two actions a, b give (a + b) / sqrt 2 and (a - b) / sqrt 2.
    fast = Fast.fit(smooth(50, 2), UNIT, scale=10)
    chunk = np.zeros((1, 2, 7), np.float32)
    chunk[0, :, 0], chunk[0, :, 1] = (0.5, 0.5), (1.0, -1.0)
    expected = [[7, 0, 0, 0, 0, 0, 0], [0, 14, 0, 0, 0, 0, 0]]
    assert fast.coefficients(chunk)[0].tolist() == expected


def test_without_merges_the_tokens_are_levels_lowest_frequency_first():
    fast = Fast.fit(smooth(50, 2), UNIT, scale=10, vocabulary=31)
    chunk = np.zeros((1, 2, 7), np.float32)
    chunk[0, :, 0] = 0.5
    assert fast.size == 31
    assert fast.encode(chunk) == [[15 + 7, *[15] * 13]]


@pytest.mark.parametrize("length", [1, 4, 10, 20])
@pytest.mark.parametrize("kind", ["smooth", "random", "ends", "constant"])
def test_any_chunk_keeps_its_coefficients_exactly(length, kind):
    rng = np.random.default_rng(1)
    chunks = {
        "smooth": smooth(20, length, seed=9),
        "random": rng.uniform(-1, 1, (20, length, 7)),
        "ends": rng.choice([-1.0, 1.0], (20, length, 7)),
        "constant": np.ones((2, length, 7)) * [[[1.0]], [[-1.0]]],
    }[kind].astype(np.float32)
    fast = fitted(length)
    tokens = fast.encode(chunks)
    assert np.array_equal(fast.unpack(tokens), fast.coefficients(chunks))
    # Each of the k coefficients of a dimension is off by half a level at most.
    again = fast.decode(tokens)
    rms = np.sqrt(((again - chunks) ** 2).mean(1))
    assert rms.max() <= 0.5 / fast.scale + 1e-6


def test_smooth_chunks_take_a_third_of_the_numbers_and_lose_less_than_a_hundredth():
    fast, chunks = fitted(20), smooth(50, 20, seed=3)
    tokens = fast.encode(chunks)
    assert np.mean([len(row) for row in tokens]) <= 140 / 3
    assert np.abs(fast.decode(tokens) - chunks).mean() <= 0.01 * 2


def test_a_constant_dimension_and_raw_units_survive():
    actions = smooth(1, 200)[0] * 0.05 + 0.3
    actions[:, 2], actions[:, 6] = 0.25, 1.0
    normaliser = Normaliser("quantile", Statistics.of(actions))
    chunks = fast_qa.whole_chunks(actions, 10)
    fast = Fast.fit(chunks, normaliser)
    again = fast.decode(fast.encode(chunks))
    assert np.allclose(again[..., 2], 0.25, atol=1e-6)
    assert np.abs(again - chunks)[..., [0, 1, 3, 4, 5]].mean() < 0.01 * 0.1


def test_files_bring_the_same_tokenizer_back(tmp_path):
    fast = fitted()
    fast.save(tmp_path)
    again, chunks = Fast.load(tmp_path), smooth(20, 10, seed=5)
    assert again.encode(chunks) == fast.encode(chunks)
    assert np.array_equal(again.decode(again.encode(chunks)), fast.decode(fast.encode(chunks)))
    assert json.loads((tmp_path / "fast.json").read_text())["chunk"] == 10
    (tmp_path / "bpe.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"bpe\.json is missing: .* fit one"):
        Fast.load(tmp_path)


def test_the_same_chunks_fit_the_same_tokenizer():
    assert fitted().packing.to_str() == fitted().packing.to_str()


def test_errors_name_the_cause_and_the_remedy():
    fast = fitted()
    with pytest.raises(ValueError, match="cannot hold the 65 levels of chunks of 10 at scale 10"):
        fitted(vocabulary=50)
    with pytest.raises(ValueError, match="chunks of 10 actions, not 4: fit one"):
        fast.encode(smooth(1, 4))
    with pytest.raises(ValueError, match=r"shape \[3, 7\]: pass"):
        fast.encode(smooth(1, 3)[0])
    with pytest.raises(ValueError, match="not finite"):
        fast.encode(np.full((1, 10, 7), np.nan, np.float32))
    with pytest.raises(ValueError, match="1 tokens hold 1 coefficients, but a chunk of 10"):
        fast.decode([[0]])
    with pytest.raises(ValueError, match="token 5000 is none of this FAST tokenizer's"):
        fast.decode([[5000]])


# -- in a model's vocabulary


def demonstration(length: int = 30) -> Demonstration:
    images = np.random.default_rng(0).integers(0, 256, (length, 112, 112, 3), np.uint8)
    return Demonstration("reach the red block", images, smooth(1, length)[0], True, length)


def test_only_tiny_vocabularies_grow_for_more_words():
    ends = {
        name: family_of(backbone(name)).action_ids_end(backbone(name), 1024)
        for name in ("qwen3vl-4b", "paligemma-1", "tiny-qwen3vl-4b", "tiny-paligemma-1")
    }
    assert list(ends.values()) == [151_936, 257_152, 256 + 1024, 256 + 1024]


def words_of(name: str, fast: Fast) -> ActionWords:
    return ActionWords.of(fast, backbone(name), tokenizer_of(backbone(name)))


def test_tiny_words_come_after_the_whole_vocabulary():
    words = words_of("tiny-qwen3vl-2b", fitted(4))
    assert words.ids == tuple(range(256 + words.fast.size - 1, 255, -1))


def test_qwens_words_leave_out_those_of_its_prompts():
    fast = fitted(20)
    words, row = words_of("qwen3vl-4b", fast), backbone("qwen3vl-4b")
    tokenizer = tokenizer_of(row)
    names = ("<|image_pad|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|vision_end|>")
    taken = {tokenizer.token_id(name) for name in names}
    # The vocabulary's last 1024 ids hold 293 that mean nothing yet, and those of the chat.
    assert words.ids[0] == 151_935 and fast.size > 293
    assert taken <= prompt_ids(row, tokenizer) and not taken & set(words.ids)
    assert len(set(words.ids)) == fast.size


def test_questions_are_about_frames_that_a_whole_chunk_follows():
    words = words_of("tiny-qwen3vl-2b", fitted(4))
    demo = demonstration(30)
    asked = list(fast_qa.samples([demo], words, every=5))
    assert [sample.where for sample in asked] == [
        f"demonstration 0: frame {frame}" for frame in (0, 5, 10, 15, 20, 25)
    ]
    assert asked[0].question == "What action should the robotic arm take to reach the red block"
    assert {sample.kind for sample in asked} == {"action"}
    assert np.array_equal(asked[2].picture(), demo.images[10])
    heard = words.actions([sample.answer for sample in asked])
    assert np.abs(heard[2] - demo.actions[10:14]).max() < 0.2
    assert list(fast_qa.samples([demonstration(3)], words)) == []


def test_other_words_are_no_actions():
    words = words_of("tiny-qwen3vl-2b", fitted(4))
    with pytest.raises(ValueError, match="word 3 stands for no action"):
        words.actions([(3,)])
