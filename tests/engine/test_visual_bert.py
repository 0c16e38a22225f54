"""The engine on small VisualBERTs: every pair gets the result of transformers, whatever else is asked."""

import io

import numpy as np
import pytest
import torch
import transformers

import vilt_fast
from vilt_fast import Regions
from vilt_fast.engine import Answer, Engine

TIMEOUT_S = 60
TOLERANCE = {"rtol": 1e-6, "atol": 1e-7}  # float64 inside, rounded to float32 at the end
WIDTH = 10
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, *"a the red blue cat dog on couch is there how many what color ? . left right".split()]
ANSWERS = ("red", "blue", "yes", "no", "2", "cat", "dog")


def make(name="VisualBertForQuestionAnswering", dtype=torch.float64, **fields):
    sizes = dict(
        vocab_size=len(WORDS),
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        visual_embedding_dim=WIDTH,
        max_position_embeddings=16,
        initializer_range=0.5,
        id2label=dict(enumerate(ANSWERS)),
    )
    torch.manual_seed(len(name))
    return getattr(vilt_fast, name)(vilt_fast.VisualBertConfig(**{**sizes, **fields})).to(dtype).eval()


@pytest.fixture(scope="module")
def model():
    return make()


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    words = tmp_path_factory.mktemp("vocabulary") / "words.txt"
    words.write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return vilt_fast.VisualBertProcessor(vilt_fast.BertTokenizer(str(words)))


@pytest.fixture(scope="module")
def pairs():
    """The regions of 14 images, 1 to 12 each, with a text of 1 to 9 words."""
    rng = np.random.default_rng(0)
    regions = [rng.normal(size=(count, WIDTH)).astype(np.float32) for count in rng.integers(1, 13, 14)]
    return regions, [" ".join(rng.choice(WORDS[5:], rng.integers(1, 10))) for _ in regions]


def fields_of(model):
    return {name: value for name, value in model.config.to_dict().items() if not name.startswith("_")}


@torch.no_grad()
def by_transformers(model, processor, regions, texts):
    """The logits of each pair alone."""
    kind = getattr(transformers, type(model).__name__)
    theirs = kind(transformers.VisualBertConfig(**fields_of(model))).double().eval()
    theirs.load_state_dict(model.state_dict(), strict=True)
    rows = []
    for one, text in zip(regions, texts, strict=True):
        inputs = processor(text, one, return_tensors="pt")
        rows.append(theirs(**inputs.to(torch.float64)).logits[0].float())
    return torch.stack(rows)


@pytest.mark.parametrize("name", ["VisualBertForQuestionAnswering", "VisualBertForVisualReasoning"])
def test_logits_and_answers_are_transformers(processor, pairs, name):
    model = make(name)
    wanted = by_transformers(model, processor, *pairs)
    with Engine(model, processor, max_tokens=60, top=3) as engine:
        torch.testing.assert_close(torch.stack(engine.logits(*pairs)), wanted, **TOLERANCE)
        answers = engine.answer(*pairs)
        assert engine.stats().pairs == 2 * len(wanted) and engine.stats().batches > 2
    for answer, chances in zip(answers, wanted.softmax(-1), strict=True):
        best = chances.topk(3)
        assert isinstance(answer, Answer) and (answer.answer, answer.score) == answer.top[0]
        assert [word for word, _ in answer.top] == [ANSWERS[label] for label in best.indices.tolist()]
        assert [chance for _, chance in answer.top] == pytest.approx(best.values.tolist(), abs=1e-6)


def test_no_result_depends_on_the_batch(model, processor, pairs):
    results = []
    for max_tokens in (1, 40, 4096):
        with Engine(model, processor, max_tokens=max_tokens) as engine:
            results.append(torch.stack(engine.logits(*pairs)))
            futures = engine.submit_batch([*zip(*pairs, strict=True)][::-1])
            best = [ANSWERS[label] for label in results[0].argmax(1).tolist()]
            assert [future.result(TIMEOUT_S).answer for future in futures] == best[::-1]
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], **TOLERANCE)


def test_tokens_are_words_and_regions(model, processor):
    with Engine(model, processor) as engine:
        engine.answer(np.ones((7, WIDTH), np.float32), "a cat")
        assert engine.stats().tokens == 4 + 7
        engine.warmup()
        assert engine.stats().pairs == 0


def test_regions_of_any_kind(model, processor, pairs, tmp_path):
    """One and many, from files, arrays, tensors and dictionaries."""
    one, text = pairs[0][0], pairs[1][0]
    np.savez(tmp_path / "r.npz", features=one, boxes=np.ones((len(one), 4)))
    content = (tmp_path / "r.npz").read_bytes()
    kinds = [tmp_path / "r.npz", str(tmp_path / "r.npz"), one, torch.from_numpy(one), Regions(one), {"x": one}]
    kinds += [content, bytearray(content), memoryview(content), io.BytesIO(content)]
    with Engine(model, processor) as engine:
        wanted = engine.logits(one, text)
        assert wanted.shape == (len(ANSWERS),)
        for kind in kinds:
            assert torch.equal(engine.logits(kind, text), wanted), type(kind)
        for row in engine.logits(kinds, text):
            torch.testing.assert_close(row, wanted, **TOLERANCE)
        stacked = torch.from_numpy(np.stack([one, one]))
        assert len(engine.answer(stacked, text)) == 2  # (images, regions, width): one image a row
        assert len(engine.answer(one, [text, "a cat", "a dog"])) == 3
        assert [type(one) for one in engine.answer(iter(kinds), text)] == [Answer] * len(kinds)
        assert isinstance(engine.submit(one, text).result(TIMEOUT_S), Answer)


def test_each_pairs_own_error(model, processor, pairs, tmp_path):
    (tmp_path / "bad.npz").write_bytes(b"PK")
    np.savez(tmp_path / "wide.npz", features=np.ones((3, WIDTH + 1)))
    bad = np.ones((3, WIDTH), np.float32)
    bad[1, 2] = np.nan
    given = {
        tmp_path / "none.npz": "no such file: '.*none.npz'",
        tmp_path / "bad.npz": "bad.npz': damaged or no .npz",
        tmp_path / "wide.npz": r"wide.npz': got features of width 11, wanted 10 \(visual_embedding_dim\)",
    }
    others = [
        (np.ones((3, 7), np.float32), "a cat", "regions: got features of width 7, wanted 10"),
        (np.ones((WIDTH, 7), np.float32), "a cat", "of width 7, wanted 10 .* seem to be transposed: save features.T"),
        (bad, "a cat", "regions: features: region 1 holds NaN"),
        (np.ones((0, WIDTH), np.float32), "a cat", "at least one region"),
        (
            np.ones((5000, WIDTH), np.float32),
            "a cat",
            "got 5004 words and regions, wanted at most 4096: keep fewer regions$",
        ),
        (3, "a cat", "regions: got int, wanted a Regions"),
        (bad[:1], "cat " * 20, "text: got 22 tokens, wanted 1 to 16"),
        (bad[:1], 7, "text: got int, wanted str"),
    ]
    cases = [*((path, "a cat", message) for path, message in given.items()), *others]
    with Engine(model, processor, max_tokens=64) as engine:
        asked = [(pairs[0][0], pairs[1][0]), *((regions, text) for regions, text, _ in cases)]
        good, *errors = engine.answer(*zip(*asked, strict=True), on_error="return")
        assert isinstance(good, Answer)
        for error, (_, _, message) in zip(errors, cases, strict=True):
            with pytest.raises((ValueError, OSError), match=message):
                raise error


@torch.no_grad()
def test_masked_words_are_filled_as_by_transformers(processor, pairs):
    """The surest word first, then the model again."""
    model, texts = make("VisualBertForPreTraining"), ["a [MASK] cat on the [MASK] .", "how many [MASK]"]
    theirs = transformers.VisualBertForPreTraining(transformers.VisualBertConfig(**fields_of(model))).double().eval()
    theirs.load_state_dict(model.state_dict(), strict=True)
    with Engine(model, processor) as engine:
        filled = engine.fill(pairs[0][:2], texts)
        logits = engine.logits(pairs[0][:2], texts)
    for regions, text, one, rows in zip(pairs[0], texts, filled, logits, strict=False):
        inputs = processor(text, regions, return_tensors="pt").to(torch.float64)
        ids, words = inputs["input_ids"], []
        while (open_places := ids[0] == processor.tokenizer.mask_token_id).any():
            wanted = theirs(**inputs).prediction_logits[0, : ids.shape[1]]
            if not words:
                torch.testing.assert_close(rows, wanted.float(), **TOLERANCE)
            chances, best = wanted.softmax(-1).max(-1)
            place = int(chances.masked_fill(~open_places, -1).argmax())
            ids[0, place] = best[place]
            words.append((processor.decode([int(best[place])]), pytest.approx(float(chances[place]), abs=1e-6)))
        assert one.words == words and one.text == processor.decode(ids[0].tolist(), skip_special_tokens=True)


def test_a_question_without_a_last_but_one_word(model, tmp_path):
    """Without special tokens; transformers reads the padding there."""
    words = tmp_path / "words.txt"
    words.write_text("\n".join(WORDS) + "\n")
    tokenizer = vilt_fast.BertTokenizer(str(words))

    class Bare(type(tokenizer)):
        def __call__(self, text, **options):
            return super().__call__(text, add_special_tokens=False, **options)

    tokenizer.__class__ = Bare
    with Engine(model, vilt_fast.VisualBertProcessor(tokenizer)) as engine:
        assert isinstance(engine.answer(np.ones((2, WIDTH), np.float32), "a cat"), Answer)
        with pytest.raises(ValueError, match="text: got 1 token, wanted at least 2"):
            engine.answer(np.ones((2, WIDTH), np.float32), "cat")


def test_models_that_bypass_the_transformer(processor, pairs):
    """Which transformers cannot run: against the live form."""
    model = make(bypass_transformer=True)
    with Engine(model, processor) as engine, torch.no_grad():
        for regions, text, row in zip(*pairs, engine.logits(*pairs), strict=True):
            wanted = model(**processor(text, regions, return_tensors="pt").to(torch.float64)).logits[0].float()
            torch.testing.assert_close(row, wanted, **TOLERANCE)


def test_overflow_is_said(processor):
    for dtype, advice in ((torch.float16, "a wider one, as is torch.float32"), (torch.float32, "finite weights")):
        with Engine(make(dtype=dtype, initializer_range=60.0), processor) as engine:
            large = np.full((2, WIDTH), 3e4 if dtype == torch.float16 else 3e38, np.float32)
            with pytest.raises(ValueError, match=f"overflow in {dtype}, its result is NaN; wanted {advice}"):
                engine.answer(large, "a cat")


def test_an_open_file_is_refused_by_name(model, processor, tmp_path):
    np.save(tmp_path / "r.npy", np.ones((2, WIDTH)))
    with Engine(model, processor) as engine, open(tmp_path / "r.npy", "rb") as file:
        with pytest.raises(ValueError, match="regions: got BufferedReader, wanted a Regions, the path of an .npz"):
            engine.answer(file, "a cat")


def test_what_an_engine_refuses(model, processor):
    pictures = vilt_fast.ViltProcessor(vilt_fast.ViltImageProcessor(size=64), processor.tokenizer)
    with pytest.raises(ValueError, match="processor: got ViltProcessor, wanted a vilt_fast.VisualBertProcessor"):
        Engine(model, pictures)
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 40}
    vilt = vilt_fast.ViltForQuestionAnswering(vilt_fast.ViltConfig(**sizes, image_size=64, vocab_size=len(WORDS)))
    with pytest.raises(ValueError, match="processor: got VisualBertProcessor, wanted a vilt_fast.ViltProcessor"):
        Engine(vilt, processor)
    with pytest.raises(ValueError, match="model: got VisualBertModel, wanted one of .*VisualBertForQuestionAnswering"):
        Engine(make("VisualBertModel"), processor)
    with Engine(model, processor) as engine:
        for kind in ("score", "fill"):
            with pytest.raises(ValueError, match=f"{kind}: got VisualBertForQuestionAnswering, wanted V"):
                getattr(engine, kind)(np.ones((2, WIDTH), np.float32), "a cat")
