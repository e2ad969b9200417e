from __future__ import annotations

import sys
import types

import pytest
import torch
from torch import Tensor

from sail_train.model.attention import BACKENDS, Backend, Packing, choose


def documented(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, *, scale: float, causal: bool, reach: tuple[int, int]
) -> Tensor:
    """What flash attention's documents promise, segment by segment: `reach` is keys left and right, -1 for all."""
    outputs = []
    for start, end in zip(bounds.tolist(), bounds.tolist()[1:], strict=False):
        q, k, v = (x[start:end].transpose(0, 1) for x in (query, key, value))
        place = torch.arange(end - start)
        ahead = place[:, None] - place
        left, right = (end if each < 0 else each for each in reach)
        seen = (ahead <= left) & (-ahead <= (0 if causal else right))
        scores = (q @ k.repeat_interleave(len(q) // len(k), 0).mT * scale).masked_fill(~seen, -torch.inf)
        outputs.append((scores.softmax(-1) @ v.repeat_interleave(len(q) // len(v), 0)).transpose(0, 1))
    return torch.cat(outputs)


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> Backend:
    """The flash backend over a flash_attn that keeps its documents' word."""

    def flash_attn_varlen_func(  # noqa: ANN202
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None,
        causal=False, window_size=(-1, -1), deterministic=False,
    ):  # fmt: skip
        check_bounds(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
        return documented(q, k, v, cu_seqlens_q, scale=softmax_scale, causal=causal, reach=window_size)

    module = types.ModuleType("flash_attn")
    module.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    return BACKENDS["flash"]


@pytest.fixture(params=[True, False], ids=["groups", "no groups"])
def varlen(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Backend:
    """The varlen backend over a torch that knows grouped heads (2.12 on), and over one that does not (2.11)."""

    def run(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale, window_size, groups):  # noqa: ANN202
        check_bounds(cu_seq_q, cu_seq_k, max_q, max_k)
        assert groups or query.shape[1] == key.shape[1] == value.shape[1]
        return documented(query, key, value, cu_seq_q, scale=scale, causal=False, reach=window_size)

    def new(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False):  # noqa: ANN202
        return run(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale, window_size, enable_gqa)

    def old(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):  # noqa: ANN202
        return run(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale, window_size, False)

    from sail_train.model.attention import varlen

    varlen._knows_groups.cache_clear()
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", new if request.param else old)
    yield BACKENDS["varlen"]
    varlen._knows_groups.cache_clear()


def check_bounds(of_queries: Tensor, of_keys: Tensor, longest_query: int, longest_key: int) -> None:
    assert of_queries.dtype == of_keys.dtype == torch.int32 and torch.equal(of_queries, of_keys)
    assert longest_query == longest_key == int(of_queries.diff().max())


@pytest.fixture(autouse=True)
def no_choice_is_remembered() -> None:
    choose.cache_clear()
    yield
    choose.cache_clear()


def random_packed(lengths: list[int], kv_heads: int = 2, head_dim: int = 8) -> list[Tensor]:
    """Query of 4 heads, key, value."""
    generator = torch.Generator().manual_seed(sum(lengths) + kv_heads)
    return [torch.randn(sum(lengths), heads, head_dim, generator=generator) for heads in (4, kv_heads, kv_heads)]


@pytest.fixture(scope="session")
def make_packed():  # noqa: ANN201
    return random_packed


@pytest.fixture(scope="session")
def plan():  # noqa: ANN201
    def planned(lengths: list[int], *, causal: bool = True, backend: str = "auto") -> Packing:
        return Packing.plan(lengths, causal=causal, device=torch.device("cpu"), backend=backend)

    return planned
