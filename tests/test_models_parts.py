"""Encoders, fusion and heads on a tiny CLIP: exactness of the fast paths, what trains, what loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from ipiqa import registry
from ipiqa.engine.predict import PromptCache, predict
from ipiqa.errors import ConfigError, DataError
from ipiqa.models.bundle import load_model
from ipiqa.models.heads import LinearHead, MLPHead
from ipiqa.models.pooling import AttentionPool, resize_positions
from ipiqa.models.towers.clip_image import ImageEncoder, ResNetSizes
from ipiqa.models.towers.clip_text import PromptEncoder, TextSizes
from ipiqa.prompts import tokenize

SIZES = TextSizes(width=32, layers=2, heads=2, embed_dim=16)
PROMPTS = ["a red circle", "two blue squares above a tree, oil painting", "a red circle", ""]


def text_encoder(freeze: str = "none", qa_token: str = "none", train_embeddings: bool = False) -> PromptEncoder:
    torch.manual_seed(0)
    return PromptEncoder(SIZES, freeze=freeze, qa_token=qa_token, train_embeddings=train_embeddings)  # type: ignore[arg-type]


def tiny_section(**changes: Any) -> dict[str, Any]:
    section: dict[str, Any] = {
        "name": "ipiqa",
        "image_encoder": {"name": "clip_resnet", "layers": [1, 1, 1, 1], "width": 8, "embed_dim": 16},
        "prompt_encoder": {"name": "clip_text", "width": 32, "layers": 2, "heads": 2, "embed_dim": 16},
        "fusion": {"name": "cross_attention"},
        "head": {"name": "mlp", "dropout": 0.0},
    }
    for key, value in changes.items():
        section[key] = (
            {**section[key], **value} if isinstance(section.get(key), dict) and "name" not in value else value
        )
    return section


def build(section: dict[str, Any], image_size: int = 64, num_targets: int = 2) -> nn.Module:
    torch.manual_seed(0)
    resolved = registry.resolve("model", section, "model")
    return registry.build("model", resolved, "model", {"image_size": image_size, "num_targets": num_targets})


# --- pooling -----------------------------------------------------------------------------------------------------


def plain_pool(pool: AttentionPool, token_map: torch.Tensor, query: torch.Tensor | None) -> torch.Tensor:
    """Keys and values for every token, through PyTorch's own attention: what the single-query path must equal."""
    x = token_map.flatten(2).permute(2, 0, 1)
    x = torch.cat([x.mean(dim=0, keepdim=True), x]) + pool.positional_embedding[:, None]
    query = x[:1] if query is None else query[None]
    key, value, q = pool.k_proj(x), pool.v_proj(x), pool.q_proj(query)

    def split(t: torch.Tensor) -> torch.Tensor:
        return t.unflatten(2, (pool.heads, -1)).permute(1, 2, 0, 3)

    out = functional.scaled_dot_product_attention(split(q), split(key), split(value))
    return pool.c_proj(out.permute(2, 0, 1, 3).flatten(2)[0])


@pytest.mark.parametrize("with_query", [False, True])
def test_single_query_pool_equals_full_attention_and_so_do_its_gradients(with_query: bool) -> None:
    torch.manual_seed(1)
    pool = AttentionPool(
        channels=64, query_dim=24 if with_query else 64, embed_dim=16, heads=4, num_positions=10
    ).double()
    token_map = torch.randn(3, 64, 3, 3, dtype=torch.float64)
    query = torch.randn(3, 24, dtype=torch.float64) if with_query else None
    found, expected = pool(token_map, query), plain_pool(pool, token_map, query)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)  # softmax runs in fp32
    wanted = [p for n, p in pool.named_parameters() if n != "k_proj.bias"]
    got = torch.autograd.grad(found.square().sum(), wanted)
    want = torch.autograd.grad(expected.square().sum(), wanted)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-5, atol=1e-6)


def test_every_pool_parameter_receives_a_gradient() -> None:
    pool = AttentionPool(channels=64, query_dim=64, embed_dim=16, heads=4, num_positions=5)
    pool(torch.randn(2, 64, 2, 2)).sum().backward()
    assert [n for n, p in pool.named_parameters() if p.grad is None] == []


def test_positions_are_resized_bicubically_and_the_first_row_is_kept() -> None:
    positions = torch.randn(50, 8)
    resized = resize_positions(positions, (16, 16))
    assert resized.shape == (257, 8)
    assert torch.equal(resized[0], positions[0])
    grid = positions[1:].T.reshape(1, 8, 7, 7)
    expected = functional.interpolate(grid, (16, 16), mode="bicubic", align_corners=False)[0, :, 3, 5]
    torch.testing.assert_close(resized[1 + 3 * 16 + 5], expected)
    assert resize_positions(positions, (7, 7)) is positions


# --- prompts -----------------------------------------------------------------------------------------------------


def plain_features(encoder: PromptEncoder, tokens: torch.Tensor) -> torch.Tensor:
    """Full context, every row for itself."""
    x = encoder.token_embedding(tokens) + encoder.positional_embedding
    x = encoder.transformer(x, attn_mask=torch.full((77, 77), float("-inf")).triu_(1))
    return encoder.ln_final(x)[torch.arange(len(x)), tokens.argmax(-1)] @ encoder.text_projection


# Long enough to be encoded in groups of like length, and in an order that the groups must restore.
MANY = [" ".join(["tree"] * (7 * i % 23)) for i in range(23)] + PROMPTS


@pytest.mark.parametrize("prompts", [PROMPTS, MANY], ids=["few", "many"])
def test_trimmed_distinct_prompts_equal_the_plain_path(prompts: list[str]) -> None:
    encoder = text_encoder(train_embeddings=True)
    tokens = tokenize(prompts)
    found, expected = encoder(prompts), plain_features(encoder, tokens)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(found[-4], found[-2])
    found.square().sum().backward()
    grads = {n: p.grad.clone() for n, p in encoder.named_parameters() if p.grad is not None}
    encoder.zero_grad()
    expected.square().sum().backward()
    wanted = {n: p.grad for n, p in encoder.named_parameters() if p.requires_grad}
    assert grads.keys() == wanted.keys()
    for name, grad in wanted.items():
        torch.testing.assert_close(grads[name], grad, rtol=1e-3, atol=1e-4)


def test_prompts_are_encoded_in_groups_of_like_length(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = text_encoder()
    shapes: list[tuple[int, ...]] = []
    monkeypatch.setattr(encoder.transformer, "forward", lambda x, attn_mask: shapes.append(tuple(x.shape)) or x)
    encoder(MANY)
    assert len(shapes) == 3 and sum(shape[0] for shape in shapes) == len(set(MANY))
    assert shapes[0][1] < shapes[1][1] < shapes[2][1]


def test_longest_prompt_keeps_its_end_token_in_every_mode() -> None:
    long = ["word " * 100]
    assert tokenize(long)[0, 76] == 49407
    for qa in ("none", "prefix", "suffix"):
        assert text_encoder("none", qa)([*long, "short"]).shape == (2, 16)


@pytest.mark.parametrize("position", ["prefix", "suffix"])
def test_qa_token_stands_where_it_should(position: str) -> None:
    encoder = text_encoder(qa_token=position)
    tokens = tokenize(["a red circle"])
    end = tokens.argmax(-1)
    length = int(end) + 1
    x, new_end = encoder._with_qa(tokens[:, :length], end)
    words = encoder.token_embedding(tokens[0, :length])
    at = 1 if position == "prefix" else length - 1
    expected = torch.cat([words[:at], encoder.qa_embedding[None], words[at:]])
    torch.testing.assert_close(x[0], expected)
    assert new_end.item() == end.item() + 1


@pytest.mark.parametrize(
    ("freeze", "qa_token", "train_embeddings", "expected"),
    [
        ("reference", "none", True, {"token_embedding.weight", "positional_embedding", "text_projection"}),
        ("reference", "none", False, {"positional_embedding", "text_projection"}),
        ("all", "suffix", False, {"qa_embedding"}),
        ("all", "none", True, {"token_embedding.weight"}),
        ("all", "none", False, set()),
    ],
)
def test_exactly_the_intended_prompt_parameters_train(
    freeze: str, qa_token: str, train_embeddings: bool, expected: set[str]
) -> None:
    encoder = text_encoder(freeze, qa_token, train_embeddings)
    before = {n: p.detach().clone() for n, p in encoder.named_parameters()}
    trained = [p for p in encoder.parameters() if p.requires_grad]
    if trained:
        optimizer = torch.optim.AdamW(trained, lr=0.1)
        encoder(PROMPTS).square().sum().backward()
        optimizer.step()
    moved = {n for n, p in encoder.named_parameters() if not torch.equal(p, before[n])}
    assert moved == expected


def counted(encoder: PromptEncoder, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Returns a list to which every pass through the transformer adds its number of prompts."""
    whole, calls = encoder.transformer.forward, []
    monkeypatch.setattr(
        encoder.transformer, "forward", lambda x, attn_mask: calls.append(len(x)) or whole(x, attn_mask)
    )
    return calls


@pytest.mark.parametrize(("freeze", "dtype"), [("none", torch.bfloat16), ("all", torch.float32)])
def test_a_prompt_cache_encodes_each_prompt_once(
    freeze: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, tokens = text_encoder(freeze), tokenize(PROMPTS)
    expected, calls = encoder(PROMPTS), counted(encoder, monkeypatch)
    cache = PromptCache(encoder)
    with torch.inference_mode():
        torch.testing.assert_close(cache(tokens), expected)
    torch.testing.assert_close(cache(tokens[1:]), expected[1:])
    assert calls == [3]
    cache(tokenize(["something new", PROMPTS[0]]))
    assert calls == [3, 1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert PromptCache(encoder)(tokens).dtype == dtype
    monkeypatch.setattr("ipiqa.engine.predict.MOST_KEPT", 2)
    torch.testing.assert_close(cache(tokenize(MANY))[-4:], expected)


def test_clip_antonyms_encodes_its_two_prompts_once_in_an_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    section = {key: value for key, value in tiny_section(name="clip_antonyms").items() if key not in ("fusion", "head")}
    model, images = build(section).eval(), torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = model(images, ["any", "other"])
    passes = counted(model.prompt_encoder, monkeypatch)
    batches = [{"rows": torch.arange(2) + 2 * i, "images": images, "tokens": tokenize(["a", "b"])} for i in range(3)]
    _, scores = predict(model, batches, lambda m, b: m(b["images"], b["tokens"]), device=torch.device("cpu"))
    assert passes == [2] and torch.equal(torch.from_numpy(scores), expected.repeat(3, 1))


def test_the_encoder_keeps_nothing_from_call_to_call() -> None:
    encoder = text_encoder().eval()
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=0.1, fused=True)
    with torch.no_grad():
        first = encoder(PROMPTS)
    encoder(PROMPTS).square().sum().backward()
    with torch.no_grad():
        torch.testing.assert_close(encoder(PROMPTS), first)
        optimizer.step()  # in evaluation mode, and fused: no version counter moves
        second = encoder(PROMPTS)
        encoder.text_projection.data.mul_(2)
        assert not torch.allclose(second, first, atol=1e-2) and not torch.allclose(encoder(PROMPTS), second, atol=1e-2)


@pytest.mark.parametrize("qa_token", ["none", "prefix"])
def test_the_encoder_is_one_graph_and_can_be_exported(qa_token: str) -> None:
    encoder, tokens = text_encoder(qa_token=qa_token).eval(), tokenize([*PROMPTS, "word " * 100])
    torch.testing.assert_close(torch.compile(encoder, backend="eager", fullgraph=True)(tokens), encoder(tokens))
    exported = torch.export.export(encoder, (tokens,)).module()
    torch.testing.assert_close(exported(tokens), encoder(tokens))


def test_one_string_instead_of_a_list_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="list of texts"):
        tokenize("a red circle")


# --- the image tower -----------------------------------------------------------------------------------------------


def test_gradient_checkpointing_changes_neither_gradients_nor_batch_norm_statistics() -> None:
    def trained(checkpointing: bool) -> ImageEncoder:
        torch.manual_seed(0)
        encoder = ImageEncoder(ResNetSizes((1, 1, 1, 1), 8, 16, 4), 64).train()
        encoder.grad_checkpointing = checkpointing
        encoder(torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(2)))[1].square().sum().backward()
        return encoder

    plain, checkpointed = trained(False), trained(True)
    for (name, a), (_, b) in zip(plain.named_parameters(), checkpointed.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)
    for (name, a), (_, b) in zip(plain.named_buffers(), checkpointed.named_buffers(), strict=True):
        assert torch.equal(a, b), name


def test_frozen_image_tower_keeps_its_statistics() -> None:
    model = build(tiny_section(image_encoder={"freeze": "all"})).train()
    before = {n: b.clone() for n, b in model.image_encoder.named_buffers()}
    model(torch.randn(2, 3, 64, 64), PROMPTS[:2])
    assert all(torch.equal(before[n], b) for n, b in model.image_encoder.named_buffers())
    assert not any(p.requires_grad for p in model.image_encoder.parameters())


# --- precision -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [MLPHead, LinearHead])
def test_bf16_scores_are_as_distinct_as_the_images(make: type[nn.Module]) -> None:
    torch.manual_seed(0)
    features, head = torch.randn(3000, 32), make(32, 1, dropout=0.0).eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        scores = head(features.bfloat16())
    assert scores.dtype == torch.float32 and len(scores.unique()) > 2950


# --- whole models --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_size", [32, 64, 96])
@pytest.mark.parametrize("fusion", ["cross_attention", "concatenation"])
def test_scores_have_one_column_per_target(image_size: int, fusion: str) -> None:
    model = build(tiny_section(fusion={"name": fusion}), image_size, num_targets=3).eval()
    images = torch.randn(2, 3, image_size, image_size)
    scores = model(images, ["a", "b c"])
    assert scores.shape == (2, 3) and scores.dtype == torch.float32
    torch.testing.assert_close(scores, model(images, tokenize(["a", "b c"])))


def test_image_only_ignores_the_prompt() -> None:
    section = tiny_section()
    del section["prompt_encoder"], section["fusion"]
    model = build({**section, "name": "image_only", "head": {"name": "linear"}}).eval()
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(model(images, ["a", "b"]), model(images, ["c", "d"]))


def test_state_of_one_model_loads_into_another(tmp_path: Path) -> None:
    model, other = build(tiny_section()), build(tiny_section())
    for p in other.parameters():
        nn.init.normal_(p)
    torch.save({"format": 1, "model": model.state_dict()}, tmp_path / "best.pt")
    load_model(other, str(tmp_path / "best.pt"), "run.checkpoint")
    for (name, a), b in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    torch.save(build(tiny_section(), num_targets=1).state_dict(), tmp_path / "one.pt")
    with pytest.raises(DataError, match=r"predicts 1 targets, the dataset has 2"):
        load_model(build(tiny_section()), str(tmp_path / "one.pt"), "run.checkpoint")
    torch.save(build(tiny_section(), image_size=96).state_dict(), tmp_path / "large.pt")
    with pytest.raises(DataError, match=r"tensors have another shape, first 'image_encoder.pool.positional_embedding'"):
        load_model(build(tiny_section()), str(tmp_path / "large.pt"), "run.checkpoint")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_encoder": {"layers": [1, 1]}}, "make no tower"),
        ({"image_encoder": {"heads": 7}}, "heads 7 make no tower"),
        ({"prompt_encoder": {"heads": 5}}, "heads 5, embed_dim 16 make no tower"),
        ({"fusion": {"heads": 7}}, "model.fusion.heads: 7 does not divide"),
        ({"image_encoder": {"name": "clip"}}, "neither weights nor architecture"),
        ({"image_encoder": {"name": "clip", "architecture": "RN5O"}}, "open_clip knows no 'RN5O'"),
        ({"prompt_encoder": {"name": "clip"}}, "neither weights nor architecture"),
    ],
)
def test_settings_that_make_no_model_are_answered(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(tiny_section(**changes))
