"""What every shipped configuration compiles to, for four chips, without a GPU."""

import os
import re

import pytest

triton = pytest.importorskip("triton", reason="the kernels need Triton")
tl = pytest.importorskip("triton.language")
from vilt_fast.bench import compile as compiler  # noqa: E402
from vilt_fast.kernels import launch  # noqa: E402
from vilt_fast.kernels.shipped import describe, empty  # noqa: E402

# Kernels that multiply matrices; the others have no use for a matrix unit.
PRODUCTS = {"linear_pointer", "linear_descriptor", "attention_kernel", "patch_embed_kernel"}
MATRIX_UNIT = {"sm80": "mma", "sm90": "wgmma", "sm100": "tcgen05", "gfx942": "mfma"}
FIELDS = ("target", "kernel", "config", "registers", "spill_bytes", "shared_bytes", "matrix_instructions")


def _needs_matrix_unit(row: dict) -> bool:
    """Whether a row is a product of a type that matrix units take: on NVIDIA that is all but fp32 as it is."""
    dtypes = set(re.findall(r"bf16|fp16|tf32|fp32", row["config"]))
    return row["kernel"] in PRODUCTS and (dtypes != {"fp32"} or row["target"] == "gfx942")


def _depth(shape: str) -> str:
    """How many elements of K one instruction adds up: "16" of "m64n256k16" and of "16x16x16"."""
    return re.split(r"[kx]", shape)[-1]


def test_every_shipped_configuration() -> None:
    # One test for all targets: a process that compiles takes seconds to start, and xdist would start more of them.
    rows = compiler.compile_all()
    names = [(row["target"], row["kernel"], row["config"]) for row in rows]
    assert len(set(names)) == len(names), "a configuration is there twice"
    for row in rows:
        assert set(FIELDS) <= set(row)
        assert 0 < row["registers"] <= (512 if row["target"] == "gfx942" else 255), row
        assert row["shared_bytes"] <= launch.SHARED_LIMIT[row["target"]], row
        if row["target"] in ("sm80", "sm90") or "+normed" in row["config"]:
            assert row["spill_bytes"] == 0, row
        if row["target"] == "sm90" and row["config"] in ("p32 u8 x bf16", "p16 u8 x fp16"):
            assert row["registers"] <= 128, row  # two programs on a multiprocessor
        if _needs_matrix_unit(row):
            assert row["matrix_instructions"] == MATRIX_UNIT[row["target"]], row
    for target in compiler.TARGETS:
        here = [row for row in rows if row["target"] == target]
        descriptors = set() if target in ("sm80", "gfx942") else {"linear_descriptor"}
        assert {row["kernel"] for row in here} >= (PRODUCTS - {"linear_descriptor"}) | descriptors
        _check_depths(here)


def _check_depths(rows: list[dict]) -> None:
    """A row of a product is the same in every batch because every tile adds K in the same chunks."""
    for dtype in ("bf16", "tf32", "fp32"):
        products = [row for row in rows if row["kernel"].startswith("linear") and dtype in row["config"].split()]
        depths = {_depth(shape) for row in products for shape in row["matrix_shapes"]}
        assert len(depths) <= 1, (dtype, depths)


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="target: got 'sm70', wanted one of sm80, sm90, sm100, gfx942"):
        compiler.compile_all(["sm70"])
    with pytest.raises(ValueError, match="operations: got convolution, wanted some of resize"):
        compiler.compile_all(["sm80"], operations=["convolution"])


def test_a_kernel_that_does_not_compile_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_PATH", "")
    monkeypatch.setenv("TRITON_PTXAS_PATH", os.devnull)
    monkeypatch.setenv("TRITON_ALWAYS_COMPILE", "1")
    with pytest.raises(RuntimeError, match="a kernel does not compile"):
        compiler.compile_all(["sm80"], operations=["layer_norm"], jobs=1)


def _function(out_ptr, rows, columns, scale, seed: tl.int64, BLOCK: tl.constexpr, bias_ptr=None):
    pass


def test_describe() -> None:
    kernel, out = triton.JITFunction(_function, do_not_specialize=["rows"]), empty("bf16", 32)
    given = ((out, 16, 16, 0.5, 7), {"BLOCK": 64, "num_warps": 4})
    described = describe("name {BLOCK} w{num_warps}", kernel, *given)
    assert described.name == "name 64 w4" and described.options == {"num_warps": 4}
    types = {"out_ptr": "*bf16", "rows": "i32", "columns": "i32", "scale": "fp32", "seed": "i64"}
    assert described.signature == types | {"BLOCK": "constexpr", "bias_ptr": "constexpr"}
    assert described.constexprs == {"BLOCK": 64, "bias_ptr": None}
    assert described.attributes == {(i,): [["tt.divisibility", 16]] for i in (0, 2)}  # rows are not specialised
    unaligned = describe("name", kernel, (out[1:], 1, 1, 0.5, 7), {"BLOCK": 64})
    assert unaligned.attributes == {} and unaligned.constexprs == {"columns": 1, "BLOCK": 64, "bias_ptr": None}
    for arguments, named in (((out,), {"BLOCK": 64}), (given[0], {"BLOK": 64}), (given[0], {"BLOCK": 64, "rows": 1})):
        with pytest.raises(TypeError, match="argument"):
            describe("name", kernel, arguments, named)


def test_matrix_instructions_are_told_apart() -> None:
    ptx = "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {}; mma.sync.aligned.m16n8k16.row.col.f32 {};"
    assert compiler.matrix_instructions(ptx) == {"wgmma": ["m64n256k16"], "mma": ["m16n8k16"]}
    assert compiler.matrix_instructions("v_mfma_f32_16x16x16_bf16 a[0:3]") == {"mfma": ["16x16x16"]}
    assert compiler.matrix_instructions("fma.rn.f32 %f1, %f2, %f3, %f4;") == {}
