"""preprocessor_config.json of ViT and DeiT: read from every version, written for every version, others refused."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
from transformers.models.vilt.image_processing_pil_vilt import ViltImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

import vilt_fast
from vilt_fast import ViltImageProcessor, ViTImageProcessor

DATA = Path(__file__).parents[1] / "data" / "transformers-4.37"
SETTINGS = {
    "do_resize": True,
    "size": {"height": 30, "width": 40},
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 0.01,
    "do_normalize": True,
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.4, 0.5, 0.6],
}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
# As released checkpoints have them.
HUB = {
    "google/vit-base-patch16-224": {
        "do_normalize": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "size": 224,
    },
    "facebook/dino-vitb16": {
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "ViTFeatureExtractor",
        **IMAGENET,
        "resample": 3,
        "size": 224,
    },
    "facebook/deit-base-patch16-224": {
        "crop_size": 224,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "DeiTFeatureExtractor",
        **IMAGENET,
        "resample": 3,
        "size": 256,
    },
    "a fast class of 4.5x": {
        **dict.fromkeys(
            (
                *("crop_size", "device", "disable_grouping", "do_center_crop", "do_convert_rgb", "do_pad"),
                *("input_data_format", "pad_size", "return_tensors"),
            )
        ),
        "data_format": "channels_first",
        "default_to_square": True,
        "image_processor_type": "ViTImageProcessorFast",
        **SETTINGS,
    },
}
recorded = runpy.run_path(str(DATA / "make_processors.py"))


@pytest.fixture
def picture(random_picture):
    return random_picture(np.random.default_rng(0), 60, 200)


def write(directory, content):
    (directory / "preprocessor_config.json").write_text(json.dumps(content))
    return directory


@pytest.mark.parametrize("name", HUB)
def test_files_of_the_hub(name, picture, tmp_path, assert_same):
    write(tmp_path, HUB[name])
    ours, theirs = (kind.from_pretrained(tmp_path) for kind in (ViTImageProcessor, ViTImageProcessorPil))
    assert_same(ours(picture), theirs(picture))
    ours.save_pretrained(tmp_path / "again")
    assert ViTImageProcessor.from_pretrained(tmp_path / "again").to_dict() == ours.to_dict()


@pytest.mark.parametrize("extra", [{}, {"do_center_crop": True, "crop_size": {"height": 20, "width": 50}}])
def test_saved_settings_load_in_transformers_and_back(extra, picture, tmp_path, assert_same):
    ours = ViTImageProcessor(**SETTINGS, **extra)
    assert ours.save_pretrained(tmp_path) == [str(tmp_path / "preprocessor_config.json")]
    # 4.37's class of ViT cuts nothing, so the file names the one that does.
    name = "DeiTImageProcessor" if extra else "ViTImageProcessor"
    assert json.loads(ours.to_json_string()) == {**SETTINGS, **extra, "image_processor_type": name}
    for kind in (ViTImageProcessorPil, DeiTImageProcessorPil) if extra else (ViTImageProcessorPil,):
        theirs = kind.from_pretrained(tmp_path)
        assert_same(ours(picture), theirs(picture))
        theirs.save_pretrained(tmp_path / "theirs")
        again = ViTImageProcessor.from_pretrained(tmp_path / "theirs")
        assert {key: again.to_dict()[key] for key in ours.to_dict()} == ours.to_dict()
        assert_same(again(picture), ours(picture))


def test_deits_defaults_fill_what_a_file_does_not_say():
    said = {"image_processor_type": "DeiTImageProcessorFast", "crop_size": None, "size": 30, "note": None}
    processor = ViTImageProcessor.from_dict(said)
    assert processor.crop_size == {"height": 224, "width": 224} and processor.do_center_crop
    assert (processor.size, processor.resample) == ({"height": 30, "width": 30}, 3)
    assert ViTImageProcessor.from_dict(processor.to_dict()).to_dict() == processor.to_dict()
    assert processor.to_dict()["note"] is None


def test_settings_of_our_own_are_written_where_they_are_set(tmp_path):
    own = {"do_pad": True, "do_convert_rgb": True, "rescale_in_float64": False, "note": "kept"}
    processor = ViTImageProcessor(**own)
    assert {key: processor.to_dict()[key] for key in own} == own
    processor.save_pretrained(tmp_path)
    assert ViTImageProcessor.from_pretrained(tmp_path).to_dict() == processor.to_dict()
    assert not {*own, "crop_size", "do_center_crop"} & set(ViTImageProcessor().to_dict())
    loaded, unused = ViTImageProcessor.from_pretrained(tmp_path, size=30, foo=1, return_unused_kwargs=True)
    assert (loaded.size, unused) == ({"height": 30, "width": 30}, {"foo": 1})


def test_nested_settings_of_5_x_come_first_and_are_kept_up_to_date(tmp_path):
    content = {"image_processor": {**SETTINGS, "image_processor_type": "ViTImageProcessor"}}
    (tmp_path / "processor_config.json").write_text(json.dumps(content))
    write(tmp_path, {"size": 33})
    assert ViTImageProcessor.from_pretrained(tmp_path).size == SETTINGS["size"]
    ViTImageProcessor(size=55).save_pretrained(tmp_path)
    assert ViTImageProcessorPil.from_pretrained(tmp_path).size.height == 55


@pytest.mark.parametrize("name", recorded["DIRECTORIES"])
@pytest.mark.filterwarnings("ignore:.*will be scaled again")
def test_pixels_of_4_37(name):
    """Hashes of what 4.37.2 made: the switch gives all of them; without it floats that are rescaled differ."""
    wanted = json.loads((DATA / name / "expected.json").read_text())
    old = ViTImageProcessor.from_pretrained(DATA / name, rescale_in_float64=False)
    new = ViTImageProcessor.from_pretrained(DATA / name)
    for seed, (dtype, is_unit, call) in enumerate(recorded["CALLS"]):
        image = recorded["picture"](seed, dtype, is_unit)
        hashes = [
            recorded["digest"](processor(image, **call, return_tensors="np").pixel_values) for processor in (old, new)
        ]
        is_rescaled = call.get("do_rescale", True) and (is_unit or call.get("do_resize") is False)
        assert hashes[0] == wanted[seed]
        assert (hashes[1] == wanted[seed]) is not (is_rescaled and dtype in ("float16", "float32")), call


# --- which class reads which file


def test_each_family_refuses_the_other(tmp_path):
    ViltImageProcessor().save_pretrained(tmp_path / "vilt")
    ViTImageProcessor().save_pretrained(tmp_path / "vit")
    advice = "wanted ViTImageProcessor or DeiTImageProcessor; load it with vilt_fast.ViltImageProcessor"
    with pytest.raises(ValueError, match=f"vilt.preprocessor_config.json: image_processor_type: got 'Vilt.*{advice}"):
        ViTImageProcessor.from_pretrained(tmp_path / "vilt")
    with pytest.raises(ValueError, match="wanted ViltImageProcessor; load it with vilt_fast.ViTImageProcessor"):
        ViltImageProcessor.from_pretrained(tmp_path / "vit")
    with pytest.raises(
        ValueError, match="feature_extractor_type: got 'DeiTFeatureExtractor', wanted ViltImageProcessor"
    ):
        ViltImageProcessor.from_dict(HUB["facebook/deit-base-patch16-224"])
    for kind, cls in ((ViltImageProcessorPil, ViltImageProcessor), (ViTImageProcessorPil, ViTImageProcessor)):
        kind().save_pretrained(tmp_path / "theirs")
        assert cls.from_pretrained(tmp_path / "theirs").to_dict()["image_processor_type"] == cls.__name__


@pytest.mark.parametrize(
    "name", ["BitImageProcessor", "CLIPFeatureExtractor", "BeitImageProcessorFast", "AImage", 3, []]
)
def test_other_classes_are_refused_by_name(name, tmp_path):
    key = "feature_extractor_type" if name == "CLIPFeatureExtractor" else "image_processor_type"
    write(tmp_path, {**SETTINGS, key: name})
    for kind, wanted in (
        (ViTImageProcessor, "ViTImageProcessor or DeiTImageProcessor; make a ViTImageProcessor"),
        (ViltImageProcessor, "ViltImageProcessor; make a ViltImageProcessor"),
    ):
        with pytest.raises(ValueError) as caught:
            kind.from_pretrained(tmp_path)
        assert f"{tmp_path}/preprocessor_config.json: " in str(caught.value)
        assert f"{key}: got {name!r}, wanted {wanted}(size=..., " in str(caught.value)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("size", (3.5, "x", [], {}, {"height": 3}, 0, True, {"shortest_edge": None}, {"longest_edge": 5})),
        ("crop_size", ("x", [1, 2, 3], {"height": 3}, -1)),
        ("do_center_crop", ("x", 1)),
        ("do_convert_rgb", ("x", 1)),
        ("rescale_in_float64", ("x", None)),
        ("pad_size", (300, {"height": 3, "width": 4})),
        ("resample", (9, "x", True)),
        ("do_pad", ("x", 1)),
        ("pack", (3,)),
        ("self", (3,)),
    ],
)
def test_a_wrong_setting_is_named_with_its_file(key, values, tmp_path):
    for value in values:
        write(tmp_path, {**SETTINGS, key: value})
        if (key, value) == ("rescale_in_float64", None):
            assert ViTImageProcessor.from_pretrained(tmp_path).rescale_in_float64 is True
            continue
        with pytest.raises(ValueError, match=key) as caught:
            ViTImageProcessor.from_pretrained(tmp_path)
        assert str(tmp_path) in str(caught.value)


def test_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="preprocessor_config.json"):
        ViTImageProcessor.from_pretrained(tmp_path)
    with pytest.raises(AttributeError, match="did you mean ViTImageProcessor, which reads DeiT's files too"):
        _ = vilt_fast.DeiTImageProcessor
