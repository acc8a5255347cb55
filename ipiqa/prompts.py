"""Prompts as CLIP reads them: byte-pair tokens, and which prompts are the same to it."""

import functools
import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch

CONTEXT_LENGTH = 77
_WORDS_END = CONTEXT_LENGTH - 2  # tokens of a prompt besides start and end
# Characters of a cleaned text that can matter are fewer: a token is of 32 bytes at most. A longer text is cut, as the
# time byte pairs take grows with the square of a word's length.
_LONGEST_TEXT = 4000


@functools.cache
def _tokenizer(context_length: int) -> Any:
    from open_clip.tokenizer import SimpleTokenizer

    return read_as_text(SimpleTokenizer(context_length=context_length))


def read_as_text(tokenizer: Any) -> Any:
    """Returns a tokenizer; open_clip's own is changed: a literal `<end_of_text>` is text, and time is bounded."""
    from open_clip.tokenizer import SimpleTokenizer

    if isinstance(tokenizer, SimpleTokenizer):
        clean: Any = tokenizer.clean_fn
        names = [tokenizer.decoder[number] for number in tokenizer.all_special_ids]

        def clean_fn(text: str) -> str:
            text = clean(text)[:_LONGEST_TEXT]
            for name in names:  # white space separates words and is no word: the same tokens, but not the special one
                text = text.replace(name, f"{name[0]} {name[1:]}")
            return text

        tokenizer.clean_fn = clean_fn
    return tokenizer


def tokenize(prompts: Sequence[str], context_length: int = CONTEXT_LENGTH) -> torch.Tensor:
    """Returns CLIP's token ids, (B, context_length) long: start, words, end, zeros; TypeError for one string.

    A prompt that is too long loses its last words and keeps the end token. Names of special tokens are plain words.
    """
    if isinstance(prompts, str):
        raise TypeError("prompts must be a list of texts, not one text")
    return _tokenizer(context_length)(list(prompts)).long()


def clean(prompt: str) -> str:
    """Returns a prompt as CLIP's tokenizer cleans it: encodings and HTML mended, white space single, lower case."""
    if prompt.isascii() and prompt.isprintable() and "&" not in prompt:  # nothing to mend: ten times as fast
        return " ".join(prompt.split()).lower()
    from open_clip.tokenizer import get_clean_fn

    return get_clean_fn("lower")(prompt)


def same_prompts(prompts: Sequence[str]) -> list[str]:
    """Returns for each prompt the first in sort order of those with equal tokens in the context, the same to CLIP."""
    text_of = {prompt: clean(prompt) for prompt in sorted(set(prompts), reverse=True)}
    prompt_of = {text: prompt for prompt, text in text_of.items()}  # cleaning is not idempotent: tokens need a prompt
    # A token is of one byte at least: texts of equal tokens begin with the same bytes. Only those need be tokenized.
    encode, sharing = _tokenizer(CONTEXT_LENGTH).encode, defaultdict(list)  # encode: words only, not cut to the context
    for text in prompt_of:
        sharing["".join(text.split()).encode()[:_WORDS_END]].append(text)
    key_of: dict[str, Any] = {text: text for text in prompt_of}
    for text in itertools.chain.from_iterable(texts for texts in sharing.values() if len(texts) > 1):
        key_of[text] = tuple(encode(prompt_of[text])[:_WORDS_END])
    first = {key_of[text]: prompt for prompt, text in text_of.items()}  # the last one set is the first in sort order
    return [first[key_of[text_of[prompt]]] for prompt in prompts]


@functools.lru_cache(1 << 18)
def _num_tokens(word: str) -> int:
    """Returns the number of tokens of what the tokenizer takes for a word."""
    tokenizer = _tokenizer(CONTEXT_LENGTH)
    return len(tokenizer.bpe("".join(tokenizer.byte_encoder[byte] for byte in word.encode())).split(" "))


def num_too_long(prompts: Sequence[str]) -> int:
    """Returns how many different prompts have more tokens than CLIP reads."""
    tokenizer, count = _tokenizer(CONTEXT_LENGTH), 0
    for prompt in dict.fromkeys(prompts):
        # a token is of one byte at least: a text of fewer bytes need not be tokenized, and others only be counted
        if len(clean(prompt).encode()) > _WORDS_END:
            count += sum(map(_num_tokens, tokenizer.pat.findall(tokenizer.clean_fn(prompt)))) > _WORDS_END
    return count


def describe(prompts: Sequence[str]) -> str:
    """Returns a line that counts the different prompts which CLIP does not read as their writer may think."""
    texts = {prompt: clean(prompt) for prompt in dict.fromkeys(prompts)}
    special = sum("<start_of_text>" in text or "<end_of_text>" in text for text in texts.values())
    read = f"{num_too_long(prompts)} prompts are longer than the {_WORDS_END} tokens that are read"
    return f"{read}, {special} hold the name of a special token, read as text"
