"""Regions of detectors: what their files hold, and what is refused before it takes memory."""

import io
import zipfile

import numpy as np
import pytest
import torch

from vilt_fast.processing.regions import BOXES, FEATURES, Regions, as_regions, read_regions

RNG = np.random.default_rng(0)
WIDTH = 8


def features(count: int = 5) -> np.ndarray:
    return RNG.normal(size=(count, WIDTH)).astype(np.float32)


def boxes(count: int = 5) -> np.ndarray:
    return RNG.uniform(0, 400, (count, 4)).astype(np.float32)


def npz(path, compressed=False, **arrays):
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize("compressed", [False, True], ids=["stored", "deflated"])
def test_features_under_the_names_of_detectors(tmp_path, name, compressed) -> None:
    wanted = features()
    read = read_regions(npz(tmp_path / "r.npz", compressed, **{name: wanted, "image_w": 640, "objects": np.arange(5)}))
    assert np.array_equal(read.features, wanted) and read.boxes is None and len(read) == 5
    assert repr(read) == "Regions(5 of 8 features)"


@pytest.mark.parametrize("name", BOXES)
def test_boxes_under_the_names_of_detectors(tmp_path, name) -> None:
    wanted = boxes()
    read = read_regions(str(npz(tmp_path / "r.npz", features=features(), **{name: wanted})))
    assert np.array_equal(read.boxes, wanted)
    whole = read_regions(npz(tmp_path / "i.npz", features=features(), **{name: wanted.astype(np.int32)}))
    assert np.array_equal(whole.boxes, wanted.astype(np.int32)) and whole.boxes.dtype == np.float32


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4", ">f8"])
def test_floats_become_float32(tmp_path, dtype) -> None:
    given = features().astype(dtype)
    read = read_regions(npz(tmp_path / "r.npz", x=given))
    assert read.features.dtype == np.float32 and np.array_equal(read.features, given.astype(np.float32))


def test_other_layouts_of_arrays(tmp_path) -> None:
    wanted = features()
    assert np.array_equal(read_regions(npz(tmp_path / "f.npz", x=np.asfortranarray(wanted))).features, wanted)
    assert np.array_equal(read_regions(npz(tmp_path / "b.npz", roi_features=wanted[None])).features, wanted)
    np.savez(tmp_path / "plain.npz", wanted)
    assert np.array_equal(read_regions(tmp_path / "plain.npz").features, wanted)
    np.save(tmp_path / "mmf.npy", wanted)
    assert np.array_equal(read_regions(tmp_path / "mmf.npy").features, wanted)


@pytest.mark.parametrize("name", ["num_boxes", "num_bbox"])
def test_rows_of_padding_are_no_regions(tmp_path, name) -> None:
    padded, where = np.concatenate((features(3), np.zeros((4, WIDTH), np.float32))), boxes(7)
    padded[4] = where[5] = np.nan  # nobody reads them
    for count in (np.int64(3), np.array([3], np.int32), 3.0, np.array([[3]], np.float16)):
        read = read_regions(npz(tmp_path / "r.npz", features=padded, bbox=where, **{name: count}))
        assert np.array_equal(read.features, padded[:3]) and np.array_equal(read.boxes, where[:3])
    for count in (0, 8, -1, 3.5, np.nan, np.inf, 3j, "3", [1, 2]):
        with pytest.raises(ValueError, match=rf"^regions: {name}: got .*wanted a whole number from 1 to 7"):
            as_regions({"features": padded, name: count})
    with pytest.raises(ValueError, match=r"r\.npz': boxes: got shape \(3, 4\), wanted \(7, 4\)"):
        read_regions(npz(tmp_path / "r.npz", features=padded, bbox=where[:3], **{name: 3}))
    with pytest.raises(ValueError, match=r"r\.npz': features: region 4 holds NaN"):
        read_regions(npz(tmp_path / "r.npz", features=padded, **{name: 5}))


def test_regions_are_a_copy() -> None:
    for given in (features(), torch.from_numpy(features()), features()[None]):
        where = boxes()
        kept, wanted = Regions(given, where), np.array(given).reshape(5, WIDTH)
        given[:], where[:] = np.nan, np.nan
        assert np.array_equal(kept.features, wanted) and np.isfinite(kept.boxes).all()


@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_the_bytes_of_a_file(tmp_path, suffix) -> None:
    wanted = features()
    file = io.BytesIO()
    np.savez(file, features=wanted) if suffix == "npz" else np.save(file, wanted)
    content = file.getvalue()
    for given in (content, bytearray(content), memoryview(content), file):
        assert np.array_equal(as_regions(given).features, wanted)
    with pytest.raises(ValueError, match="^regions: damaged or no .npz file"):
        as_regions(content[:50])
    (tmp_path / "r").write_bytes(content)
    with open(tmp_path / "r", "rb") as opened, pytest.raises(ValueError, match="regions: got BufferedReader, wanted"):
        as_regions(opened)


@pytest.mark.parametrize("names", [("features.npy", "features.npy"), ("info", "info"), ("x.npy", "x")])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_arrays_of_one_name(tmp_path, names) -> None:
    np.save(tmp_path / "r.npy", features())
    with zipfile.ZipFile(tmp_path / "r.npz", "w") as archive:
        for name in ("feats.npy", *names):
            archive.writestr(name, (tmp_path / "r.npy").read_bytes())
    with pytest.raises(ValueError, match=r"r\.npz': got two arrays of the name '(features|info|x)', wanted one"):
        read_regions(tmp_path / "r.npz")


def test_long_names_are_shortened(tmp_path) -> None:
    for given in ({"x" * 5000: features()}, {"features": features(), "boxes" * 1000: boxes(), "y" * 5000: boxes()}):
        with pytest.raises(ValueError, match="^regions: ") as caught:
            as_regions({name: array for name, array in given.items() if name != "features"})
        assert len(str(caught.value)) < 700
    with pytest.raises(FileNotFoundError) as missing:
        read_regions("x" * 5000)
    assert len(str(missing.value)) < 300


def test_regions_of_any_kind(tmp_path) -> None:
    wanted = features()
    tensor = torch.from_numpy(wanted)
    kinds = (Regions(wanted), wanted, tensor, tensor.clone().requires_grad_(), {"features": tensor, "boxes": boxes()})
    for given in (*kinds, npz(tmp_path / "r.npz", features=wanted)):
        assert np.array_equal(as_regions(given).features, wanted)
    assert np.array_equal(as_regions(tensor.bfloat16()).features, tensor.bfloat16().float().numpy())


WRONG = {
    "no_features": ({"boxes": np.ones((5, 4))}, "got 'boxes', wanted the features, under the name 'features'"),
    "nothing": ({}, "got nothing, wanted the features"),
    "twice": ({"features": features(), "x": features()}, "got features and x, wanted one array of the features"),
    "one_axis": ({"features": features()[0]}, r"features: got shape \(8,\), wanted \(regions, width\)"),
    "images": ({"features": features().reshape(5, 2, 4)}, r"features: got shape \(5, 2, 4\)"),
    "no_region": ({"features": features(0)}, r"got shape \(0, 8\), wanted .* at least one region"),
    "integers": ({"features": np.ones((5, 8), int)}, "features: got an array of int64, wanted .* features are floats"),
    "bytes": ({"features": np.ones((5, 8), "S4")}, r"features: holds an array of \|S4"),
    "complex": ({"features": np.ones((5, 8), complex)}, "features: holds an array of complex128"),
    "fields": ({"features": np.ones(5, [("a", "f4")])}, "features: holds an array of"),
    "boxes": ({"features": features(), "boxes": boxes(4)}, r"boxes: got shape \(4, 4\), wanted \(5, 4\)"),
    "six": ({"features": features(), "boxes": np.ones((5, 6))}, r"boxes: got shape \(5, 6\), wanted \(5, 4\)"),
    "turned": ({"x": features().T, "bbox": boxes()}, "seem to be transposed: save features.T"),
    "inf_box": ({"features": features(), "boxes": boxes() * np.inf}, "boxes: region 0 holds NaN or an infinity"),
    "overflow": ({"features": np.full((5, 8), 1e300)}, "features: region 0 holds NaN or an infinity"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arrays_are_refused_by_file(tmp_path, case) -> None:
    arrays, message = WRONG[case]
    with pytest.raises(ValueError, match=r"^regions: '.*r\.npz': .*" + message):
        read_regions(npz(tmp_path / "r.npz", **arrays))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_first_bad_region_is_named(tmp_path, bad) -> None:
    wrong = features()
    wrong[3, 2] = wrong[4, 0] = bad
    with pytest.raises(ValueError, match="features: region 3 holds NaN or an infinity, wanted finite numbers"):
        read_regions(npz(tmp_path / "r.npz", features=wrong))
    with pytest.raises(ValueError, match=r"^visual: features: region 3 holds NaN"):
        as_regions(wrong, "visual")


def test_python_objects_are_not_run(tmp_path) -> None:
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    held = np.array([Trap()], object)
    np.savez(tmp_path / "r.npz", features=held)
    np.save(tmp_path / "info.npy", held)
    for name in ("r.npz", "info.npy"):
        with pytest.raises(ValueError, match="holds Python objects, which are not run"):
            read_regions(tmp_path / name)
    np.savez(tmp_path / "beside.npz", features=features(), info=held)
    assert len(read_regions(tmp_path / "beside.npz")) == 5  # what is not read does no harm
    assert not (tmp_path / "ran").exists()


def header(shape: str, version: bytes = b"\1\0", pad: int = 0) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}{' ' * pad}\n".encode()
    return b"\x93NUMPY" + version + len(text).to_bytes(2 if version[0] == 1 else 4, "little") + text


BOMBS = {
    "declared": (header(f"({10**6}, {10**6})"), "wanted at most 8388608 numbers"),
    "negative": (header("(-1, 8)"), "damaged or no .npz"),
    "long_header": (header("(5, 8)", b"\2\0", 2**22), "damaged or no .npz"),
    "short": (header("(5, 8)") + b"\0" * 100, "damaged or no .npz"),
    "goes_on": (header("(5, 8)") + b"\0" * 2**22, "goes on after its last number"),
    "future": (header("(5, 8)", b"\7\0"), "damaged or no .npz"),
}


@pytest.mark.parametrize("case", BOMBS)
def test_sizes_are_looked_at_before_memory(tmp_path, case) -> None:
    content, message = BOMBS[case]
    with zipfile.ZipFile(tmp_path / "r.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("features.npy", content)
    with pytest.raises(ValueError, match=rf"r\.npz': .*{message}"):
        read_regions(tmp_path / "r.npz")


def test_a_member_that_no_limit_holds_for(tmp_path) -> None:
    with zipfile.ZipFile(tmp_path / "r.npz", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("features.npy", header("(5, 8)") + b"\0" * 2**20)
    with pytest.raises(ValueError, match="compressed as no .npz is"):
        read_regions(tmp_path / "r.npz")


def test_a_changed_byte_is_noticed(tmp_path) -> None:
    """The checksum of the ZIP covers header and numbers."""
    file = io.BytesIO()
    np.savez(file, features=features())
    content = bytearray(file.getvalue())
    at = content.index(b"(5, 8)")
    for place, byte in ((at + 1, b"4"), (at + 200, b"\x55")):
        changed = bytearray(content)
        changed[place : place + 1] = byte
        (tmp_path / "r.npz").write_bytes(changed)
        with pytest.raises(ValueError, match=r"r\.npz': damaged or no .npz file"):
            read_regions(tmp_path / "r.npz")


def test_what_is_no_file_of_regions(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="regions: no such file: 'none.npz'"):
        read_regions("none.npz")
    with pytest.raises(ValueError, match="is a directory, wanted an .npz file"):
        read_regions(tmp_path)
    for content in (b"", b"\xff\xd8\xff\xe0 a picture", b"PK\3\4", b"PK\5\6" + bytes(17)):
        (tmp_path / "r.npz").write_bytes(content)
        with pytest.raises(ValueError, match="damaged or no .npz file"):
            read_regions(tmp_path / "r.npz")
    with open(tmp_path / "large.npz", "wb") as file:
        file.truncate(2**27 + 1)
    with pytest.raises(ValueError, match="has 134217729 bytes, wanted at most 134217728"):
        read_regions(tmp_path / "large.npz")
    for value in (None, 3, [1.0]):
        with pytest.raises(ValueError, match="regions: got .*, wanted the path of an .npz file"):
            read_regions(value)
        with pytest.raises(ValueError, match="regions: got .*, wanted a Regions, the path of an .npz"):
            as_regions(value)
    with pytest.raises(ValueError, match="features: got list, wanted an array or a tensor of float32"):
        Regions([[1.0]])
    with pytest.raises(ValueError, match="features: got a tensor without plain values"):
        Regions(torch.eye(3).to_sparse())
