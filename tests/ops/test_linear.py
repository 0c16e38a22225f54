"""linear: both kernels beside the fp64 reference, at edges, with strides, with every epilogue."""

import pytest
import torch
from torch import Tensor

from vilt_fast.reference.linear import linear as reference

pytest.importorskip("triton", reason="the kernels need Triton")
from vilt_fast.kernels import launch  # noqa: E402
from vilt_fast.kernels import linear as kernel  # noqa: E402

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
EPILOGUES = [
    (None, False),
    (None, True),
    ("gelu", False),
    ("gelu", True),
    ("gelu_tanh", True),
    ("relu", True),
    ("tanh", False),
]
POINTER = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64, "GROUP_M": 3, "num_warps": 4, "num_stages": 2}
DESCRIPTOR = POINTER | {"SUBTILES": 2, "FLATTEN": True, "programs": 2}
CONFIGS = {"pointer": POINTER, "descriptor": DESCRIPTOR}


def _inputs(rows: int, N: int, K: int, dtype: torch.dtype, device: torch.device, seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator(device).manual_seed(seed)
    shapes = {"input": (rows, K), "weight": (N, K), "bias": (N,), "residual": (rows, N)}
    inputs = {key: torch.randn(shape, generator=g, device=device) for key, shape in shapes.items()}
    inputs["weight"] *= 2 * K**-0.5
    return {key: value.to(dtype) for key, value in inputs.items()}


def _launch(name: str, inputs: dict[str, Tensor | None], activation: str | None, config: dict | None = None) -> Tensor:
    """Runs one of the two kernels into an output full of NaN."""
    x, w = inputs["input"], inputs["weight"]
    out = torch.full((x.shape[0], w.shape[0]), float("nan"), dtype=x.dtype, device=x.device)
    if name == "descriptor" and x.is_cuda and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("descriptors need sm_90")
    plan = kernel._Plan(x, w, activation, config or CONFIGS[name])
    plan.write(out, x, w, inputs["bias"], inputs["residual"])
    return out


def _wanted(inputs: dict[str, Tensor | None], activation: str | None) -> tuple[Tensor, Tensor]:
    """The fp64 reference, and PyTorch's own result in the dtype of the inputs."""
    wide = {key: None if value is None else value.double() for key, value in inputs.items()}
    return reference(**wide, activation=activation), reference(**inputs, activation=activation)


def _name(activation: str | None) -> str:
    return "linear" if activation is None else f"linear {activation}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("activation", "residual"), EPILOGUES)
@pytest.mark.parametrize("name", CONFIGS)
def test_epilogues(name, activation, residual, dtype, device, tolerances) -> None:
    # 8 columns over a tile, 65 rows and K of two and a half blocks: every edge is there.
    inputs = _inputs(65, 72, 160, dtype, device)
    if not residual:
        inputs["residual"] = None
    tolerances.check(_name(activation), _launch(name, inputs, activation), *_wanted(inputs, activation))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 63, 64, 197, 281])
@pytest.mark.parametrize("name", CONFIGS)
def test_rows(name, rows, dtype, device, tolerances) -> None:
    inputs = _inputs(rows, 136, 64, dtype, device, seed=rows)
    tolerances.check("linear", _launch(name, inputs, None), *_wanted(inputs, None))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("N", "K"), [(1, 16), (2, 768), (77, 50), (65, 1), (130, 129)])
def test_odd_sizes(N, K, dtype, device, tolerances, poisoned) -> None:
    inputs = _inputs(67, N, K, dtype, device, seed=N)
    tolerances.check("linear", kernel.linear(**inputs), *_wanted(inputs, None))


@pytest.mark.parametrize("first", [True, False], ids=["bias first", "bias by halves"])
def test_columns_end_in_a_tile(first, device, tolerances) -> None:
    """The right half of the last tile lies past the bias, which is read once or for each half."""
    inputs = _inputs(65, 96, 64, torch.bfloat16, device)
    config = DESCRIPTOR | {"BIAS_FIRST": first}
    tolerances.check("linear", _launch("descriptor", inputs, None, config), *_wanted(inputs, None))


@pytest.mark.parametrize("name", CONFIGS)
def test_strided(name, device, tolerances) -> None:
    """Rows of wider matrices, at an offset that TMA can take; nothing beside them is read."""
    whole = _inputs(200, 256, 256, torch.float16, device)
    inputs = {"input": whole["input"][3:137:2, 16:144], "weight": whole["weight"][1:81, 16:144]}
    inputs |= {"bias": whole["bias"][:80], "residual": whole["residual"][3:137:2, 8:88]}
    for matrix in (whole["input"], whole["weight"], whole["residual"]):
        kept = matrix.clone()
        matrix.fill_(float("nan"))
        matrix[1:137, 8:144] = kept[1:137, 8:144]
    inputs["input"][5] = inputs["input"][4]
    wanted = _wanted(inputs, "relu")
    tolerances.check("linear relu", _launch(name, inputs, "relu"), *wanted)


def test_columns_that_are_not_contiguous(device, tolerances, poisoned) -> None:
    inputs = _inputs(33, 48, 40, torch.float32, device)
    inputs["input"] = inputs["input"].t().contiguous().t()
    inputs["residual"] = inputs["residual"][:1].expand(33, 48)
    inputs["bias"] = inputs["bias"].repeat_interleave(2)[::2]
    tolerances.check("linear", kernel.linear(**inputs), *_wanted(inputs, None))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_row_does_not_depend_on_its_batch(name, device) -> None:
    """Whole numbers, so that sums are exact: what is left to differ is which elements a tile reads and writes."""
    g = torch.Generator().manual_seed(1)
    x, w = (torch.randint(-4, 5, shape, generator=g).to(device, torch.float16) for shape in ((150, 64), (72, 64)))
    inputs = {"input": x, "weight": w, "bias": None, "residual": None}
    batch = _launch(name, inputs, None)
    assert torch.equal(batch, (x.float() @ w.float().T).half())
    for start, stop in ((0, 1), (70, 135), (149, 150)):
        alone = _launch(name, inputs | {"input": x[start:stop]}, None)
        assert torch.equal(alone, batch[start:stop])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", kernel.ACTIVATIONS)
def test_extreme_values(activation, dtype, device) -> None:
    """Saturated, zero and NaN accumulators: saturation is exact, and NaN stays in its row and column."""
    x = torch.tensor([[0.0], [1e4], [-1e4], [40.0], [-40.0], [float("nan")]])
    got = kernel.linear(x.to(device, dtype), torch.ones(3, 1, dtype=dtype, device=device), activation=activation).cpu()
    wanted = reference(x.double(), torch.ones(3, 1).double(), activation=activation)
    assert torch.equal(got[:5].double(), wanted[:5].to(dtype).double())
    assert got[5].isnan().all()


@pytest.mark.parametrize(("dtype", "half_ulp"), [(torch.float16, 2**-11), (torch.bfloat16, 2**-8)], ids=str)
def test_gelu_is_exact_enough(dtype, half_ulp, device) -> None:
    """The 16-bit form against erf on a fine grid; in fp32 it would be 3e-6 off."""
    rounded = torch.linspace(-9, 9, 4001, dtype=torch.float64).to(dtype)
    got = kernel.linear(rounded[:, None].to(device), torch.ones(1, 1, dtype=dtype, device=device), activation="gelu")
    wanted = torch.nn.functional.gelu(rounded.double())
    assert ((got[:, 0].cpu().double() - wanted).abs() <= 3.1e-6 + half_ulp * wanted.abs() * 1.01).all()


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "tanh"])
def test_fp32_activations(activation, device) -> None:
    """To a few units in the last place, on both sides of where tanh changes its form."""
    x = torch.linspace(-6, 6, 4001)
    got = kernel.linear(x[:, None].to(device), torch.ones(1, 1, device=device), activation=activation)[:, 0].cpu()
    wanted = reference(x[:, None].double(), torch.ones(1, 1).double(), activation=activation)[:, 0]
    scale = x.abs().clamp(max=1.0 if activation == "tanh" else 6.0)
    assert ((got.double() - wanted).abs() <= 3e-7 * scale).all()


def test_no_rows_and_no_columns(device) -> None:
    x, w = torch.ones(0, 8, device=device), torch.ones(5, 8, device=device)
    assert kernel.linear(x, w).shape == (0, 5)
    assert kernel.linear(torch.ones(3, 8, device=device), w[:0]).shape == (3, 0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"input": torch.ones(2, 3, 4)}, r"input: got shape \(2, 3, 4\), wanted \(rows, K\)"),
        ({"input": torch.ones(2, 4, dtype=torch.float64)}, "input: got dtype torch.float64"),
        ({"weight": torch.ones(3, 5)}, r"weight: got shape \(3, 5\), wanted \(N, 4\)"),
        ({"weight": torch.ones(3, 4).half()}, "weight: got dtype torch.float16, wanted torch.float32"),
        ({"bias": torch.ones(4)}, r"bias: got shape \(4,\), wanted \(3,\)"),
        ({"residual": torch.ones(2, 4)}, r"residual: got shape \(2, 4\), wanted \(2, 3\)"),
        ({"activation": "silu"}, "activation: got 'silu'"),
        ({"bias": torch.ones(3, device="meta")}, "got tensors on cpu, meta, wanted one device"),
    ],
)
def test_bad_arguments(change, words) -> None:
    with pytest.raises(ValueError, match=words):
        kernel.linear(**({"input": torch.ones(2, 4), "weight": torch.ones(3, 4)} | change))


def test_cpu_tensors_without_the_interpreter(monkeypatch) -> None:
    monkeypatch.setattr(launch, "INTERPRETED", False)
    with pytest.raises(ValueError, match="TRITON_INTERPRET=1"):
        kernel.linear(torch.ones(2, 4), torch.ones(3, 4))


def test_backward_says_that_there_is_none(device) -> None:
    w = torch.ones(3, 4, device=device, requires_grad=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        kernel.linear(torch.ones(2, 4, device=device), w).sum().backward()


def test_registration(device) -> None:
    inputs = _inputs(9, 16, 24, torch.float32, device)
    operation = torch.ops.vilt_fast.linear.default
    bare = inputs | {"bias": None, "residual": None}
    for arguments in (inputs | {"activation": "gelu"}, bare | {"activation": None}):
        torch.library.opcheck(operation, (), arguments)


def _two_layers(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return kernel.linear(kernel.linear(x, w, b, activation="gelu"), w, b, residual=x)


def test_compile_and_export(device) -> None:
    x, w, b = (torch.randn(shape, device=device) for shape in ((9, 16), (16, 16), (16,)))
    wanted = _two_layers(x, w, b)
    compiled = torch.compile(_two_layers, fullgraph=True, backend="aot_eager", dynamic=True)
    assert torch.equal(compiled(x, w, b), wanted)
    assert torch.equal(compiled(x[:5], w, b), _two_layers(x[:5], w, b))

    class Module(torch.nn.Module):
        def forward(self, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
            return _two_layers(x, w, b)

    program = torch.export.export(Module(), (x, w, b), dynamic_shapes=({0: torch.export.Dim("rows")}, None, None))
    assert torch.equal(program.module()(x[:7], w, b), _two_layers(x[:7], w, b))


# --- real sizes, on a GPU ---------------------------------------------------------------------------------------------

# N, K, activation, residual of the four products of a ViT-B block, and rows of 1, 8, 64 and 256 pairs.
VIT_B = [(2304, 768, None, False), (768, 768, None, True), (3072, 768, "gelu", False), (768, 3072, None, True)]
ROWS = (226, 1688, 13504, 53831)


@pytest.fixture(params=["highest", "high"])
def precision(request):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


def _check_real_size(tolerances, inputs: dict[str, Tensor | None], activation: str | None) -> None:
    tolerances.check(_name(activation), kernel.linear(**inputs, activation=activation), *_wanted(inputs, activation))


@pytest.mark.gpu
@pytest.mark.parametrize(("N", "K", "activation", "residual"), VIT_B)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_real_sizes(dtype, N, K, activation, residual, gpu, tolerances, poisoned) -> None:
    for rows in ROWS[:3]:
        inputs = _inputs(rows, N, K, dtype, gpu, seed=rows)
        _check_real_size(tolerances, inputs | ({} if residual else {"residual": None}), activation)


@pytest.mark.gpu
def test_real_sizes_in_fp32(precision, gpu, tolerances, poisoned) -> None:
    for N, K, activation, _ in VIT_B:
        _check_real_size(tolerances, _inputs(1688, N, K, torch.float32, gpu), activation)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("N", "K", "activation", "residual"), VIT_B)
def test_same_bits_in_every_batch(N, K, activation, residual, dtype, precision, gpu) -> None:
    """A pair's rows, alone and at several places in batches of every size class."""
    inputs = _inputs(ROWS[-1], N, K, dtype, gpu)
    inputs |= {} if residual else {"residual": None}
    pair = {key: inputs[key][:226] if inputs[key] is not None else None for key in ("input", "residual")}
    alone = kernel.linear(**(inputs | pair), activation=activation)
    for rows in ROWS[1:]:
        for start in (0, 57, rows - 226):
            batch = {key: inputs[key][:rows].clone() if inputs[key] is not None else None for key in pair}
            for key, value in batch.items():
                if value is not None:
                    value[start : start + 226] = pair[key]
            out = kernel.linear(**(inputs | batch), activation=activation)
            assert torch.equal(out[start : start + 226], alone), (rows, start)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_both_kernels_give_the_same_bits(dtype, gpu) -> None:
    """Which of the two runs depends on alignment, and that may depend on where a pair's rows are."""
    inputs = _inputs(1688, 768, 3072, dtype, gpu)
    for activation in kernel.ACTIVATIONS:
        assert torch.equal(_launch("pointer", inputs, activation), _launch("descriptor", inputs, activation)), (
            activation
        )


@pytest.mark.gpu
def test_cuda_graph(gpu) -> None:
    inputs = _inputs(226, 3072, 768, torch.bfloat16, gpu)
    wanted = kernel.linear(**inputs, activation="gelu")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = kernel.linear(**inputs, activation="gelu")
    out.fill_(float("nan"))
    graph.replay()
    assert torch.equal(out, wanted)


@pytest.mark.gpu
def test_offsets_beyond_32_bits(gpu) -> None:
    """Rows whose elements start past 2^31, in both kernels."""
    if torch.cuda.mem_get_info()[0] < 16 << 30:
        pytest.skip("needs 16 GiB of free GPU memory")
    rows = 2_900_000
    x = torch.empty(rows, 768, dtype=torch.float16, device=gpu).normal_()
    w = torch.randn(768, 768, dtype=torch.float16, device=gpu) / 28
    inputs = {"input": x, "weight": w, "bias": None, "residual": None}
    for name in CONFIGS:
        last = {"input": x[-200:].clone()}
        assert torch.equal(_launch(name, inputs, None)[-200:], _launch(name, inputs | last, None))
