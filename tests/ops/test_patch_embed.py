"""patch_embed: the kernel beside the fp64 reference, for every patch size, with poison in the pixels nobody chose."""

import pytest
import torch
from torch import Tensor

from vilt_fast.contracts.positions import BICUBIC, BICUBIC_SCALE, BILINEAR
from vilt_fast.reference.patch_embed import interpolate
from vilt_fast.reference.patch_embed import patch_embed as reference
from vilt_fast.reference.patch_sample import patch_sample

pytest.importorskip("triton", reason="the kernels need Triton")
from vilt_fast.kernels import patch_embed as kernel  # noqa: E402

FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
DTYPES = (FP32, FP16, BF16)


def _plan(batch: int, grid_size: tuple[int, int], patch: int, limit: int, g: torch.Generator) -> dict[str, Tensor]:
    """Places of words, CLS and patches of a batch whose pictures have random sizes; limit < 0 keeps every patch."""
    pixel_mask = torch.zeros(batch, grid_size[0] * patch, grid_size[1] * patch, dtype=torch.int64)
    for picture in pixel_mask:
        height, width = (int(torch.randint(1, n + 1, (), generator=g)) for n in grid_size)
        picture[: height * patch, : width * patch] = 1
    words = torch.rand(batch, 3, generator=g) < 0.5
    plan = patch_sample(words, pixel_mask, None, grid_size, limit, 7, torch.arange(batch))
    return plan._asdict()


def _inputs(
    batch: int, channels: int, grid_size: tuple[int, int], patch: int, hidden: int, dtype: torch.dtype,
    device: torch.device, *, pixels: torch.dtype | None = None, limit: int = -1, table_size: tuple[int, int] = (5, 7),
    seed: int = 0,
) -> dict:  # fmt: skip
    """Arguments of both sides. Pixels nobody chose are NaN, and so are the tokens."""
    g = torch.Generator().manual_seed(seed)
    plan = _plan(batch, grid_size, patch, limit, g)
    rows, columns = grid_size
    pictures = torch.full((batch, channels, rows * patch + 3, columns * patch + 1), float("nan"))
    for cell in plan["patch_index"][plan["patch_index"] >= 0].tolist():
        b, y, x = cell // (rows * columns), cell // columns % rows, cell % columns
        window = pictures[b, :, y * patch : (y + 1) * patch, x * patch : (x + 1) * patch]
        window.copy_(torch.randn(window.shape, generator=g))
    shapes = {"bias": (hidden,), "position": (1 + table_size[0] * table_size[1], hidden), "cls_token": (hidden,)}
    tables = {name: torch.randn(shape, generator=g) for name, shape in (shapes | {"modality": (3, hidden)}).items()}
    tables["weight"] = torch.randn(hidden, channels, patch, patch, generator=g) / (channels**0.5 * patch)
    tables["tokens"] = torch.full((int(plan["cu_seqlens"][-1]), hidden), float("nan"))
    inputs = {name: table.to(device, dtype) for name, table in tables.items()}
    inputs["pixels"] = pictures.to(device, pixels or dtype)
    inputs["pair_modality"] = torch.randint(0, 3, (batch,), generator=g).to(device)
    inputs |= {name: plan[name].to(device) for name in ("grid", "patch_index", "patch_row", "cls_row")}
    return inputs | {"table_size": table_size}


def _written(inputs: dict) -> Tensor:
    """Rows that patches and CLS go to."""
    rows = torch.cat((inputs["patch_row"], inputs["cls_row"])).long()
    return rows[rows >= 0]


def _check(tolerances, inputs: dict) -> Tensor:
    """Checks the rows that something goes to, and that no other row is touched."""
    # The kernel rounds pixels to the dtype of the weight first, as the reference does.
    rounded = inputs | {"pixels": inputs["pixels"].to(inputs["weight"].dtype)}
    wide = {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in rounded.items()}
    tokens = inputs["tokens"].clone()
    got = kernel.patch_embed(**(inputs | {"tokens": tokens}))
    assert got.data_ptr() == tokens.data_ptr()
    rows = _written(inputs)
    tolerances.check("patch_embed", got[rows], reference(**wide)[rows], reference(**inputs)[rows])
    others = torch.ones(len(got), dtype=torch.bool, device=got.device).index_fill(0, rows, False)
    assert got[others].isnan().all()
    return got


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("patch", "channels", "hidden"), [(32, 3, 48), (16, 4, 144), (14, 3, 64), (8, 1, 272), (32, 2, 16), (10, 1, 40)]
)
def test_against_fp64(patch, channels, hidden, dtype, device, tolerances) -> None:
    _check(tolerances, _inputs(3, channels, (3, 4), patch, hidden, dtype, device, seed=patch))


@pytest.mark.parametrize(("pixels", "dtype"), [(FP32, BF16), (FP32, FP16), (BF16, FP32), (FP16, BF16)], ids=str)
def test_pixels_of_another_dtype(pixels, dtype, device, tolerances) -> None:
    _check(tolerances, _inputs(2, 3, (2, 3), 16, 32, dtype, device, pixels=pixels))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_more_patches_than_a_block_and_sampled(dtype, device, tolerances) -> None:
    """197 and 281 patches or so: several blocks, the last one half used; then lists with unused places."""
    _check(tolerances, _inputs(2, 1, (12, 24), 8, 32, dtype, device, seed=5))
    sampled = _inputs(5, 1, (6, 9), 8, 32, dtype, device, limit=40, seed=1)
    assert (sampled["patch_index"] < 0).sum() > 64
    _check(tolerances, sampled)


@pytest.mark.parametrize(
    ("grid_size", "table_size"), [((1, 1), (4, 4)), ((1, 5), (3, 1)), ((6, 2), (1, 1)), ((7, 8), (7, 8))]
)
def test_positions(grid_size, table_size, device, tolerances) -> None:
    """Grids and tables of one row or column, and a grid as large as the table, which has to be read exactly."""
    inputs = _inputs(3, 1, grid_size, 8, 16, FP32, device, table_size=table_size)
    _check(tolerances, inputs)
    if grid_size == table_size:
        inputs |= {"grid": torch.tensor(grid_size, dtype=torch.int32, device=device).repeat(3, 1)}
        nothing = {name: torch.zeros_like(inputs[name]) for name in ("weight", "bias", "modality")}
        got = kernel.patch_embed(**(inputs | nothing | {"pixels": inputs["pixels"].nan_to_num()}))
        chosen = inputs["patch_index"] >= 0
        wanted = inputs["position"][1 + inputs["patch_index"][chosen].long() % 56]
        torch.testing.assert_close(got[inputs["patch_row"][chosen].long()], wanted, atol=3e-6, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("interpolation", [None, BICUBIC, BICUBIC_SCALE])
def test_as_vit_reads_positions(interpolation, dtype, device, tolerances) -> None:
    """No modality, and grids smaller and larger than the table; one image has the table's own."""
    inputs = _inputs(3, 1, (6, 9), 8, 40, dtype, device, table_size=(6, 9) if interpolation is None else (4, 7))
    inputs |= {"modality": None, "pair_modality": None, "interpolation": interpolation}
    inputs["grid"][0] = torch.tensor(inputs["table_size"], device=device)
    inputs["pixels"] = inputs["pixels"].nan_to_num()
    _check(tolerances, inputs)


@pytest.mark.parametrize("table_size", [(7, 7), (1, 1), (2, 5)])
@pytest.mark.parametrize("grid", [(1, 1), (7, 7), (3, 11), (16, 2)])
def test_bicubic_is_what_torch_interpolates(grid, table_size) -> None:
    table = torch.randn(table_size[0] * table_size[1], 6, dtype=torch.float64)
    cell = torch.arange(grid[0] * grid[1])
    image = table.view(1, *table_size, 6).permute(0, 3, 1, 2)
    for interpolation in (BICUBIC, BICUBIC_SCALE):
        got = interpolate(
            table, table_size, torch.tensor(grid).expand(len(cell), 2), cell // grid[1], cell % grid[1], interpolation
        )
        if interpolation == BICUBIC or grid == table_size:
            sizes = {"size": grid}
        else:
            sizes = {"scale_factor": tuple((n + 0.1) / of for n, of in zip(grid, table_size, strict=True))}
        wanted = torch.nn.functional.interpolate(image, mode="bicubic", align_corners=False, **sizes)
        torch.testing.assert_close(got, wanted[0].flatten(1).T, atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("has_bias", [True, False])
def test_masked_patches(has_bias, dtype, device, tolerances) -> None:
    """The mask token in the place of the projection, which may be NaN there."""
    inputs = _inputs(3, 1, (3, 4), 8, 40, dtype, device)
    chosen = inputs["patch_index"] >= 0
    masked = torch.zeros(3 * 12, dtype=torch.bool, device=device)
    masked[inputs["patch_index"][chosen][::2].long()] = True
    masked = masked.view(3, 3, 4)
    tiles = inputs["pixels"][:, :, :24, :32].unflatten(2, (3, 8)).unflatten(4, (4, 8))
    tiles.masked_fill_(masked[:, None, :, None, :, None], float("nan"))
    inputs |= {"masked": masked, "mask_token": torch.randn(40, device=device).to(dtype)}
    _check(tolerances, inputs if has_bias else inputs | {"bias": None})


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_strides(dtype, device, tolerances) -> None:
    """Channels last, a crop at an odd pixel, rows and tables inside wider ones, an expanded index."""
    inputs = _inputs(2, 3, (2, 3), 16, 32, dtype, device)
    wanted = _check(tolerances, inputs)
    pixels = inputs["pixels"]
    crop = torch.full((2, 3, pixels.shape[2] + 2, pixels.shape[3] + 5), float("nan"), dtype=dtype, device=device)
    crop[:, :, 1:-1, 3:-2] = pixels
    wide = torch.full((len(wanted), 48), float("nan"), dtype=dtype, device=device)
    tables = {name: inputs[name].repeat_interleave(2, -1)[..., ::2] for name in ("bias", "position", "modality")}
    tables["weight"] = inputs["weight"].transpose(2, 3).contiguous().transpose(2, 3)
    for view in (pixels.to(memory_format=torch.channels_last), crop[:, :, 1:-1, 3:-2]):
        got = kernel.patch_embed(**(inputs | tables | {"pixels": view, "tokens": wide[:, 8:40]}))
        assert torch.equal(got.nan_to_num(), wanted.nan_to_num())
        assert wide[:, :8].isnan().all() and wide[:, 40:].isnan().all()


def test_without_bias_cls_or_patches(device, tolerances) -> None:
    inputs = _inputs(3, 2, (2, 2), 8, 32, FP32, device)
    _check(tolerances, inputs | {"bias": None})
    bare = inputs | {"cls_row": torch.full_like(inputs["cls_row"], -1)}
    got = _check(tolerances, bare)
    patches = inputs["patch_row"][inputs["patch_row"] >= 0].long()
    whole = kernel.patch_embed(**(inputs | {"tokens": inputs["tokens"].clone()}))
    assert torch.equal(got[patches], whole[patches])
    assert got[inputs["cls_row"].long()].isnan().all()
    for count in (0, 3):
        nothing = torch.full((count,), -1, dtype=torch.int32, device=device)
        lists = {"patch_index": nothing, "patch_row": nothing}
        got = kernel.patch_embed(**(inputs | lists | {"tokens": inputs["tokens"].clone()}))
        assert torch.equal(got[inputs["cls_row"].long()], whole[inputs["cls_row"].long()])
        assert got[patches].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_picture_does_not_depend_on_its_batch(dtype, device) -> None:
    """Whole numbers, so that sums are exact: what is left to differ is what a tile reads and writes."""
    inputs = _inputs(4, 1, (5, 9), 8, 32, dtype, device, seed=3)
    inputs["pixels"] = (inputs["pixels"] * 2).round().nan_to_num()
    inputs["weight"] = (inputs["weight"] * 16).round()
    batch = kernel.patch_embed(**(inputs | {"tokens": inputs["tokens"].clone()}))
    mine = (inputs["patch_index"] // 45 == 2) & (inputs["patch_index"] >= 0)
    count = int(mine.sum())
    one = {name: inputs[name][2:3] for name in ("pixels", "pair_modality", "grid")}
    one["patch_index"] = inputs["patch_index"][mine] - 2 * 45
    one["patch_row"] = torch.arange(1, count + 1, dtype=torch.int32, device=device)
    one["cls_row"] = torch.zeros(1, dtype=torch.int32, device=device)
    alone = kernel.patch_embed(**(inputs | one | {"tokens": inputs["tokens"][: count + 1].clone()}))
    assert torch.equal(alone[1:], batch[inputs["patch_row"][mine].long()])
    assert torch.equal(alone[0], batch[inputs["cls_row"][2].long()])


# --- arguments and registration ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tokens": torch.ones(9, 16).double()}, "tokens: got dtype torch.float64"),
        ({"tokens": torch.ones(16, 9).t()}, "tokens: got strides"),
        ({"pixels": torch.ones(2, 1, 16, 16, dtype=torch.uint8)}, "pixels: got dtype torch.uint8"),
        ({"weight": torch.ones(16, 3, 8, 8)}, r"pixels: got shape \(2, 1, 19, 17\), wanted \(2, 3, H, W\)"),
        ({"weight": torch.ones(16, 1, 8, 4)}, r"weight: got shape \(16, 1, 8, 4\), wanted square patches of 4 to 64"),
        ({"weight": torch.ones(16, 1, 2, 2)}, r"wanted square patches of 4 to 64"),
        ({"bias": torch.ones(15)}, r"bias: got shape \(15,\), wanted \(16,\)"),
        ({"table_size": (5, 6)}, r"position: got shape \(36, 16\), wanted \(31, 16\)"),
        ({"cls_token": torch.ones(1, 16)}, "cls_token: got shape"),
        ({"pair_modality": torch.zeros(2).int()}, "pair_modality: got dtype torch.int32, wanted torch.int64"),
        ({"grid": torch.zeros(2, 3).int()}, r"grid: got shape \(2, 3\), wanted \(B, 2\)"),
        ({"patch_row": torch.zeros(3).int()}, "patch_row: got shape"),
        ({"cls_row": torch.zeros(2).long()}, "cls_row: got dtype torch.int64"),
        ({"pixels": torch.ones(2, 1, 16, 16, device="meta")}, "wanted one device"),
        ({"interpolation": "nearest"}, "interpolation: got 'nearest', wanted one of None, 'bilinear'"),
        ({"modality": None}, "modality, pair_modality: got one of them, wanted both or none"),
        ({"mask_token": torch.ones(16)}, "mask_token, masked: got one of them"),
        ({"masked": torch.ones(2, 2, 2), "mask_token": torch.ones(16)}, "masked: got dtype torch.float32"),
        ({"masked": torch.ones(2, 4).bool(), "mask_token": torch.ones(16)}, r"masked: got shape \(2, 4\), wanted"),
    ],
)
def test_bad_arguments(change, words) -> None:
    inputs = _inputs(2, 1, (2, 2), 8, 16, FP32, torch.device("cpu"))
    with pytest.raises(ValueError, match=words):
        kernel.patch_embed(**(inputs | change))


def _operation(inputs: dict) -> dict:
    """Arguments of the registered operation."""
    pixels, patch = inputs["pixels"], inputs["weight"].shape[-1]
    grid_size = (pixels.shape[2] // patch, pixels.shape[3] // patch)
    left_out = {"pixel_offset": None, "mask_token": None, "masked": None, "interpolation": BILINEAR, "pixel_scale": 1.0}
    return {**left_out, "grid_size": grid_size, **inputs}


def test_registration(device) -> None:
    inputs = _inputs(2, 1, (2, 2), 8, 16, FP32, device)
    inputs |= {"tokens": torch.zeros_like(inputs["tokens"]), "pixels": inputs["pixels"].nan_to_num()}
    for bias in (inputs["bias"], None):
        torch.library.opcheck(torch.ops.vilt_fast.patch_embed.default, (), _operation(inputs | {"bias": bias}))

    def embed(pixels: Tensor) -> Tensor:
        return kernel.patch_embed(**(inputs | {"tokens": torch.zeros_like(inputs["tokens"]), "pixels": pixels}))

    compiled = torch.compile(embed, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(inputs["pixels"]), embed(inputs["pixels"]))
    inputs["weight"].requires_grad_()
    with pytest.raises(RuntimeError, match="patch_embed: the kernel has no backward pass"):
        embed(inputs["pixels"]).sum().backward()


def test_the_launcher_reads_nothing_from_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Meta tensors have no values: a launcher that asked for one would raise."""
    grids = []

    class Recorder:
        def __getitem__(self, grid):
            return lambda *arguments, **options: grids.append(grid)

    monkeypatch.setattr(kernel, "patch_embed_kernel", Recorder())
    monkeypatch.setattr(kernel.launch, "arch_of", lambda tensor: "sm90")
    inputs = _inputs(5, 1, (6, 9), 8, 272, BF16, torch.device("cpu"), limit=40)
    arguments = _operation(inputs)
    kernel._launch(**{name: v.to("meta") if isinstance(v, Tensor) else v for name, v in arguments.items()})
    assert grids == [((2 + 1) * 3, 1, 1)]  # 200 places and 5 CLS rows in blocks of 128, 272 columns in blocks of 128


# --- on a GPU ---------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize(("pixels", "dtype"), [(FP32, FP32), (FP16, FP16), (BF16, BF16), (FP32, BF16)], ids=str)
def test_vqa_mix(pixels, dtype, gpu, tolerances) -> None:
    """256 pictures of real sizes: against fp64, without a wait for the device, and each picture as it is alone."""
    from vilt_fast.bench.workloads import vqa_mix

    sizes = vqa_mix(256).sizes
    grid_size = tuple(max(size[axis] for size in sizes) // 32 for axis in (0, 1))
    inputs = _inputs(256, 3, grid_size, 32, 768, dtype, gpu, pixels=pixels, table_size=(12, 12))
    batch = _check(tolerances, inputs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        kernel.patch_embed(**inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    cells = grid_size[0] * grid_size[1]
    for picture in range(0, 256, 17):
        mine = (inputs["patch_index"] // cells == picture) & (inputs["patch_index"] >= 0)
        count = int(mine.sum())
        one = {name: inputs[name][picture : picture + 1] for name in ("pixels", "pair_modality", "grid")}
        one["patch_index"] = inputs["patch_index"][mine] - picture * cells
        one["patch_row"] = torch.arange(count, dtype=torch.int32, device=gpu)
        one["cls_row"] = torch.full((1,), -1, dtype=torch.int32, device=gpu)
        alone = kernel.patch_embed(**(inputs | one | {"tokens": inputs["tokens"][:count].clone()}))
        assert torch.equal(alone, batch[inputs["patch_row"][mine].long()])
