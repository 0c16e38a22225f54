"""resize: the reference against Pillow, byte for byte, and the kernel against the reference.

What the kernel compiles to is in test_compile.py.
"""

import itertools
import json
import os
import random
import runpy
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import PIL
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vilt_fast.contracts import pillow as contract
from vilt_fast.reference import resize as reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RULES = contract.RULES
RESAMPLES = contract.RESAMPLES
INSTALLED = contract.pillow_rule(PIL.__version__)
ORACLE = Path(__file__).with_name("pillow_oracle.py")
GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "resize_golden.json").read_text())
oracle = SimpleNamespace(**runpy.run_path(str(ORACLE)))


@pytest.fixture(scope="session")
def kernel(device: torch.device) -> ModuleType:
    """The kernel's module, where kernels run at all; on a CPU that is in Triton's interpreter."""
    from vilt_fast.kernels import resize

    return resize


def as_bytes(image: Tensor) -> bytes:
    assert image.is_contiguous() and image.dtype == torch.uint8
    return image.cpu().numpy().tobytes()


def from_bytes(data: bytes, height: int, width: int, channels: int) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(height, width, channels)


def pillow(image: Tensor, size: tuple[int, int], resample: str = "bicubic") -> bytes:
    return oracle.resized(as_bytes(image.contiguous()), *image.shape, size, resample)


def content(rng: random.Random, shape: tuple[int, int, int]) -> Tensor:
    """Noise; black and white, whose lobes overshoot and are clipped; a slope; or one colour."""
    generator = torch.Generator().manual_seed(rng.getrandbits(40))
    noise = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    slope = torch.arange(shape[0])[:, None, None] * 5 + torch.arange(shape[1])[:, None] * 3 + torch.arange(shape[2])
    kinds = (noise, (noise > 127) * 255, slope % 256, noise[:1, :1].expand(shape))
    return rng.choices(kinds, weights=(6, 3, 2, 1))[0].to(torch.uint8)


def case(rng: random.Random, side: int, channels: tuple[int, ...] = (1, 2, 3, 3, 3, 4)) -> tuple[Tensor, tuple]:
    height, width, h, w = (rng.randint(1, side) for _ in range(4))
    if rng.random() < 0.3:  # the height shrinks more than the width: the first and the last rule differ
        h, w = rng.randint(1, max(1, height // 2)), rng.randint(max(1, width - 4), width + 10)
    elif rng.random() < 0.1:  # about 100 times as high as wide: the second rule turns
        width = rng.randint(1, 2)
        height = 100 * width + rng.randint(-1, 9)
    return content(rng, (height, width, rng.choice(channels))), (h, w)


# --- the reference against Pillow -------------------------------------------------------------------------------------


@pytest.mark.parametrize("resample", RESAMPLES)
@pytest.mark.parametrize(("side", "count", "seed"), [(8, 1500, 1), (40, 1500, 2), (90, 500, 3), (400, 50, 4)])
def test_equals_installed_pillow(side: int, count: int, seed: int, resample: str) -> None:
    rng = random.Random(f"{seed} {resample}")
    for _ in range(count):
        image, size = case(rng, side)
        (result,) = reference.resize([image], [size], rule=INSTALLED, resample=resample)
        assert result.shape == (*size, image.shape[2])
        assert as_bytes(result) == pillow(image, size, resample), (tuple(image.shape), size)


EXTREMES = [((1, 1), (1, 1)), ((1, 1), (65, 3)), ((1, 2000), (1, 3)), ((1, 2000), (2, 2000)), ((2000, 1), (1, 1))]
EXTREMES += [((2000, 1), (3, 700)), ((1, 2000), (2000, 1)), ((2, 3), (1, 900)), ((1333, 7), (64, 5)), ((5, 5), (5, 4))]


@pytest.mark.parametrize("resample", RESAMPLES)
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(("shape", "size"), EXTREMES)
def test_extremes_equal_installed_pillow(shape: tuple, size: tuple, channels: int, resample: str) -> None:
    image = content(random.Random(7), (*shape, channels))
    (result,) = reference.resize([image], [size], rule=INSTALLED, resample=resample)
    assert as_bytes(result) == pillow(image, size, resample)


@pytest.mark.parametrize("backend", ["reference", "kernel"])
def test_photographs_equal_installed_pillow(backend: str, request: pytest.FixtureRequest) -> None:
    datasets = pytest.importorskip("sklearn.datasets", reason="the photographs are scikit-learn's")
    module = reference if backend == "reference" else request.getfixturevalue("kernel")
    photographs = [torch.from_numpy(photo.copy()) for photo in datasets.load_sample_images().images]
    # ViLT's size for 427 x 640 and for the portrait; a square; up, and one that goes rows first in Pillow 13.
    sizes = [(384, 576), (384, 384), (608, 640), (128, 576)]
    pairs = [(p, size) for p in photographs for size in sizes] + [(p.transpose(0, 1), (576, 384)) for p in photographs]
    if backend == "kernel" and DEVICE == "cpu":
        pairs = [(photographs[0][100:220, 200:360], (96, 128)), (photographs[1][:100, :40], (32, 36))]  # slow there
    images, sizes = [image.to(DEVICE) for image, _ in pairs], [size for _, size in pairs]
    for resample in RESAMPLES:
        results = module.resize(images, sizes, rule=INSTALLED, resample=resample)
        for (image, size), result in zip(pairs, results, strict=True):
            assert as_bytes(result) == pillow(image, size, resample)


def test_strided_pictures_and_copies() -> None:
    base = content(random.Random(3), (30, 44, 3))
    for image in (base.transpose(0, 1), base[::2, 1::3], base.flip(1), base.permute(1, 2, 0)[..., :4]):
        (result,) = reference.resize([image], [(17, 25)], rule=INSTALLED)
        assert as_bytes(result) == pillow(image, (17, 25))
        (same,) = reference.resize([image], [image.shape[:2]])
        assert torch.equal(same, image) and same.is_contiguous() and same.data_ptr() != image.data_ptr()


@pytest.mark.parametrize(("resample", "version"), [(name, version) for name in RESAMPLES for version in GOLDEN[name]])
def test_equals_recorded_pillow(resample: str, version: str) -> None:
    rule = contract.pillow_rule(version)
    for seed, (recorded, (*shape, h, w)) in enumerate(zip(GOLDEN[resample][version], GOLDEN["cases"], strict=True)):
        image = from_bytes(oracle.picture(seed, *shape), *shape)
        (result,) = reference.resize([image], [(h, w)], rule=rule, resample=resample)
        assert oracle.digest(as_bytes(result)) == recorded, (shape, h, w)


@pytest.mark.parametrize("resample", RESAMPLES)
def test_records_tell_the_rules_apart(resample: str) -> None:
    by_rule = {contract.pillow_rule(version): row for version, row in GOLDEN[resample].items()}
    assert set(by_rule) == set(RULES)
    for one, two in itertools.combinations(RULES, 2):
        differ = [case for case, a, b in zip(GOLDEN["cases"], by_rule[one], by_rule[two], strict=True) if a != b]
        assert len(differ) >= 5
        for H, W, _, h, w in differ:
            assert contract.vertical_first(H, W, h, w, one) != contract.vertical_first(H, W, h, w, two)


def test_equals_another_pillow() -> None:
    folder = os.environ.get("VILT_FAST_OTHER_PILLOW")
    if not folder:
        pytest.skip("VILT_FAST_OTHER_PILLOW names no folder that holds another Pillow (pip install --target)")
    rng = random.Random(11)
    cases = [[*image.shape, *size] for image, size in (case(rng, 60) for _ in range(600))]
    answer = subprocess.run(
        [sys.executable, str(ORACLE)],
        input=json.dumps(cases),
        env={**os.environ, "PYTHONPATH": folder},
        capture_output=True,
        text=True,
        check=True,
    )
    other = json.loads(answer.stdout)
    assert other["version"] != PIL.__version__, "VILT_FAST_OTHER_PILLOW holds the Pillow that is installed"
    rule = contract.pillow_rule(other["version"])
    for resample, seed in itertools.product(RESAMPLES, range(len(cases))):
        *shape, h, w = cases[seed]
        image = from_bytes(oracle.picture(seed, *shape), *shape)
        (result,) = reference.resize([image], [(h, w)], rule=rule, resample=resample)
        assert oracle.digest(as_bytes(result)) == other["hashes"][resample][seed], (shape, h, w)


# --- rules and tables, by hand ----------------------------------------------------------------------------------------


def test_rule_of_a_version() -> None:
    wanted = {"9.5.0": 0, "10.1.0": 0, "11.3.0": 0, "12.1.1": 0, "12.2.0": 1, "12.3.0": 1, "13.0.0": 2, "14.1": 2}
    assert {version: RULES.index(contract.pillow_rule(version)) for version in wanted} == wanted
    with pytest.raises(ValueError, match="version: got 'head'"):
        contract.pillow_rule("head")


ORDERS = {  # (H, W, h, w): vertical first under each of RULES
    (100, 50, 89, 45): (False, False, True),
    (100, 50, 90, 45): (False, False, False),
    (100, 50, 99, 60): (False, False, True),
    (100, 50, 100, 60): (False, False, False),
    (100, 50, 10, 1): (False, False, False),
    (50, 100, 60, 200): (False, False, False),
    (301, 3, 300, 1): (False, True, False),
    (301, 3, 301, 1): (False, False, False),
    (300, 3, 10, 1): (False, False, True),
}


@pytest.mark.parametrize("sizes", ORDERS)
def test_pass_order(sizes: tuple) -> None:
    assert tuple(contract.vertical_first(*sizes, rule) for rule in RULES) == ORDERS[sizes]


def test_table_by_hand() -> None:
    table = contract.resample_table(4, 2, "bicubic")
    # Scale 2, taps at 1/4, 1/4, 3/4 and 5/4 of the stretched cubic from the first centre, mirrored for the second.
    cubic = [0.8671875, 0.8671875, 0.2265625, -0.0703125]
    fixed = [round(value / sum(cubic) * 2**22) for value in cubic]
    assert table[0].tolist() == [0, 0]
    assert table[1:].T.tolist() == [fixed, fixed[::-1]]
    for resample in RESAMPLES:
        assert contract.resample_table(1, 3, resample).tolist() == [[0, 0, 0], [1 << 22] * 3]
        assert contract.resample_table(3, 3, resample).tolist() == [[0, 1, 2], [1 << 22] * 3]
    # A triangle of two pixels to each side, whose first tap lies outside: 3/4, 3/4, 1/4, of 7/4.
    fixed = [round(weight / 7 * 2**22) for weight in (3, 3, 1)]
    assert contract.resample_table(4, 2, "bilinear").T.tolist() == [[0, *fixed], [1, *fixed[::-1]]]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from(RESAMPLES))
def test_tables(in_size: int, out_size: int, resample: str) -> None:
    table = contract.resample_table(in_size, out_size, resample)
    first, weights, taps = table[0], table[1:], len(table) - 1
    assert table.dtype == torch.int32
    assert first.min() >= 0 and first.max() + taps <= in_size
    # Every weight is off by at most half a unit, so a picture of one colour stays that: taps / 2 * 255 < 2^21.
    assert (weights.sum(0) - 2**22).abs().max() <= taps / 2
    flat = torch.full((in_size, 2, 1), 201, dtype=torch.uint8)
    assert (reference.resize([flat], [(out_size, 2)], resample=resample)[0] == 201).all()


# --- the kernel against the reference ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "resample"), [*itertools.product(RULES, ["bicubic"]), (RULES[-1], "bilinear")])
def test_kernel_equals_reference(kernel: ModuleType, rule: str, resample: str) -> None:
    rng = random.Random(21)
    pairs = [case(rng, 70) for _ in range(12)]
    # One and three tiles wide and high, an axis that stays, both that stay, extremes.
    for shape, size in [((33, 90, 3), (17, 86)), ((40, 21, 4), (40, 64)), ((40, 21, 3), (16, 21)), ((9, 9, 2), (9, 9))]:
        pairs.append((content(rng, shape), size))
    pairs += [(content(rng, (*shape, 1)), size) for shape, size in EXTREMES[:2] + EXTREMES[7:]]
    images, sizes = [image.to(DEVICE) for image, _ in pairs], [size for _, size in pairs]
    images[0] = images[0].transpose(0, 1)
    results, expected = (m.resize(images, sizes, rule=rule, resample=resample) for m in (kernel, reference))
    for image, wanted, result in zip(images, expected, results, strict=True):
        assert result.shape == wanted.shape and torch.equal(result, wanted), (tuple(image.shape), wanted.shape)


def test_kernel_with_aligned_rows(kernel: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """No picture goes vertical first, so that the second launch loads words; more pictures than one block of jobs."""
    monkeypatch.setitem(kernel.TILE, "BLOCK_JOBS", 4)
    rng = random.Random(22)
    images = [content(rng, (rng.randint(1, 40), rng.randint(1, 100), 3)) for _ in range(11)]
    sizes = [(rng.randint(1, 20), rng.randint(1, 90)) for _ in images]
    work = kernel._jobs([i.shape for i in images], sizes, [0] * len(images), contract.HORIZONTAL_FIRST, "bicubic")
    assert work.vertical_last
    # The interpreter does not mind a broken promise; a GPU stops at a misaligned word.
    fields = kernel.FIELDS.value
    jobs = work.words[: 4 * fields * len(images)].view(torch.int64).view(2, len(images), fields)[1]
    assert not (jobs[:, [kernel.IN_OFFSET.value, kernel.IN_STRIDE.value]] % kernel.ALIGN.value).any()
    wanted = reference.resize(images, sizes, rule=contract.HORIZONTAL_FIRST)
    results = kernel.resize([i.to(DEVICE) for i in images], sizes, rule=contract.HORIZONTAL_FIRST)
    assert all(torch.equal(result.cpu(), want) for result, want in zip(results, wanted, strict=True))


@pytest.mark.parametrize("backend", ["reference", "kernel"])
def test_packed(backend: str, request: pytest.FixtureRequest) -> None:
    module = reference if backend == "reference" else request.getfixturevalue("kernel")
    rng = random.Random(23)
    pairs = [case(rng, 30) for _ in range(3)]
    shapes, sizes = [tuple(image.shape) for image, _ in pairs], [size for _, size in pairs]
    wanted = reference.resize([image for image, _ in pairs], sizes, resample="bilinear")
    source = torch.cat([image.flatten() for image, _ in pairs]).to(DEVICE)
    out, starts = module.resize_packed(source, shapes, sizes, resample="bilinear")
    assert starts == [sum(w.numel() for w in wanted[:i]) for i in range(4)]
    assert torch.equal(out.cpu(), torch.cat([w.flatten() for w in wanted]))

    # Pictures in another order, with gaps, at odd places.
    offsets, filled = [2000, 7, 9001], torch.full((15000,), 99, dtype=torch.uint8)
    for (image, _), offset in zip(pairs, offsets, strict=True):
        filled[offset : offset + image.numel()] = image.flatten()
    again, starts_again = module.resize_packed(filled.to(DEVICE), shapes, sizes, offsets=offsets, resample="bilinear")
    assert torch.equal(again, out) and starts_again == starts
    empty, starts = module.resize_packed(source, [], [])
    assert empty.shape == (0,) and starts == [0] and module.resize([], []) == []


def test_kernel_beyond_2_gib(kernel: ModuleType) -> None:
    """Offsets past 2^31: the buffer is never touched but where the picture lies, so it takes no memory on a CPU."""
    image, size = content(random.Random(5), (20, 30, 3)), (12, 34)
    offset = (1 << 32) + 5
    source = torch.empty(offset + image.numel(), dtype=torch.uint8, device=DEVICE)
    source[offset:] = image.flatten().to(DEVICE)
    out, _ = kernel.resize_packed(source, [image.shape], [size], offsets=[offset])
    assert torch.equal(out.cpu(), reference.resize([image], [size])[0].flatten())


def test_default_device_is_left_alone(kernel: ModuleType) -> None:
    image = content(random.Random(8), (13, 211, 3))
    with torch.device("meta"):  # stands for set_default_device("cuda"): tables and jobs are made on the host
        results = [module.resize([image.to(DEVICE)], [(19, 23)], rule=INSTALLED)[0] for module in (reference, kernel)]
    assert all(as_bytes(result) == pillow(image, (19, 23)) for result in results)


def test_kernel_is_registered(kernel: ModuleType) -> None:
    image = content(random.Random(6), (5, 6, 3))
    work = kernel._jobs([image.shape], [(4, 7)], [0], contract.ADAPTIVE, "bicubic")
    rest = (1, *work.tiles, work.scratch_bytes, work.starts[-1], work.vertical_last)
    torch.library.opcheck(kernel._resize, (image.flatten().to(DEVICE), work.words.to(DEVICE), *rest))


# --- errors -----------------------------------------------------------------------------------------------------------

IMAGE = torch.zeros(4, 5, 3, dtype=torch.uint8)
WRONG = [
    (([IMAGE.float()], [(2, 2)]), {}, r"images\[0\]: got .*float32, wanted .*uint8"),
    (([IMAGE[0]], [(2, 2)]), {}, r"images\[0\]: got shape \(5, 3\), wanted \(H, W, C\)"),
    (([IMAGE, IMAGE[:0]], [(2, 2)] * 2), {}, r"images\[1\]: got shape \(0, 5, 3\), wanted \(H, W, C\)"),
    (([IMAGE], [(2, 0)]), {}, r"sizes\[0\]: got \(2, 0\), wanted \(height, width\)"),
    (([IMAGE], [(2, 2), (3, 3)]), {}, r"sizes: got 2 for 1 images"),
    (([IMAGE], [(2, 2)]), {"rule": "vertical"}, "rule: got 'vertical', wanted one of horizontal_first, "),
    (([IMAGE], [(2, 2)]), {"resample": "lanczos"}, "resample: got 'lanczos', wanted one of bicubic, bilinear"),
]
WRONG_PACKED = [
    ((IMAGE, [(4, 5, 3)], [(2, 2)]), {}, "source: got .*, wanted"),
    ((IMAGE.flatten(), [(4, 5, 3)] * 2, [(2, 2)] * 2), {}, r"offsets\[1\]: got 60, wanted 60 bytes inside the 60"),
    ((IMAGE.flatten(), [(4, 5, 3)], [(2, 2)]), {"offsets": [1]}, r"offsets\[0\]: got 1, wanted 60 bytes"),
    ((IMAGE.flatten(), [(4, 5, 3)], [(2, 2)]), {"offsets": []}, "offsets: got 0 for 1 images"),
]


@pytest.mark.parametrize("backend", ["reference", "kernel"])
@pytest.mark.parametrize(
    ("function", "arguments", "keywords", "message"),
    [("resize", *case) for case in WRONG] + [("resize_packed", *case) for case in WRONG_PACKED],
)
def test_errors(
    function: str, arguments: tuple, keywords: dict, message: str, backend: str, request: pytest.FixtureRequest
) -> None:
    module = reference if backend == "reference" else request.getfixturevalue("kernel")
    with pytest.raises(ValueError, match=message):
        getattr(module, function)(*arguments, **keywords)


def test_kernel_refuses_2_gib(kernel: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"images\[0\]: got 4 x 5 to 30000 x 30000, wanted less than 2 GiB"):
        kernel.resize([IMAGE], [(30000, 30000)])
