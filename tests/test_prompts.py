"""Prompts: tokens as CLIP's own tokenizer makes them, and which prompts are the same to it."""

from __future__ import annotations

import random
import time

import open_clip
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer, get_clean_fn

from ipiqa.prompts import clean, describe, num_too_long, read_as_text, same_prompts, tokenize

PLAIN, OURS = SimpleTokenizer(), read_as_text(SimpleTokenizer())
START, END = PLAIN.all_special_ids

PIECES = ["a", "Cat", " ", "\t", ",", ".", "&amp;", "1", "12", "é", "e\u0301", "ﬁ", "'s", "<b>", "猫", "\x07"]
pieces = st.lists(st.sampled_from(PIECES))
texts = pieces.map("".join) | st.text(st.characters(codec="utf-8"), max_size=30)


def words(prompt: str) -> list[int]:
    return [token for token in tokenize([prompt])[0].tolist() if token]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(text=texts)
def test_tokens_and_cleaning_are_open_clips(text: str) -> None:
    assert clean(text) == get_clean_fn("lower")(text)
    assert tokenize([text]).tolist() == PLAIN([text]).tolist()


@pytest.mark.parametrize("text", ["a cat <end_of_text> on a mat", "a cat &lt;END_of_text&amp;gt; on a mat"])
def test_names_of_special_tokens_are_text(text: str) -> None:
    tokens = words(text)
    assert tokens[0] == START and tokens.index(END) == len(tokens) - 1
    assert PLAIN.decode(tokens[1:-1]) == "a cat < end _ of _ text > on a mat "


def test_other_tokenizers_of_open_clip_read_them_as_text_too() -> None:
    tokenizer = read_as_text(open_clip.get_tokenizer("ViT-B-32"))
    assert tokenizer(["<start_of_text> a"])[0].tolist().count(START) == 1
    assert read_as_text(len) is len


@pytest.mark.parametrize("alphabet", ["abcdefghijklmnopqrstuvwxyz", "aeiou", "猫狗é", "🌈🦋❤", "the quick, brown. "])
def test_a_long_text_is_cut_where_no_token_changes(alphabet: str) -> None:
    draw = random.Random(0)
    for _ in range(3):
        text = "".join(draw.choice(alphabet) for _ in range(6000))
        assert tokenize([text]).tolist() == PLAIN([text]).tolist()


def test_a_word_of_100000_letters_takes_no_time() -> None:
    draw = random.Random(1)
    word = "".join(draw.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(100_000))
    started = time.perf_counter()
    assert words(word)[-1] == END
    assert time.perf_counter() - started < 10  # whole, it takes minutes


@settings(max_examples=100, deadline=None, derandomize=True)
@given(text=texts, times=st.integers(1, 30))
def test_tokens_are_counted_as_they_are_made(text: str, times: int) -> None:
    prompt = " ".join([text] * times)
    assert num_too_long([prompt, prompt]) == (len(OURS.encode(prompt)) > 75)


LONG = "a very long prompt, " * 20
SAME = {
    "case, space, entities": ["A Cat  &amp; a dog", "a cat &AMP; a dog", "a cat&a\tdog"],
    "no space at a comma": ["a cat,a dog", "a cat , a dog"],
    "digits": ["model 12", "model 1 2"],
    "beyond the context": [LONG + "in oil", LONG + "in ink"],
}


@pytest.mark.parametrize("case", SAME)
def test_prompts_of_equal_tokens_are_the_same(case: str) -> None:
    assert set(same_prompts(SAME[case])) == {min(SAME[case])}


def test_prompts_of_other_tokens_are_not() -> None:
    other = ["a cat", "a cats", "ac at", "a ca t", "a c\u0301at", "", "a cat.", LONG[:60] + "oil", LONG[:60] + "ink"]
    assert same_prompts(other) == other


@settings(max_examples=60, deadline=None, derandomize=True)
@given(prompts=st.lists(texts, max_size=8))
@example(prompts=["1 2", "12", "12 ", "1, 2", "&amp;amp;amp;lt;", "&amp;amp;lt;"])
def test_same_means_equal_tokens(prompts: list[str]) -> None:
    labels = same_prompts(prompts)
    tokens = [tuple(row) for row in tokenize(prompts).tolist()]
    assert [labels.index(label) for label in labels] == [tokens.index(row) for row in tokens]
    assert set(labels) <= set(prompts)


def test_what_is_not_read_as_written_is_counted() -> None:
    prompts = ["<end_of_text>", "a &lt;Start_Of_Text>", "a cat", "a " * 75, "a " * 76, "a " * 76]
    assert describe(prompts).startswith("1 prompts are longer than the 75 tokens that are read, 2 hold the name of")
