"""Every backend against the yardstick, and the yardstick against each segment by itself."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sail_train.model.attention import BACKENDS, Backend, Packing, attend, choose

LENGTHS = [[1], [1, 1, 1], [5], [3, 3, 3], [1, 40, 2, 17, 17, 3], [9, 1, 30, 29, 60, 8], [200, 64, 190, 7]]
CPU = torch.device("cpu")
HERE = [name for name, backend in BACKENDS.items() if not backend.refuses(CPU, torch.float32, 8)]
TRAIN_HERE = [name for name in HERE if name != "flex"]

# fp32 against fp64 over at most 200 keys: a few units in the last place of sums of values of order one
OUTPUT = {"atol": 2e-6, "rtol": 1e-5}
# gradients sum over the queries and the group's heads once more
GRADIENT = {"atol": 5e-6, "rtol": 1e-5}

MakePacked = Callable[..., list[Tensor]]
Plan = Callable[..., Packing]


def alone(query: Tensor, key: Tensor, value: Tensor, lengths: list[int], causal: bool) -> Tensor:
    """Each segment by itself, in float64, by torch."""
    repeat = query.shape[1] // key.shape[1]
    outputs = []
    for q, k, v in zip(query.split(lengths), key.split(lengths), value.split(lengths), strict=True):
        q, k, v = (x.double().transpose(0, 1) for x in (q, k, v))
        k, v = k.repeat_interleave(repeat, 0), v.repeat_interleave(repeat, 0)
        outputs.append(scaled_dot_product_attention(q, k, v, is_causal=causal, scale=0.3).transpose(0, 1))
    return torch.cat(outputs)


def exact(query: Tensor, key: Tensor, value: Tensor, packing: Packing, window: int | None = None) -> Tensor:
    """The yardstick in float64."""
    wide = (x.double() for x in (query, key, value))
    return BACKENDS["eager"].attend(*wide, packing, scale=0.3, dropout=0.0, window=window)


MASKS = [(True, None), (True, 20), (False, None)]
"""(causal, window) that there are."""


def test_what_should_run_on_a_cpu_does() -> None:
    assert HERE == ["flex", "sdpa", "eager"]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_the_yardstick_equals_each_segment_alone(
    make_packed: MakePacked, plan: Plan, lengths: list[int], kv_heads: int, causal: bool
) -> None:
    packed = make_packed(lengths, kv_heads)
    expected = alone(*packed, lengths, causal)
    # both in float64: a few units in the last place
    torch.testing.assert_close(exact(*packed, plan(lengths, causal=causal)), expected, atol=1e-14, rtol=1e-13)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("backend", TRAIN_HERE)
def test_outputs_and_gradients_equal_the_yardsticks(
    make_packed: MakePacked, plan: Plan, backend: str, lengths: list[int], kv_heads: int, causal: bool
) -> None:
    packed = [x.requires_grad_() for x in make_packed(lengths, kv_heads)]
    packing = plan(lengths, causal=causal, backend=backend)
    output, expected = attend(*packed, packing, scale=0.3), exact(*packed, packing)
    torch.testing.assert_close(output.double(), expected, **OUTPUT)
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(0))
    grads = torch.autograd.grad(output, packed, upstream)
    for grad, true in zip(grads, torch.autograd.grad(expected, packed, upstream.double()), strict=True):
        torch.testing.assert_close(grad, true, **GRADIENT)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("backend", HERE)
def test_a_forward_without_gradients_equals_the_yardstick(
    make_packed: MakePacked, plan: Plan, backend: str, lengths: list[int], causal: bool
) -> None:
    packed = [x.requires_grad_() for x in make_packed(lengths)]
    packing = plan(lengths, causal=causal, backend=backend)
    with torch.no_grad():
        output = attend(*packed, packing, scale=0.3)
    torch.testing.assert_close(output.double(), exact(*packed, packing).detach(), **OUTPUT)


@pytest.mark.parametrize("window", [1, 4, 20, 500])
@pytest.mark.parametrize("backend", HERE)
def test_a_sliding_window_equals_the_yardsticks(make_packed: MakePacked, plan: Plan, backend: str, window: int) -> None:
    lengths = [1, 40, 3, 17, 130]
    packed, packing = make_packed(lengths), plan(lengths, backend=backend)
    output = attend(*packed, packing, scale=0.3, window=window)
    torch.testing.assert_close(output.double(), exact(*packed, packing, window), **OUTPUT)


def test_a_window_counts_the_querys_own_position(make_packed: MakePacked, plan: Plan) -> None:
    query, key, value = make_packed([6], 4)
    assert torch.equal(attend(query, key, value, plan([6]), scale=0.3, window=1), value), "itself alone"
    moved = value.clone()
    moved[2] += 1  # transformers: a query at i sees keys above i - window
    before, after = (attend(query, key, each, plan([6]), scale=0.3, window=3) for each in (value, moved))
    changed = (before != after).flatten(1).any(1)
    assert changed.tolist() == [False, False, True, True, True, False]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("changed", [0, 2, 3])
@pytest.mark.parametrize("backend", HERE)
def test_changing_one_segment_changes_no_other_by_a_bit(
    make_packed: MakePacked, plan: Plan, backend: str, changed: int, causal: bool
) -> None:
    lengths = [17, 1, 40, 18, 130]
    packed, packing = make_packed(lengths), plan(lengths, causal=causal, backend=backend)
    start, end = sum(lengths[:changed]), sum(lengths[: changed + 1])
    others = [x.clone() for x in packed]
    for each in others:
        each[start:end] = each[start:end] * -7 + 3
    before, after = (attend(*each, packing, scale=0.3) for each in (packed, others))
    assert torch.equal(before[:start], after[:start]) and torch.equal(before[end:], after[end:])
    assert not torch.equal(before[start:end], after[start:end])


@pytest.mark.parametrize("backend", TRAIN_HERE)
def test_no_gradient_reaches_another_segment(make_packed: MakePacked, plan: Plan, backend: str) -> None:
    packed = [x.requires_grad_() for x in make_packed([17, 1, 40])]
    output = attend(*packed, plan([17, 1, 40], backend=backend), scale=0.3)
    for grad in torch.autograd.grad(output[17:18].sum(), packed):
        assert not grad[:17].any() and not grad[18:].any()


def test_nothing_of_another_segment_enters_sdpa_even_if_it_is_not_a_number(plan: Plan) -> None:
    query = torch.randn(17, 2, 8)
    query[5:8] = float("nan")
    output = attend(query, query, query, plan([5, 3, 9], backend="sdpa"), scale=1.0)
    assert output[:5].isfinite().all() and output[8:].isfinite().all() and output[5:8].isnan().all()


@pytest.mark.parametrize(("causal", "window"), MASKS)
@pytest.mark.parametrize("kernel", ["flash", "varlen"])
def test_kernels_that_keep_their_documents_word_equal_the_yardstick(
    make_packed: MakePacked,
    plan: Plan,
    flash: Backend,
    varlen: Backend,
    kernel: str,
    window: int | None,
    causal: bool,
) -> None:
    lengths = [9, 1, 30, 29]
    packed, packing = make_packed(lengths), plan(lengths, causal=causal)
    backend = {"flash": flash, "varlen": varlen}[kernel]
    output = backend.attend(*packed, packing, scale=0.3, dropout=0.0, window=window)
    torch.testing.assert_close(output.double(), exact(*packed, packing, window), **OUTPUT)


def test_flex_says_that_it_cannot_train_on_a_cpu(make_packed: MakePacked, plan: Plan) -> None:
    packed = [x.requires_grad_() for x in make_packed([5])]
    with pytest.raises(ValueError, match="attention=flex cannot train on a CPU.*use attention=sdpa"):
        attend(*packed, plan([5], backend="flex"), scale=0.3)


@pytest.mark.parametrize("backend", ["varlen", "flex"])
def test_a_backend_without_dropout_says_so(
    make_packed: MakePacked, plan: Plan, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    monkeypatch.setattr("sail_train.model.attention.choice.choose", lambda name, *_: BACKENDS[name])
    with pytest.raises(ValueError, match=rf"attention={backend} has no dropout, which is 0.1; .* one of sdpa, eager$"):
        attend(*make_packed([5]), plan([5], backend=backend), scale=0.3, dropout=0.1)


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_dropout_drops_probabilities_and_keeps_the_mean(plan: Plan, backend: str) -> None:
    torch.manual_seed(0)
    query, value = torch.zeros(400, 1, 8), torch.ones(400, 1, 8)
    output = attend(query, query, value, plan([400], causal=False, backend=backend), scale=1.0, dropout=0.5)
    assert output.std() > 0.01 and abs(float(output.mean()) - 1) < 0.02  # 400 draws of 0 or 2 each: sd 0.05


def test_a_window_without_causality_is_refused_where_it_would_cut(make_packed: MakePacked, plan: Plan) -> None:
    packed, packing = make_packed([5, 3]), plan([5, 3], causal=False)
    with pytest.raises(ValueError, match="sliding window of 4 over segments of up to 5 without causality"):
        attend(*packed, packing, scale=0.3, window=4)
    assert torch.equal(attend(*packed, packing, scale=0.3, window=5), attend(*packed, packing, scale=0.3))


# bf16 keeps 8 bits: outputs of order one are off by up to 2^-8 when rounded at the end, and the kernels round the
# probabilities once before; gradients sum as many of them as there are queries.
BF16 = {"atol": 2e-2, "rtol": 2e-2}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("causal", "window"), MASKS)
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "eager"])
def test_on_a_gpu_each_backend_equals_the_yardstick(
    make_packed: MakePacked, backend: str, kv_heads: int, causal: bool, window: int | None
) -> None:
    cuda, dtype = torch.device("cuda"), torch.bfloat16
    if reason := BACKENDS[backend].refuses(cuda, dtype, 64):
        pytest.skip(reason)
    lengths = [1, 40, 200, 3, 17, 130]
    packed = [x.to(cuda, dtype).requires_grad_() for x in make_packed(lengths, kv_heads, 64)]
    packing = Packing.plan(lengths, causal=causal, device=cuda, backend=backend)
    output, expected = attend(*packed, packing, scale=0.3, window=window), exact(*packed, packing, window)
    torch.testing.assert_close(output.double(), expected, **BF16)
    upstream = torch.randn_like(output)
    grads = torch.autograd.grad(output, packed, upstream)
    for grad, true in zip(grads, torch.autograd.grad(expected, packed, upstream.double()), strict=True):
        torch.testing.assert_close(grad.double(), true.double(), **BF16)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_auto_takes_a_variable_length_kernel_for_half_precision(make_packed: MakePacked) -> None:
    wanted = "varlen" if importlib.util.find_spec("flash_attn") is None else "flash"
    assert choose("auto", torch.device("cuda"), torch.bfloat16, 64).name == wanted
    assert choose("auto", torch.device("cuda"), torch.float32, 64).name == "sdpa"
