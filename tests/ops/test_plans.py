"""A launch that is planned once serves every call of its class and no other: plans are warm, then something changes."""

import threading

import pytest
import torch
from torch import Tensor

import vilt_fast
from vilt_fast import ops
from vilt_fast.kernels import launch

pytest.importorskip("triton", reason="the kernels need Triton")

D, ROWS = 32, 5


@pytest.fixture
def warm(device):
    """Plans of the usual calls, made under no_grad."""
    launch.plans.clear()
    with torch.no_grad(), vilt_fast.backend("kernels"):
        for call in CALLS.values():
            call(**arguments(device))
        assert launch.plans
        yield device


def arguments(device: torch.device) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    integers = torch.arange(4, device=device).view(2, 2)
    return {
        "x": random(ROWS, D),
        "weight": random(D, D),
        "bias": random(D),
        "residual": random(ROWS, D),
        "qkv": random(ROWS, 3 * D),
        "cu_seqlens": torch.tensor([0, 2, ROWS], dtype=torch.int32, device=device),
        "tokens": random(ROWS, D),
        "table": random(9, D),
        "ids": integers,
        "text_row": integers.int(),
    }


def linear(x, weight, bias, residual, **_):
    return ops.linear(x, weight, bias, activation="gelu", residual=residual)


def layer_norm(x, weight, bias, **_):
    return ops.layer_norm(x, bias, bias, 1e-6)


def attention(qkv, cu_seqlens, **_):
    return ops.attention(qkv, cu_seqlens, 2, max_seqlen=3)


def text_embed(tokens, text_row, ids, table, bias, **_):
    return ops.text_embed(tokens.clone(), text_row, ids, ids, None, table, table, table, bias, bias, bias, 1e-6)


def regions(tokens, text_row, ids, table, bias, qkv, **_):
    tokens, features = tokens.clone(), qkv[:4, :D].unflatten(0, (2, -1))
    rest = (None, table, table, bias, bias, None, 1e-12)
    return ops.text_embed(tokens, text_row, None, ids, features, *rest, position_ids=ids)


CALLS = {"linear": linear, "layer_norm": layer_norm, "attention": attention, "text_embed": text_embed}
CALLS |= {"text_embed of regions": regions}


def strided(tensor: Tensor) -> Tensor:
    """The same values, no row at a multiple of 16 bytes."""
    wide = tensor.new_zeros(tensor.shape[0], tensor.shape[1] + 1)
    wide[:, :-1] = tensor
    return wide[:, :-1]


CHANGES = {
    "negated": ("x", lambda x: torch._neg_view(x)),
    "negated weight": ("weight", lambda w: torch._neg_view(w)),
    "negated qkv": ("qkv", lambda x: torch._neg_view(x)),
    "odd rows": ("x", strided),
    "odd weight": ("weight", strided),
    "odd residual": ("residual", strided),
    "one residual for all": ("residual", lambda r: r[:1].expand(ROWS, D)),
    "transposed": ("weight", lambda w: w.T),
    "odd address": ("bias", lambda b: torch.cat((b[:1], b))[1:]),
    "no rows": ("x", lambda x: x[:0]),
    "one row": ("x", lambda x: x[:1]),
    "more rows": ("x", lambda x: x.repeat(3, 1)),
    "a parameter": ("weight", lambda w: torch.nn.Parameter(w, requires_grad=False)),
    "masked words": ("text_row", lambda rows: torch.where(rows == 1, -1, rows)),
    "strided rows": ("text_row", lambda rows: rows.T.contiguous().T),
}


def fit(change: str, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """A residual with as many rows as the input."""
    if given["residual"].shape[0] != given["x"].shape[0]:
        given["residual"] = given["residual"][:1].repeat(given["x"].shape[0], 1)
    return given


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", CALLS)
def test_planned_or_not_the_result_is_the_same(warm, name, change):
    argument, changed = CHANGES[change]
    given = arguments(warm)
    given = fit(change, {**given, argument: changed(given[argument])})
    got = CALLS[name](**given)
    launch.plans.clear()
    fresh = CALLS[name](**given)
    with vilt_fast.backend("reference"):
        wanted = CALLS[name](**given)
    assert torch.equal(got, fresh)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_no_rows_plan_nothing_for_others(device):
    """Zero rows say nothing about strides: what follows may be rows that TMA cannot describe."""
    launch.plans.clear()
    given = arguments(device)
    with torch.no_grad(), vilt_fast.backend("kernels"):
        odd = strided(given["x"])
        ops.linear(odd[:0], given["weight"])
        got = ops.linear(odd, given["weight"])
    torch.testing.assert_close(got, given["x"] @ given["weight"].T, rtol=1e-4, atol=1e-4)


WRONG = {
    "linear": [
        ("x", lambda x: x[0, 0]),
        ("x", lambda x: x[0]),
        ("x", lambda x: x[:, :-1]),
        ("x", lambda x: x.double()),
        ("residual", lambda r: r[:-1]),
        ("residual", lambda r: r[0, 0]),
        ("bias", lambda b: b[:-1]),
    ],
    "layer_norm": [("x", lambda x: x[0]), ("bias", lambda b: b[:-1]), ("bias", lambda b: b.half())],
    "attention": [("qkv", lambda x: x[:, :-2]), ("cu_seqlens", lambda c: c.long()), ("cu_seqlens", lambda c: c[:0])],
    "text_embed": [
        ("tokens", lambda t: t[:, ::2]),
        ("tokens", lambda t: t[..., None]),
        ("ids", lambda i: i[:1]),
        ("ids", lambda i: i.int()),
        ("text_row", lambda r: r.long()),
        ("table", lambda t: t[:1]),
    ],
    "text_embed of regions": [
        ("tokens", lambda t: t[:, :16]),
        ("ids", lambda i: i[:1]),
        ("text_row", lambda r: r[:1]),
        ("table", lambda t: t[:, :16]),
        ("qkv", lambda x: x[:, :16]),
        ("qkv", lambda x: x[:2]),
    ],
}


@pytest.mark.parametrize(("name", "number"), [(name, n) for name, found in WRONG.items() for n in range(len(found))])
def test_what_is_wrong_is_refused_with_a_plan_as_without(warm, name, number):
    argument, changed = WRONG[name][number]
    given = arguments(warm)
    given[argument] = changed(given[argument])
    messages = []
    for _ in range(2):
        with pytest.raises(ValueError) as caught:
            CALLS[name](**given)
        messages.append(str(caught.value))
        launch.plans.clear()
    assert messages[0] == messages[1] and messages[0].startswith(name.split()[0])


@pytest.mark.parametrize("activation", ["sigmoid", ["gelu"], 3], ids=str)
def test_an_activation_that_is_none(warm, activation):
    given = arguments(warm)
    with pytest.raises(ValueError, match="linear: activation: got"):
        ops.linear(given["x"], given["weight"], activation=activation)


def test_meta_tensors_have_shapes_alone(warm):
    given = {name: tensor.to("meta") for name, tensor in arguments(warm).items()}
    for name, call in CALLS.items():
        assert call(**given).is_meta, name


def test_subclasses_and_modes_are_dispatched(warm):
    """Whoever watches or replaces an operation of PyTorch sees ours, planned or not."""
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Dispatch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    class Function(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    for mode in (Dispatch, Function):
        for name in ("linear", "layer_norm", "attention"):
            seen.clear()
            with mode():
                CALLS[name](**arguments(warm))
            assert any(f"vilt_fast.{name}" in func for func in seen), (mode, name, seen)


def test_a_write_is_seen_by_autograd(warm):
    """Whoever saved the tensor for a backward pass is told that it has changed."""
    given = arguments(warm)
    tokens = given["tokens"]
    before = tokens._version
    bias, table, ids = given["bias"], given["table"], given["ids"]
    ops.text_embed(tokens, given["text_row"], ids, ids, None, table, table, table, bias, bias, bias, 1e-6)
    assert tokens._version > before


def test_an_integer_eps_is_a_number(warm):
    given = arguments(warm)
    one = ops.layer_norm(given["x"], given["bias"], given["bias"], 1)
    small = ops.layer_norm(given["x"], given["bias"], given["bias"], 1e-6)
    wanted = torch.nn.functional.layer_norm(given["x"], (D,), given["bias"], given["bias"], 1.0)
    torch.testing.assert_close(one, wanted)
    assert not torch.allclose(one, small)


def test_seeds_share_a_plan():
    """64-bit integers differ by their type alone."""
    assert len({launch._class_of(seed, False) for seed in (2**40 + 1, 2**62, 2**35)}) == 1
    assert len({launch._class_of(seed, False) for seed in (5, 2**40, 2**63)}) == 3


def test_a_program_is_whole_before_another_thread_launches_it(monkeypatch):
    """While the first thread compiles, others compile too: none launches without the constants."""
    started, launched = threading.Barrier(2), []

    class Parameter:
        name, default, has_default, is_constexpr = "BLOCK", 1, True, True

    class Kernel:
        params = [Parameter]

        def __getitem__(self, grid):
            def run(*arguments, **options):
                started.wait(10)
                return {grid: lambda *given: launched.append(given)}

            return run

    monkeypatch.setattr(launch, "INTERPRETED", False)
    program, out = launch.Program(Kernel(), BLOCK=8), torch.zeros(1)
    threads = [threading.Thread(target=program, args=((1, 1, 1), out)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    program((1, 1, 1), out)
    assert launched == [(out, 8)]
