"""attention with its switches: within the error contract, and the same bits wherever a span stands."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from vilt_fast.reference import attention as reference

pytest.importorskip("triton", reason="the kernels need Triton")
from vilt_fast.kernels import attention as kernel  # noqa: E402
from vilt_fast.kernels import attention_list, launch, switches  # noqa: E402

WAYS = (("resident",), ("resident", "span_list"))
# Both sides of every edge: blocks of queries and keys, and what is resident.
LENGTHS = (1, 257, 63, 0, 129, 64, 255, 65, 256, 400, 0)
SHORT = (130, 0, 33)


@pytest.fixture(params=WAYS, ids="+".join)
def way(request: pytest.FixtureRequest) -> Iterator[tuple[str, ...]]:
    """Each set of switches, on."""
    with switches.forced(**dict.fromkeys(request.param, True)):
        yield request.param


def _bounds(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)


def _qkv(rows: int, columns: int, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def _attend(qkv: Tensor, cu_seqlens: Tensor, heads: int, **options) -> Tensor:
    """As a frozen model calls it."""
    listed = kernel.list_spans(cu_seqlens, len(qkv), qkv.shape[1] // 3 // heads, qkv.dtype)
    longest = max(cu_seqlens.diff().tolist(), default=0)
    return kernel.attention(qkv, cu_seqlens, heads, max_seqlen=longest, span_list=listed, **options)


def _check(tolerances, qkv: Tensor, cu_seqlens: Tensor, heads: int, **options) -> Tensor:
    got, used = _attend(qkv, cu_seqlens, heads, **options), int(cu_seqlens[-1])
    assert (got[used:] == 0).all()
    wide = {key: value.double() if isinstance(value, Tensor) else value for key, value in options.items()}
    out64 = reference.attention(qkv[:used].double(), cu_seqlens, heads, max_seqlen=0, **wide)
    torch_out = reference.attention(qkv[:used], cu_seqlens, heads, max_seqlen=0, **options)
    tolerances.check("attention", got[:used], out64, torch_out)
    return got


def test_lengths(way, device, tolerances, poisoned) -> None:
    qkv = _qkv(sum(LENGTHS) + 90, 3 * 64, torch.bfloat16, device)
    qkv[sum(LENGTHS) :] = float("nan")
    _check(tolerances, qkv, _bounds(LENGTHS, device), 1)


@pytest.mark.parametrize("head_dim", [16, 24, 64, 80, 128])
def test_head_sizes(way, head_dim, device, tolerances, poisoned) -> None:
    scale = torch.tensor([-2.0], device=device).half()
    qkv = _qkv(sum(SHORT), 3 * head_dim, torch.float16, device, seed=head_dim)
    _check(tolerances, qkv, _bounds(SHORT, device), 1, head_scale=scale)


def test_strided(way, device, tolerances, poisoned) -> None:
    """Every second row of a wider matrix, with NaN around it; and a scale."""
    whole = torch.full((2 * sum(SHORT), 3 * 2 * 16 + 16), float("nan"), dtype=torch.bfloat16, device=device)
    view = whole[1::2, 8:-8]
    view.copy_(_qkv(sum(SHORT), 3 * 2 * 16, torch.bfloat16, device))
    _check(tolerances, view, _bounds(SHORT, device), 2, scale=0.3)


def test_large_scores(way, device, tolerances) -> None:
    """Scores in the thousands, all of them negative in some rows: keys that are not there must not be the maximum."""
    qkv = _qkv(150, 3 * 32, torch.float16, device)
    qkv[:, :64] = qkv[:, :64].abs() * 20
    qkv[::3, :32] *= -1
    _check(tolerances, qkv, _bounds((150,), device), 1)


def test_a_pair_does_not_depend_on_its_batch(way, device, monkeypatch) -> None:
    """Nor on how many of its queries share a program, on a loose bound of the lengths, or on being in a list."""
    lengths = (257, 0, 40, 131)
    qkv, cu_seqlens = _qkv(sum(lengths) + 3, 3 * 32, torch.bfloat16, device), _bounds(lengths, device)
    batch = _attend(qkv, cu_seqlens, 1)
    assert torch.equal(kernel.attention(qkv, cu_seqlens, 1, max_seqlen=270), batch)
    for start, stop in zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True):
        alone = _attend(qkv[start:stop], _bounds((stop - start,), device), 1)
        assert torch.equal(alone, batch[start:stop])
    monkeypatch.setattr(kernel, "GROUPED", ("tiny", "small"))
    launch.plans.clear()
    assert torch.equal(_attend(qkv, cu_seqlens, 1), batch)
    assert torch.equal(kernel.attention(qkv, cu_seqlens, 1, max_seqlen=270), batch)


def test_a_list_changes_no_bit(device) -> None:
    qkv, cu_seqlens = _qkv(sum(SHORT) + 100, 3 * 16, torch.float32, device), _bounds(SHORT, device)
    wanted = kernel.attention(qkv, cu_seqlens, 1, max_seqlen=140)
    with switches.forced(span_list=True):
        assert torch.equal(_attend(qkv, cu_seqlens, 1), wanted)
        for lengths in ((), (0, 0)):
            assert (_attend(qkv, _bounds(lengths, device), 1) == 0).all()
        assert _attend(qkv[:0], _bounds((0,), device), 1).shape == (0, 16)


@pytest.mark.parametrize("row_bits", [5, 6, 8])
def test_what_a_list_holds(row_bits, device, poisoned) -> None:
    """Every piece of every span and of the rows past the last, once; and at most one entry more for each."""
    generator = torch.Generator().manual_seed(row_bits)
    for spans, past in ((0, 300), (1, 0), (40, 77)):
        lengths = torch.randint(0, 5, (spans,), generator=generator) * torch.randint(
            0, 150, (spans,), generator=generator
        )
        cu_seqlens = _bounds(tuple(lengths.tolist()), device)
        rows = int(lengths.sum()) + past
        made = attention_list.make_list(cu_seqlens, rows, row_bits)[:, :3].tolist()
        for start, length in zip(cu_seqlens.tolist(), [*lengths.tolist(), -past], strict=True):
            for piece in range(-(-abs(length) >> row_bits)):
                made.remove([start, length, piece])
        assert len(made) <= spans + 1
        assert all(number << row_bits >= abs(length) for _, length, number in made)


def test_the_list_of_another_batch(device) -> None:
    qkv, cu_seqlens = _qkv(300, 3 * 16, torch.float32, device), _bounds((300,), device)
    with switches.forced(span_list=True):
        listed = kernel.list_spans(cu_seqlens, 200, 16, torch.float32)
        with pytest.raises(ValueError, match="span_list: got 5 entries, wanted 6: what list_spans makes for these"):
            kernel.attention(qkv, cu_seqlens, 1, max_seqlen=300, span_list=listed)
    with pytest.raises(ValueError, match="span_list: got dtype torch.int64, wanted torch.int32"):
        kernel.attention(qkv, cu_seqlens, 1, max_seqlen=300, span_list=listed.long())
    for wrong, words in (
        (listed.T.contiguous().T, r"strides \(1, 5\), wanted what list_spans"),
        (listed.to("meta"), "meta"),
    ):
        with pytest.raises(ValueError, match=words):
            kernel.attention(qkv[:200], cu_seqlens, 1, max_seqlen=300, span_list=wrong)
    assert kernel.list_spans(cu_seqlens, 300, 16, torch.float32) is None


def test_a_list_fits_the_precision_of_fp32(device, monkeypatch) -> None:
    tile = {"BLOCK_N": 32, "num_warps": 4, "num_stages": 1}
    monkeypatch.setattr(kernel, "heuristic", lambda *, dtype, **_: tile | {"BLOCK_M": 32 if dtype == "tf32" else 64})
    qkv, cu_seqlens = _qkv(130, 3 * 16, torch.float32, device), _bounds((100, 30), device)
    precision = torch.get_float32_matmul_precision()
    launch.forget_configurations()
    with switches.forced(span_list=True):
        for said in ("highest", "high"):
            torch.set_float32_matmul_precision(said)
            try:
                _attend(qkv, cu_seqlens, 1)
            finally:
                torch.set_float32_matmul_precision(precision)
    launch.forget_configurations()


def test_a_list_fits_what_is_planned_later(device, monkeypatch) -> None:
    """Attention of other heads, or of a head_scale, planned after a change of the environment; the list is older."""
    qkv, cu_seqlens = _qkv(300, 3 * 16, torch.bfloat16, device), _bounds((200, 100), device)
    monkeypatch.setattr(kernel, "GROUPED", ("tiny",))
    launch.plans.clear()
    monkeypatch.setenv(switches.VARIABLE, "span_list")
    wanted = _attend(qkv, cu_seqlens, 1)
    monkeypatch.setenv(switches.VARIABLE, "span_list,resident")
    assert torch.equal(_attend(qkv, cu_seqlens, 1, head_scale=torch.ones(1, dtype=qkv.dtype, device=device)), wanted)
    launch.plans.clear()


class _Forgetful(dict):
    """Plans that another thread clears at once."""

    def __setitem__(self, key: tuple, plan: object) -> None:
        pass


def test_plans_that_are_cleared_meanwhile(device, monkeypatch) -> None:
    cu_seqlens = _bounds((200, 100), device)
    with switches.forced(span_list=True):
        monkeypatch.setattr(launch, "plans", _Forgetful())
        assert kernel.list_spans(cu_seqlens, 300, 16, torch.bfloat16).shape == (300 // 64 + 3, 4)


def test_who_is_resident() -> None:
    """Small heads of 16 bits; a chip without the memory for it is refused by name."""
    with switches.forced(resident=True):
        for head_dim, dtype, is_resident in (
            (64, torch.bfloat16, True),
            (64, torch.float32, False),
            (80, torch.float16, False),
        ):
            assert ("HALF" in kernel.configure("sm90", head_dim, dtype, 211)[0]) is is_resident
        rows = {rows: kernel.configure("sm90", 64, torch.bfloat16, rows)[1] for rows in (257, 1792, 14336, 57344)}
        assert rows == {257: 6, 1792: 6, 14336: 8, 57344: 8}
        with pytest.raises(ValueError, match="'resident': got a chip of gfx942, wanted one of sm80, sm90, sm100"):
            kernel.configure("gfx942", 64, torch.bfloat16, 211)
    with switches.forced(pdl=True):
        assert kernel.configure("sm90", 80, torch.float32, 9)[0]["launch_pdl"]
        with pytest.raises(ValueError, match="'pdl': got a chip of sm80"):
            kernel.configure("sm80", 64, torch.bfloat16, 211)


def test_what_is_tuned() -> None:
    """The kernel that the switch has chosen."""
    from vilt_fast.bench import attention, workloads
    from vilt_fast.bench.case import Case, tiny_config

    workload = workloads.shrunk(workloads.vqa_mix(2), 8, side=96)
    case = Case(workload, tiny_config(workload), torch.device("cpu"))
    assert [task.op for task in attention.tasks([case])] == ["attention"]
    with switches.forced(resident=True):
        (task,) = attention.tasks([case])
    assert task.op == "attention_resident" and {config["HALF"] for config in task.candidates} == {128}


class _Recorder:
    """Stands in for a kernel and notes the grid of its launch."""

    def __init__(self) -> None:
        self.grids: list[tuple[int, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]):
        return lambda *arguments, **options: self.grids.append(grid)


def test_programs_of_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    """57,344 rows with room for 896 pairs of at most 281 tokens: how many programs each way launches."""
    recorder = _Recorder()
    monkeypatch.setattr(kernel, "attention_kernel", recorder)
    monkeypatch.setattr(launch, "arch_of", lambda tensor: "sm90")
    qkv = torch.empty(57_344, 3 * 768, dtype=torch.bfloat16, device="meta")
    cu_seqlens = torch.empty(897, dtype=torch.int32, device="meta")
    for words, pieces in (((), None), (("span_list",), 896), (("resident",), None), (("resident", "span_list"), 224)):
        with switches.forced(**dict.fromkeys(words, True)):
            listed = None if pieces is None else torch.empty(pieces + 897, 4, dtype=torch.int32, device="meta")
            kernel._launch(qkv, cu_seqlens, 12, 281, 0.125, None, listed)
    assert recorder.grids == [(5, 12, 897), (12 * 1793, 1, 1), (2, 12, 897), (12 * 1121, 1, 1)]
