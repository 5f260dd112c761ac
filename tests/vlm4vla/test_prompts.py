"""Prompts token by token against A.2.3, and the batches made of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.vlm4vla.policy_helpers import ARCHITECTURES, TEXTS, images, shared
from vlm4vla.backbones import backbone
from vlm4vla.families import family_of
from vlm4vla.prompts import Prompter
from vlm4vla.recipe import RECIPES
from vlm4vla.tokenizers import Tokenizer, qwen_tokenizer, tiny_tokenizer, tokenizer_of

IMAGE = 4

TINY = {
    ("paligemma", "paper"): "IMG <bos> pick up cube \n",
    ("paligemma", "official"): "IMG <bos> pick up cube \n",
    ("kosmos2", "paper"): "<s> <image> IMG </image> <p> pick up cube \n </p>",
    ("kosmos2", "official"): (
        "IMG <s> <image> <unk> i m a g e <unk> p a d <unk> </image> <p> pick up cube \n </p>"
    ),
    ("qwen_vl", "paper"): (
        "<|im_start|> system \n you are a helpful assistant . <|im_end|> \n "
        "<|im_start|> user \n <|vision_start|> IMG <|vision_end|> "
        "what action should the robotic arm take to pick up cube <|im_end|> \n "
        "<|im_start|> assistant \n"
    ),
    ("qwen_vl", "short"): ("<|im_start|> <|vision_start|> IMG <|vision_end|> pick up cube \n"),
}
TINY_ROWS = {
    "paligemma": "tiny-paligemma-1",
    "kosmos2": "tiny-kosmos-2",
    "qwen_vl": "tiny-qwen3vl-2b",
}


def prompter(row: str, tokenizer: Tokenizer, style: str, profile: str = "paper") -> Prompter:
    family = family_of(backbone(row))
    template = family.template(style, RECIPES[profile])
    return Prompter(family, tokenizer, template, IMAGE, context=512)


@pytest.mark.parametrize(("family", "variant"), TINY)
def test_tiny_prompts_are_the_papers(family: str, variant: str) -> None:
    tokenizer = tiny_tokenizer()
    style = "short" if variant == "short" else "native"
    profile = "official" if variant == "official" else "paper"
    made = prompter(TINY_ROWS[family], tokenizer, style, profile)
    image = " ".join([family_of(backbone(TINY_ROWS[family])).image_token] * IMAGE)
    expected = TINY[family, variant].replace("IMG", image)
    assert tokenizer.decode(list(made.tokens("pick up cube"))) == expected


QWEN_LONG = [
    # <|im_start|> system \n You are a helpful assistant . <|im_end|> \n
    *(151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198),
    # <|im_start|> user \n <|vision_start|> image <|vision_end|>
    *(151644, 872, 198, 151652, *[151655] * IMAGE, 151653),
    # What action should the robotic arm take to pick up cube <|im_end|> \n
    *(3838, 1917, 1265, 279, 58001, 6773, 1896, 311, 3735, 705, 23739, 151645, 198),
    # <|im_start|> assistant \n
    *(151644, 77091, 198),
]
QWEN_SHORT = [151644, 151652, *[151655] * IMAGE, 151653, 29245, 705, 23739, 198]


@pytest.mark.parametrize(("style", "expected"), [("native", QWEN_LONG), ("short", QWEN_SHORT)])
def test_qwen_prompts_in_its_real_vocabulary(style: str, expected: list[int]) -> None:
    made = prompter("qwen3vl-2b", qwen_tokenizer(), style)
    assert list(made.tokens("pick up cube")) == expected


def test_qwen_rows_find_their_vocabulary_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert tokenizer_of(backbone("qwen2.5vl-7b")).token_id("<|image_pad|>") == 151655


def test_query_follows_the_last_real_token() -> None:
    policy = shared("tiny-qwen3vl-2b")
    batch = policy.prepare(images(3), TEXTS)
    lengths = [len(policy.prompter.tokens(text)) for text in TEXTS]
    assert batch["query_index"].tolist() == lengths
    assert batch["attention_mask"].sum(1).tolist() == [n + 1 for n in lengths]
    assert batch["image_mask"].sum(1).tolist() == [16] * 3


def test_official_query_follows_the_padding() -> None:
    policy = shared("tiny-qwen3vl-2b", "official")
    batch = policy.prepare(images(3), TEXTS)
    last = batch["input_ids"].shape[1] - 1
    assert batch["query_index"].tolist() == [last] * 3
    lengths = [len(policy.prompter.tokens(text)) for text in TEXTS]
    assert batch["attention_mask"].sum(1).tolist() == [n + 1 for n in lengths]
    assert bool((batch["attention_mask"][:, last] == 1).all())


def test_official_sees_four_times_the_image() -> None:
    policy = shared("tiny-qwen2.5vl-3b", "official")
    assert policy.input_px(224) == 224
    assert policy.prepare(images(1, 224), TEXTS[:1])["image_mask"].sum() == 64


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_labels_cover_the_answer_and_its_end(name: str) -> None:
    policy = shared(name)
    batch = policy.prepare_text(images(2), ["what colour is the block", "is it red"], ["red", "no"])
    tokenizer = tiny_tokenizer()
    end = policy.questioner.template.end
    for row, answer in enumerate(("red", "no")):
        labels = batch["labels"][row]
        assert tokenizer.decode(labels[labels >= 0].tolist()) == f"{answer} {end}"
        first = int((labels >= 0).int().argmax())
        assert first == batch["last_index"][row] + 1
    assert torch.equal(
        batch["labels"][batch["labels"] >= 0], batch["input_ids"][batch["labels"] >= 0]
    )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_language_path_scores_every_token_and_ignores_padding(name: str) -> None:
    policy = shared(name)
    question = ["what colour is the block"]
    with torch.no_grad():
        short = policy.lm_logits(policy.prepare_text(images(1), question))
        long = policy.lm_logits(policy.prepare_text(images(1), question, length=100))
    assert short.shape == (1, short.shape[1], 256)
    torch.testing.assert_close(short, long[:, : short.shape[1]], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_answers_can_be_learned(name: str) -> None:
    from tests.vlm4vla.policy_helpers import fresh

    policy = fresh(name)
    batch = policy.prepare_text(
        images(2), ["what colour is it", "what colour is it"], ["red", "blue"]
    )
    optimiser = torch.optim.AdamW(policy.vlm.parameters(), lr=2e-3)
    losses = []
    for _ in range(60):
        loss, metrics = policy.text_loss(batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        if losses[-1] < 0.1 * losses[0]:
            break
    assert losses[-1] < 0.1 * losses[0]
    assert set(metrics) == {"text_loss", "text_accuracy"}


def test_any_instruction_has_tokens() -> None:
    ids = tiny_tokenizer().encode("Put BOTH moka pots on the stove (now)! 日本 <cell07>")
    assert ids
    assert max(ids) < 256
    assert tiny_tokenizer().decode(ids).endswith("<cell07>")


def test_too_long_an_instruction() -> None:
    policy = shared("tiny-paligemma-1")
    with pytest.raises(ValueError, match=r"needs \d+ tokens .* the 512 allowed: shorten"):
        policy.prepare(images(1), ["reach the red block " * 200])
    with pytest.raises(ValueError, match=r"than the 20 allowed.*`length`"):
        policy.prepare(images(1), ["reach the red block"], length=20)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros((1, 112, 112, 3), np.float32), "uint8 array of values 0..255, got float32"),
        (
            np.zeros((1, 3, 112, 112), np.uint8),
            r"\[batch, height, width, 3\].*got \[1, 3, 112, 112\]",
        ),
        (np.zeros((112, 112, 3), np.uint8), r"got \[112, 112, 3\]"),
        (np.zeros((2, 112, 112, 3), np.uint8), "2 images but 1 sentences"),
    ],
)
def test_wrong_images(wrong: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shared("tiny-paligemma-1").prepare(wrong, ["reach the red block"])


def test_answers_must_match_questions() -> None:
    with pytest.raises(ValueError, match="1 questions but 2 answers"):
        shared("tiny-paligemma-1").prepare_text(images(1), ["is it red"], ["yes", "no"])
