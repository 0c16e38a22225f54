"""text_embed: the kernel beside the fp64 reference, for any width, with masked words and strides."""

import pytest
import torch
from torch import Tensor

from vilt_fast.reference.text_embed import text_embed as reference

pytest.importorskip("triton", reason="the kernels need Triton")
from vilt_fast.kernels import text_embed as kernel  # noqa: E402

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
EPS = 1e-12


def _inputs(batch: int, words: int, hidden: int, dtype: torch.dtype, device: torch.device, seed: int = 0) -> dict:
    """Arguments of both sides; about a third of the words are masked, and the rows are in a random order."""
    g = torch.Generator().manual_seed(seed)
    kept = torch.rand(batch, words, generator=g) < 0.7
    kept[0, 0] = True
    text_row = torch.full((batch, words), -1, dtype=torch.int32)
    text_row[kept] = torch.randperm(int(kept.sum()) + 5, generator=g)[5:].int()
    ids = {"input_ids": torch.randint(0, 50, (batch, words), generator=g), "inputs_embeds": None}
    ids["token_type_ids"] = torch.randint(0, 2, (batch, words), generator=g)
    shapes = {"word": (50, hidden), "position": (words + 3, hidden), "token_type": (2, hidden)}
    shapes |= {name: (hidden,) for name in ("ln_weight", "ln_bias", "modality")}
    tables = {name: torch.randn(shape, generator=g).to(device, dtype) for name, shape in shapes.items()}
    tokens = torch.full((int(kept.sum()) + 5, hidden), float("nan"), dtype=dtype, device=device)
    indices = {name: value if value is None else value.to(device) for name, value in ids.items()}
    return {"tokens": tokens, "text_row": text_row.to(device), **indices, **tables, "eps": EPS}


def _check(tolerances, inputs: dict) -> Tensor:
    """Checks the rows that words go to, and that no other row is touched."""
    wide = {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in inputs.items()}
    out64, torch_out = reference(**wide), reference(**inputs)
    tokens = inputs["tokens"].clone()
    got = kernel.text_embed(**(inputs | {"tokens": tokens}))
    assert got.data_ptr() == tokens.data_ptr()
    written = inputs["text_row"][inputs["text_row"] >= 0].long()
    tolerances.check("text_embed", got[written], out64[written], torch_out[written])
    others = torch.ones(len(got), dtype=torch.bool, device=got.device).index_fill(0, written, False)
    assert got[others].isnan().all()
    return got


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("batch", "words", "hidden"), [(1, 1, 16), (3, 9, 768), (2, 5, 192), (2, 3, 100), (1, 3, 1040)]
)
def test_against_fp64(batch, words, hidden, dtype, device, tolerances) -> None:
    _check(tolerances, _inputs(batch, words, hidden, dtype, device, seed=hidden))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_inputs_embeds(dtype, device, tolerances) -> None:
    inputs = _inputs(2, 7, 48, dtype, device)
    embeds = torch.randn(7, 2, 64, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    inputs |= {"input_ids": None, "inputs_embeds": embeds.transpose(0, 1)[:, :, 8:56]}
    got = _check(tolerances, inputs)
    apart = inputs["inputs_embeds"].transpose(1, 2).contiguous().transpose(1, 2)
    again = kernel.text_embed(**(inputs | {"inputs_embeds": apart, "tokens": inputs["tokens"].clone()}))
    assert torch.equal(again.nan_to_num(), got.nan_to_num())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_modality(dtype, device, tolerances) -> None:
    """VisualBERT's words: nothing is added after the normalisation."""
    _check(tolerances, _inputs(2, 7, 48, dtype, device) | {"modality": None})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_position_ids(dtype, device, tolerances) -> None:
    """Rows of the table in any order, more words than rows, every second column of wider ids."""
    inputs = _inputs(2, 7, 48, dtype, device) | {"modality": None}
    inputs["position"] = inputs["position"][:5]
    position_ids = torch.randint(0, 5, (2, 14), generator=torch.Generator().manual_seed(2)).to(device)[:, ::2]
    _check(tolerances, inputs | {"position_ids": position_ids})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_regions(dtype, device, tolerances) -> None:
    """VisualBERT's regions: texts of one word each, no word table; features of another dtype are converted."""
    inputs = _inputs(9, 1, 48, dtype, device) | {"input_ids": None, "word": None, "modality": None}
    inputs["position"] = inputs["position"][:1]
    features = torch.randn(9, 1, 48, generator=torch.Generator().manual_seed(3)).to(device, dtype)
    got = _check(tolerances, inputs | {"inputs_embeds": features})
    again = kernel.text_embed(**(inputs | {"inputs_embeds": features.float(), "tokens": inputs["tokens"].clone()}))
    assert torch.equal(again.nan_to_num(), got.nan_to_num())


def test_strides(device, tolerances) -> None:
    """Every tensor a view: columns of wider ids, one type row for all pairs, rows of wider tables."""
    inputs = _inputs(3, 6, 32, torch.float16, device)
    inputs["text_row"] = inputs["text_row"].t().contiguous().t()
    inputs["input_ids"] = inputs["input_ids"].repeat_interleave(2, 1)[:, ::2]
    inputs["token_type_ids"] = inputs["token_type_ids"][:1].expand(3, 6)
    for name in ("word", "position", "token_type"):
        table = inputs[name]
        wide = torch.full((table.shape[0] * 2, 48), float("nan"), dtype=table.dtype, device=device)
        wide[::2, 8:40] = table
        inputs[name] = wide[::2, 8:40]
    inputs["modality"] = inputs["modality"].repeat_interleave(2)[::2]
    wide = torch.full((len(inputs["tokens"]), 40), float("nan"), dtype=torch.float16, device=device)
    got = kernel.text_embed(**(inputs | {"tokens": wide[:, 4:36]}))
    assert wide[:, :4].isnan().all() and wide[:, 36:].isnan().all()
    assert torch.equal(got.nan_to_num(), _check(tolerances, inputs).nan_to_num())


def test_a_large_mean(device, tolerances) -> None:
    """What E[x^2] - E[x]^2 would lose: a mean a thousand times the deviation."""
    inputs = _inputs(2, 4, 192, torch.float32, device)
    inputs["word"] += 3000
    _check(tolerances, inputs)


def test_all_words_masked(device) -> None:
    inputs = _inputs(2, 4, 32, torch.float32, device)
    inputs["text_row"].fill_(-1)
    assert kernel.text_embed(**inputs).isnan().all()
    none = {name: inputs[name][:, :0] for name in ("text_row", "input_ids", "token_type_ids")}
    assert kernel.text_embed(**(inputs | none)).isnan().all()


def test_a_word_does_not_depend_on_its_batch(device) -> None:
    inputs = _inputs(3, 6, 48, torch.bfloat16, device)
    batch = kernel.text_embed(**(inputs | {"tokens": inputs["tokens"].clone()}))
    row = int(inputs["text_row"][0, 0])
    one = {name: inputs[name][:1, :1] for name in ("text_row", "input_ids", "token_type_ids")}
    one["text_row"] = torch.zeros_like(one["text_row"])
    alone = kernel.text_embed(**(inputs | one | {"tokens": inputs["tokens"][:1].clone()}))
    assert torch.equal(alone[0], batch[row])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tokens": torch.ones(9, 32).t()}, "tokens: got strides"),
        ({"tokens": torch.ones(9, 32).double()}, "tokens: got dtype torch.float64"),
        ({"text_row": torch.zeros(2, 4).long()}, "text_row: got dtype torch.int64, wanted torch.int32"),
        ({"input_ids": None}, "got neither of input_ids and inputs_embeds"),
        ({"inputs_embeds": torch.ones(2, 4, 32)}, "got both of input_ids and inputs_embeds"),
        ({"input_ids": torch.zeros(2, 5).long()}, r"input_ids: got shape \(2, 5\), wanted \(2, 4\)"),
        ({"token_type_ids": torch.zeros(2, 4).int()}, "token_type_ids: got dtype torch.int32"),
        ({"word": torch.ones(5, 31)}, r"word: got shape \(5, 31\), wanted \(entries, 32\)"),
        ({"position": torch.ones(3, 32)}, "position: got 3 entries for 4 columns of words"),
        ({"modality": torch.ones(1, 32)}, r"modality: got shape \(1, 32\), wanted \(32,\)"),
        ({"input_ids": None, "inputs_embeds": torch.ones(2, 4, 33)}, r"inputs_embeds: got shape \(2, 4, 33\)"),
        ({"word": None}, r"word: got None with input_ids, wanted \(vocabulary, 32\)"),
        ({"position_ids": torch.zeros(2, 4).int()}, "position_ids: got dtype torch.int32"),
        ({"position_ids": torch.zeros(1, 4).long()}, r"position_ids: got shape \(1, 4\), wanted \(2, 4\)"),
    ],
)
def test_bad_arguments(change, words) -> None:
    inputs = _inputs(2, 4, 32, torch.float32, torch.device("cpu"))
    with pytest.raises(ValueError, match=words):
        kernel.text_embed(**(inputs | change))


def test_registration(device) -> None:
    inputs = _inputs(2, 4, 32, torch.float32, device)
    inputs["tokens"].zero_()
    embeds = torch.randn(2, 4, 32, device=device)
    operation = torch.ops.vilt_fast.text_embed.default
    torch.library.opcheck(operation, (), inputs)
    torch.library.opcheck(operation, (), inputs | {"input_ids": None, "inputs_embeds": embeds})
    regions = {"input_ids": None, "inputs_embeds": embeds, "word": None, "modality": None}
    torch.library.opcheck(operation, (), inputs | regions | {"position_ids": inputs["input_ids"] % 7})

    def embed(input_ids: Tensor) -> Tensor:
        return kernel.text_embed(**(inputs | {"tokens": inputs["word"].new_zeros(13, 32), "input_ids": input_ids}))

    compiled = torch.compile(embed, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(inputs["input_ids"]), embed(inputs["input_ids"]))
    inputs["word"].requires_grad_()
    with pytest.raises(RuntimeError, match="text_embed: the kernel has no backward pass"):
        embed(inputs["input_ids"]).sum().backward()


def test_the_launcher_reads_nothing_from_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Meta tensors have no values: a launcher that asked for one would raise."""
    grids = []

    class Recorder:
        def __getitem__(self, grid):
            return lambda *arguments, **options: grids.append(grid)

    monkeypatch.setattr(kernel, "text_embed_kernel", Recorder())
    inputs = _inputs(3, 5, 32, torch.float32, torch.device("cpu"))
    kernel._launch(**{name: v.to("meta") if isinstance(v, Tensor) else v for name, v in inputs.items()})
    assert grids == [(3, 5, 1)]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_real_sizes(dtype, gpu, tolerances) -> None:
    """256 questions of 40 columns; the launch waits for nothing."""
    inputs = _inputs(256, 40, 768, dtype, gpu)
    _check(tolerances, inputs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        kernel.text_embed(**inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
