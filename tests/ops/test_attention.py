"""attention and attention_rows: both beside the fp64 reference, at the edges of spans, heads and blocks."""

import pytest
import torch
from torch import Tensor

from vilt_fast.reference import attention as reference

pytest.importorskip("triton", reason="the kernels need Triton")
from vilt_fast.kernels import attention as kernel  # noqa: E402
from vilt_fast.kernels import attention_rows as rows_kernel  # noqa: E402
from vilt_fast.kernels import launch  # noqa: E402

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LENGTHS = (1, 63, 64, 0, 65, 197, 281)


def _bounds(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)


def _qkv(rows: int, columns: int, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def _check(tolerances, qkv: Tensor, cu_seqlens: Tensor, num_heads: int, max_seqlen: int, **options) -> Tensor:
    """Checks the rows inside spans against the reference, and that the rows past the last span are zero."""
    got = kernel.attention(qkv, cu_seqlens, num_heads, max_seqlen=max_seqlen, **options)
    used = int(cu_seqlens[-1])
    assert got.shape == (len(qkv), qkv.shape[1] // 3)
    assert (got[used:] == 0).all()
    wide = {key: value.double() if isinstance(value, Tensor) else value for key, value in options.items()}
    out64 = reference.attention(qkv[:used].double(), cu_seqlens, num_heads, max_seqlen=max_seqlen, **wide)
    torch_out = reference.attention(qkv[:used], cu_seqlens, num_heads, max_seqlen=max_seqlen, **options)
    tolerances.check("attention", got[:used], out64, torch_out)
    return got


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_lengths_and_rows_past_the_last_span(dtype, device, tolerances, poisoned) -> None:
    cu_seqlens = _bounds(LENGTHS, device)
    qkv = _qkv(sum(LENGTHS) + 70, 3 * 2 * 32, dtype, device)
    qkv[sum(LENGTHS) :] = float("nan")
    _check(tolerances, qkv, cu_seqlens, 2, max(LENGTHS))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [16, 24, 48, 64, 80, 96, 128])
def test_head_sizes(head_dim, dtype, device, tolerances, poisoned) -> None:
    lengths = (33, 1)
    options = {"head_scale": torch.tensor([0.5, -2.0], device=device).to(dtype)} if head_dim in (24, 64) else {}
    qkv = _qkv(sum(lengths), 3 * 2 * head_dim, dtype, device, seed=head_dim)
    _check(tolerances, qkv, _bounds(lengths, device), 2, 33, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_strided(dtype, device, tolerances, poisoned) -> None:
    """Every second row of a wider matrix, with NaN around it; then columns that are not contiguous."""
    whole = torch.full((2 * 66, 3 * 3 * 16 + 16), float("nan"), dtype=dtype, device=device)
    view = whole[1::2, 8:-8]
    view.copy_(_qkv(66, 3 * 3 * 16, dtype, device))
    cu_seqlens = _bounds((65, 1), device)
    got = _check(tolerances, view, cu_seqlens, 3, 65, scale=0.3)
    apart = view.t().contiguous().t()
    assert torch.equal(kernel.attention(apart, cu_seqlens, 3, max_seqlen=65, scale=0.3), got)


def test_many_rows_past_the_last_span(device, tolerances, poisoned) -> None:
    """More of them than the grid has programs for, a bound of the lengths that is loose, and no span at all."""
    qkv = _qkv(300, 3 * 16, torch.float16, device)
    got = _check(tolerances, qkv, _bounds((5, 3), device), 1, 5)
    assert torch.equal(kernel.attention(qkv, _bounds((5, 3), device), 1, max_seqlen=200), got)
    for lengths in ((), (0, 0)):
        assert (kernel.attention(qkv, _bounds(lengths, device), 1, max_seqlen=0) == 0).all()
    assert kernel.attention(qkv[:0], _bounds((0,), device), 1, max_seqlen=4).shape == (0, 16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_pair_does_not_depend_on_its_batch(dtype, device) -> None:
    qkv, cu_seqlens = _qkv(300, 3 * 2 * 32, dtype, device), _bounds((70, 33, 197), device)
    batch = kernel.attention(qkv, cu_seqlens, 2, max_seqlen=197)
    for start, stop in zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True):
        length = stop - start
        alone = kernel.attention(qkv[start:stop], _bounds((length,), device), 2, max_seqlen=length)
        assert torch.equal(alone, batch[start:stop])


def test_large_scores(device, tolerances) -> None:
    """Scores in the thousands: the running maximum keeps exp2 in range, and one key takes all of a row."""
    qkv = _qkv(130, 3 * 32, torch.float16, device)
    qkv[:, :64] *= 40
    _check(tolerances, qkv, _bounds((130,), device), 1, 130)


def test_matmul_precision(device, tolerances) -> None:
    before = torch.get_float32_matmul_precision()
    qkv, cu_seqlens = _qkv(40, 3 * 64, torch.float32, device), _bounds((40,), device)
    try:
        torch.set_float32_matmul_precision("high")
        got = kernel.attention(qkv, cu_seqlens, 1, max_seqlen=40)
    finally:
        torch.set_float32_matmul_precision(before)
    # TF32 keeps ten bits of each factor; the interpreter multiplies in fp32 whatever it is asked for.
    wanted = reference.attention(qkv.double(), cu_seqlens, 1, max_seqlen=40)
    assert (got.double() - wanted).abs().max() < 2**-8 * wanted.abs().max()


# --- attention_rows ---------------------------------------------------------------------------------------------------


def _check_rows(
    tolerances, qkv: Tensor, cu_seqlens: Tensor, queries: Tensor, heads: int, size: int, **options
) -> Tensor:
    got = kernel.attention_rows(qkv, cu_seqlens, queries, heads, max_seqlen=size, **options)
    wide = {key: value.double() if isinstance(value, Tensor) else value for key, value in options.items()}
    out64 = reference.attention_rows(qkv.double(), cu_seqlens, queries, heads, max_seqlen=size, **wide)
    torch_out = reference.attention_rows(qkv, cu_seqlens, queries, heads, max_seqlen=size, **options)
    tolerances.check("attention_rows", got, out64, torch_out)
    assert torch.equal(got == 0, out64 == 0)
    return got


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows(dtype, device, tolerances, poisoned) -> None:
    lengths = (1, 63, 0, 65, 130)
    qkv, cu_seqlens = _qkv(sum(lengths), 3 * 2 * 48, dtype, device), _bounds(lengths, device)
    queries = torch.tensor([0, 258, 1, 63, 64, 64, 128, 129], device=device)
    got = _check_rows(tolerances, qkv, cu_seqlens, queries, 2, 131)
    torch.testing.assert_close(got.double().sum(-1).float(), torch.ones(8, 2, device=device), atol=2e-2, rtol=0)
    scaled = {"scale": 0.1, "head_scale": torch.tensor([0.5, -2.0], device=device).to(dtype)}
    _check_rows(tolerances, qkv, cu_seqlens, queries.int()[2:4], 2, 70, **scaled)


def test_rows_of_thousands_of_spans(device, tolerances, poisoned) -> None:
    """The span of a query is found in blocks of bounds; a row in no span attends to nothing."""
    cu_seqlens = _bounds((2,) * 1100, device)
    qkv = _qkv(2300, 3 * 16, torch.float32, device)
    _check_rows(tolerances, qkv, cu_seqlens, torch.tensor([0, 2047, 2048, 2199], device=device), 1, 3)
    outside = kernel.attention_rows(qkv, cu_seqlens, torch.tensor([2200, 2299], device=device), 1, max_seqlen=3)
    assert (outside == 0).all()
    assert kernel.attention_rows(qkv, cu_seqlens, torch.tensor([0], device=device)[:0], 1, max_seqlen=3).numel() == 0


# --- arguments and registration ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"qkv": torch.ones(4, 2, 24)}, r"qkv: got shape \(4, 2, 24\), wanted \(rows, 3 \* num_heads \* head_dim\)"),
        ({"qkv": torch.ones(4, 24).long()}, "qkv: got dtype torch.int64"),
        ({"qkv": torch.ones(4, 25)}, "qkv: got 25 columns, wanted three times a multiple of num_heads"),
        ({"qkv": torch.ones(4, 3 * 2 * 136)}, "heads of at most 128"),
        ({"cu_seqlens": torch.tensor([0, 4])}, "cu_seqlens: got dtype torch.int64, wanted torch.int32"),
        ({"cu_seqlens": torch.tensor([], dtype=torch.int32)}, "got -1 spans"),
        ({"head_scale": torch.ones(3)}, r"head_scale: got shape \(3,\), wanted \(2,\)"),
        ({"scale": -1.0}, "scale: got -1.0, wanted a positive number"),
        ({"max_seqlen": -1}, "max_seqlen: got -1"),
        ({"dropout_p": 0.1}, "dropout_p: got 0.1, wanted 0"),
        ({"num_heads": 0}, "num_heads"),
    ],
)
def test_bad_arguments(change, words) -> None:
    arguments = {"qkv": torch.ones(4, 24), "cu_seqlens": torch.tensor([0, 4], dtype=torch.int32), "num_heads": 2}
    with pytest.raises(ValueError, match=words):
        kernel.attention(**(arguments | {"max_seqlen": 4} | change))


def test_bad_query_rows() -> None:
    with pytest.raises(ValueError, match="attention_rows: query_rows: got dtype torch.float32"):
        cu_seqlens = torch.tensor([0, 4], dtype=torch.int32)
        kernel.attention_rows(torch.ones(4, 24), cu_seqlens, torch.ones(2), 2, max_seqlen=4)


def test_registration(device) -> None:
    qkv, cu_seqlens = _qkv(12, 3 * 2 * 16, torch.float32, device), _bounds((7, 4), device)
    queries, head_scale = torch.tensor([0, 9], device=device), torch.ones(2, device=device)
    torch.library.opcheck(torch.ops.vilt_fast.attention.default, (qkv, cu_seqlens, 2, 7, 0.25, head_scale))
    torch.library.opcheck(torch.ops.vilt_fast.attention_rows.default, (qkv, cu_seqlens, queries, 2, 7, 0.25, None))

    def both(qkv: Tensor) -> tuple[Tensor, Tensor]:
        rows = kernel.attention_rows(qkv, cu_seqlens, queries, 2, max_seqlen=7)
        return kernel.attention(qkv, cu_seqlens, 2, max_seqlen=7, head_scale=head_scale), rows

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (qkv, qkv[:11]):
        assert all(map(torch.equal, compiled(rows), both(rows)))
    with pytest.raises(RuntimeError, match="no autograd formula"):
        both(qkv.requires_grad_())[0].sum().backward()


class _Recorder:
    """Stands in for a kernel and notes the grid of its launch."""

    def __init__(self) -> None:
        self.grids: list[tuple[int, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]):
        return lambda *arguments, **options: self.grids.append(grid)


def test_launchers_read_nothing_from_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Meta tensors have no values: a launcher that asked for one would raise."""
    recorder = _Recorder()
    monkeypatch.setattr(kernel, "attention_kernel", recorder)
    monkeypatch.setattr(rows_kernel, "attention_rows_kernel", recorder)
    monkeypatch.setattr(launch, "arch_of", lambda tensor: "sm90")
    qkv, cu_seqlens = torch.empty(900, 3 * 128, device="meta"), torch.empty(6, dtype=torch.int32, device="meta")
    queries = torch.empty(3, dtype=torch.int64, device="meta")
    with pytest.raises(RuntimeError):
        cu_seqlens[-1].item()
    kernel._launch(qkv.half(), cu_seqlens, 2, 281, 0.125, None)
    rows_kernel._launch(qkv.half(), cu_seqlens, queries, 2, 281, 0.125, None)
    assert recorder.grids == [(5, 2, 6), (3, 2)]


# --- on a GPU ---------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_vqa_mix(dtype, gpu, tolerances) -> None:
    """256 pairs of real sizes: against fp64, without a wait for the device, and each pair as it is alone."""
    from vilt_fast.bench.workloads import vqa_mix

    workload = vqa_mix(256)
    patches = [(height // 32) * (width // 32) for height, width in workload.sizes]
    lengths = tuple(words + 1 + count for words, count in zip(workload.lengths, patches, strict=True))
    qkv, cu_seqlens = _qkv(sum(lengths) + 1000, 3 * 768, dtype, gpu), _bounds(lengths, gpu)
    kernel.attention(qkv, cu_seqlens, 12, max_seqlen=max(lengths))
    torch.cuda.set_sync_debug_mode("error")
    try:
        batch = kernel.attention(qkv, cu_seqlens, 12, max_seqlen=max(lengths))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    _check(tolerances, qkv, cu_seqlens, 12, max(lengths))
    bounds = cu_seqlens.tolist()
    for pair in range(0, 256, 17):
        start, stop = bounds[pair], bounds[pair + 1]
        alone = kernel.attention(qkv[start:stop], _bounds((stop - start,), gpu), 12, max_seqlen=stop - start)
        assert torch.equal(alone, batch[start:stop])


@pytest.mark.gpu
def test_graph_capture(gpu) -> None:
    qkv, cu_seqlens = _qkv(500, 3 * 768, torch.bfloat16, gpu), _bounds((197, 281), gpu)
    wanted = kernel.attention(qkv, cu_seqlens, 12, max_seqlen=281)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = kernel.attention(qkv, cu_seqlens, 12, max_seqlen=281)
    graph.replay()
    assert torch.equal(got, wanted)
