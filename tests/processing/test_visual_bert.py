"""Texts with regions: what VisualBERT reads, here and in transformers."""

import numpy as np
import pytest
import torch
from transformers import BertTokenizer as TheirTokenizer
from transformers import VisualBertConfig, VisualBertModel

from vilt_fast import BertTokenizer, Regions, VisualBertProcessor

WIDTH = 6
RNG = np.random.default_rng(0)
TEXTS = ["what colour is the cat ?", "naïve", "how many dogs"]
VISUAL = ["visual_embeds", "visual_attention_mask", "visual_token_type_ids"]


def features(count: int) -> np.ndarray:
    return RNG.normal(size=(count, WIDTH)).astype(np.float32)


@pytest.fixture(scope="module")
def processor(vocab_file):
    return VisualBertProcessor(BertTokenizer(vocab_file, model_max_length=40))


def test_words_are_the_tokenizers_and_regions_are_padded(processor, vocab_file) -> None:
    given = [features(3), features(1), features(2)]
    batch = processor(TEXTS, given, padding=True, return_tensors="pt")
    words = TheirTokenizer(str(vocab_file), model_max_length=40)(TEXTS, padding=True, return_tensors="pt")
    assert list(batch) == processor.model_input_names == [*words, *VISUAL]
    for name in words:
        assert torch.equal(batch[name], words[name]), name
    assert batch["visual_embeds"].shape == (3, 3, WIDTH) and batch["visual_embeds"].dtype == torch.float32
    assert batch["visual_attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert torch.equal(batch["visual_token_type_ids"], torch.ones(3, 3, dtype=torch.int64))
    for number, one in enumerate(given):
        row = batch["visual_embeds"][number].numpy()
        assert np.array_equal(row[: len(one)], one) and not row[len(one) :].any()
    assert batch.tokens(1)[0] == "[CLS]"  # the encodings are kept
    arrays = processor(TEXTS, given, padding=True, return_tensors="np")
    assert all(np.array_equal(arrays[name], batch[name].numpy()) for name in batch)


def test_regions_of_any_kind_in_one_batch(processor, tmp_path) -> None:
    one = features(4)
    np.savez(tmp_path / "r.npz", features=one)
    kinds = [Regions(one), tmp_path / "r.npz", str(tmp_path / "r.npz"), one, torch.from_numpy(one), {"x": one}]
    batch = processor(["a cat"] * len(kinds), kinds, return_tensors="np")
    assert (batch["visual_embeds"] == one).all()


@pytest.mark.parametrize("kind", ["pt", "np", None])
def test_one_text(processor, kind) -> None:
    one = features(4)
    batch = processor(TEXTS[0], one, return_tensors=kind)
    wanted = (4, WIDTH) if kind is None else (1, 4, WIDTH)
    assert batch["visual_embeds"].shape == wanted and batch["visual_attention_mask"].shape == wanted[:-1]
    split = processor(TEXTS[0].split(), one, is_split_into_words=True, return_tensors=kind)
    assert split["visual_embeds"].shape == wanted and np.array_equal(split["input_ids"], batch["input_ids"])


def test_pairs_truncation_and_no_regions(processor) -> None:
    pair = processor("what is it ?", features(2), "a cat", return_tensors="pt", padding="max_length", max_length=12)
    assert pair["input_ids"].shape == (1, 12) and pair["token_type_ids"].max() == 1
    assert (
        processor(TEXTS[0], features(2), truncation=True, max_length=4)["input_ids"][-1]
        == processor.tokenizer.sep_token_id
    )
    assert list(processor(TEXTS, padding=True)) == ["input_ids", "token_type_ids", "attention_mask"]


def test_transformers_takes_the_inputs(processor) -> None:
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    theirs = VisualBertModel(VisualBertConfig(vocab_size=2000, visual_embedding_dim=WIDTH, **sizes)).eval()
    batch = processor(TEXTS, [features(3), features(1), features(2)], padding=True, return_tensors="pt")
    alone = processor(TEXTS[1], batch["visual_embeds"][1, :1], return_tensors="pt")
    with torch.no_grad():
        together, single = theirs(**batch), theirs(**alone)
    assert torch.allclose(together.pooler_output[1], single.pooler_output[0], atol=1e-5)


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ([features(2)], "regions: got those of 1 images for 3 texts, wanted as many of both"),
        (features(2), "regions: got those of 1 images for 3 texts"),
        ([], "regions: got an empty list"),
        ([features(2), features(2)[:, :5], features(2)], r"regions\[1\]: got features of width 5, wanted 6, as in"),
        ([features(2), np.full((2, 6), np.nan), features(2)], r"regions\[1\]: features: region 0 holds NaN"),
        ([features(2), features(2), None], r"regions\[2\]: got NoneType, wanted a Regions"),
        ([features(2), features(2), np.ones(6)], r"regions\[2\]: features: got shape \(6,\)"),
    ],
    ids=["fewer", "one", "none", "width", "nan", "missing", "vector"],
)
def test_wrong_regions_are_named(processor, regions, message) -> None:
    with pytest.raises(ValueError, match=message):
        processor(TEXTS, regions, padding=True, return_tensors="pt")


def test_files_are_the_tokenizers(processor, vocab_file, tmp_path) -> None:
    paths = processor.save_pretrained(tmp_path / "saved")
    assert {path.rsplit("/", 1)[1] for path in paths} >= {"vocab.txt", "tokenizer_config.json"}
    for folder in (tmp_path / "saved", tmp_path / "theirs"):
        TheirTokenizer(str(vocab_file)).save_pretrained(tmp_path / "theirs")
        again = VisualBertProcessor.from_pretrained(folder)
        assert again(TEXTS)["input_ids"] == processor(TEXTS)["input_ids"]
        assert TheirTokenizer.from_pretrained(folder)(TEXTS)["input_ids"] == processor(TEXTS)["input_ids"]
    ids = processor(TEXTS[0])["input_ids"]
    assert again.decode(ids, skip_special_tokens=True) == again.batch_decode([ids], skip_special_tokens=True)[0]
    assert VisualBertProcessor.from_pretrained(tmp_path / "saved", model_max_length=7).tokenizer.model_max_length == 7


def test_a_checkpoint_without_a_vocabulary_says_whose_it_reads(tmp_path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "visual_bert"}')
    with pytest.raises(FileNotFoundError, match=r"trained with that of bert-base-uncased.*BertTokenizer.from_pretrain"):
        VisualBertProcessor.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="tokenizer: got dict, wanted a BertTokenizer"):
        VisualBertProcessor({})


def test_a_processor_is_no_tokenizer(processor) -> None:
    with pytest.raises(ValueError, match="tokenizer: got VisualBertProcessor, wanted a BertTokenizer"):
        VisualBertProcessor(processor)
