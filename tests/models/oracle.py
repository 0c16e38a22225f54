"""Random ViLTs of transformers with no parameter at its initial value, ragged batches, and checks that name tensors."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

transformers = pytest.importorskip("transformers", minversion="5.0", reason="transformers is the oracle of these tests")

# ViltConfig's documentation lists "selu", yet neither 4.37 nor 5.17 of transformers knows it.
transformers.activations.ACT2FN.setdefault("selu", torch.nn.SELU)


def config_kwargs(index: int) -> dict[str, Any]:
    """Configuration number `index`: odd sizes, every patch size, activation and switch within any 24 of them."""
    draw = random.Random(1000 + index)
    heads, head_dim = ((4, 12), (5, 16), (6, 24), (4, 9), (6, 7), (5, 4))[index % 6]
    patch = (8, 16, 32)[index % 3]
    num_images = 1 + index % 3
    return dict(
        vocab_size=draw.choice((37, 50)),
        type_vocab_size=draw.choice((2, 3)),
        modality_type_vocab_size=max(2, num_images + 1) + draw.choice((0, 1)),
        max_position_embeddings=draw.choice((9, 12)),
        hidden_size=heads * head_dim,
        num_hidden_layers=1 + index // 2 % 3,
        num_attention_heads=heads,
        intermediate_size=draw.choice((30, 56, 101)),
        hidden_act=("gelu", "relu", "gelu_new", "selu")[index // 3 % 4],
        layer_norm_eps=draw.choice((1e-12, 1e-5)),
        image_size=patch * draw.choice((2, 3, 4)) + draw.choice((0, 0, 3)),
        patch_size=patch,
        num_channels=draw.choice((3, 3, 1)),
        qkv_bias=index % 5 != 1,
        max_image_length=(-1, -1, 3, 5)[index % 4],
        num_images=num_images,
        num_labels=draw.choice((3, 4, 7)),
    )


def build(name: str, kwargs: dict[str, Any], *, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """transformers' model `name`, every parameter random so that a missing term shows."""
    model = getattr(transformers, name)(transformers.ViltConfig(**kwargs))
    return randomise(model, seed).to(dtype).eval()


def randomise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Values that keep activations near one: matrices 1 / sqrt(fan in), norms around one, everything else 0.3."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        value = torch.randn(parameter.shape, generator=generator)
        if "norm" in name.lower() or ".classifier.1." in f".{name}":
            value = 0.2 * value + (1.0 if name.endswith("weight") else 0.0)
        elif name.endswith("weight") and "embeddings.weight" not in name:
            value = value / parameter[0].numel() ** 0.5
        else:
            value = 0.3 * value
        parameter.data.copy_(value)
    return model


def batch(config: Any, seed: int = 0, size: int = 3, *, num_images: int | None = None) -> dict[str, Tensor]:
    """Ragged words and images, padded with values that must not be read.

    Images are whole patches; for every fourth seed any number of pixels, where the nearest pixel of a patch decides.
    With `num_images` pixel_values are (B, n, C, H, W) and pixel_mask (B, n, H, W).
    """
    generator = torch.Generator().manual_seed(7000 + seed)

    def integers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    length = int(integers(4, config.max_position_embeddings + 1, 1))
    lengths = integers(1, length + 1, size)
    lengths[0] = length
    pictures = size * (num_images or 1)
    patch = config.patch_size
    sides = integers(1, 5, pictures, 2) * patch
    if seed % 4 == 3:
        sides = integers(1, 5 * patch, pictures, 2)
        sides[0].clamp_(min=patch)
    height, width = sides.amax(0).tolist()
    pixel_mask = torch.zeros(pictures, height, width, dtype=torch.long)
    for mask, (rows, columns) in zip(pixel_mask, sides.tolist(), strict=True):
        mask[:rows, :columns] = 1
    pixel_values = torch.randn(pictures, config.num_channels, height, width, generator=generator)
    lead = (size, num_images) if num_images else (size,)
    return {
        "input_ids": integers(0, config.vocab_size, size, length),
        "attention_mask": (torch.arange(length) < lengths[:, None]).long(),
        "token_type_ids": integers(0, config.type_vocab_size, size, length),
        "pixel_values": pixel_values.reshape(*lead, *pixel_values.shape[1:]),
        "pixel_mask": pixel_mask.reshape(*lead, height, width),
    }


def inputs_for(name: str, config: Any, seed: int = 0, size: int = 3) -> dict[str, Tensor]:
    """A batch with labels in the form that class `name` takes; none for the two classes without a loss in transformers.

    Masked words carry the label -100: transformers computes logits there, the packed model has no row there.
    """
    several = config.num_images if name == "ViltForImagesAndTextClassification" else None
    inputs = batch(config, seed, size, num_images=several)
    generator = torch.Generator().manual_seed(9000 + seed)
    shape = inputs["input_ids"].shape
    masked = inputs["attention_mask"] == 0
    if name == "ViltForMaskedLM":
        labels = torch.randint(0, config.vocab_size, shape, generator=generator)
        inputs["labels"] = labels.masked_fill(masked, -100)
    elif name == "ViltForTokenClassification":
        labels = torch.randint(0, config.num_labels, shape, generator=generator)
        inputs["labels"] = labels.masked_fill(masked, -100)
    elif name == "ViltForQuestionAnswering":
        inputs["labels"] = torch.rand(shape[0], config.num_labels, generator=generator)
    elif name == "ViltForImagesAndTextClassification":
        inputs["labels"] = torch.randint(0, config.num_labels, (shape[0],), generator=generator)
    return inputs


def to_double(inputs: dict[str, Any]) -> dict[str, Any]:
    """Every fp32 tensor as fp64."""
    return {k: v.double() if torch.is_tensor(v) and v.dtype == torch.float32 else v for k, v in inputs.items()}


@contextmanager
def raster_order(seed: int = 0) -> Iterator[None]:
    """Let transformers keep sampled patches in raster order, where it would return them shuffled."""

    def multinomial(weights: Tensor, count: Any, replacement: bool = False, **_: Any) -> Tensor:
        if replacement:  # it fills padded rows with random patches; any will do
            return torch.zeros(int(count), dtype=torch.long)
        return torch.randperm(len(weights), generator=generator)[: int(count)].sort().values

    generator = torch.Generator().manual_seed(seed)
    original, torch.multinomial = torch.multinomial, multinomial
    try:
        yield
    finally:
        torch.multinomial = original


class Picks:
    """Records which patches transformers embeds: `masks` (B, GH, GW) bool and `rows` (B, 1 + N), one per pass."""

    def __init__(self, model: Any) -> None:
        self.masks: list[Tensor] = []
        self.rows: list[Tensor] = []
        embeddings = getattr(model, "vilt", model).embeddings
        self._inner, embeddings.visual_embed = embeddings.visual_embed, self._record

    def _record(self, *args: Any, **kwargs: Any) -> Any:
        embedded, mask, (index, grid) = self._inner(*args, **kwargs)
        chosen = torch.zeros(len(mask), *grid, dtype=torch.bool)
        for picture, (rows, cells) in enumerate(zip(mask[:, 1:] != 0, index, strict=True)):
            chosen[picture, cells[rows, 0], cells[rows, 1]] = True
        self.masks.append(chosen)
        self.rows.append(mask != 0)
        return embedded, mask, (index, grid)


def run(model: Any, inputs: dict[str, Tensor], seed: int = 0, **kwargs: Any) -> tuple[Any, list[Tensor], list[Tensor]]:
    """transformers' output, and for each image the patch_mask it chose and the mask (B, S) of its real rows."""
    picks = Picks(model)
    with raster_order(seed):
        output = model(**inputs, **kwargs)
    real = [torch.cat([inputs["attention_mask"] != 0, rows], dim=1) for rows in picks.rows]
    return output, picks.masks, real


def run_ours(name: str, model: Any, inputs: dict[str, Tensor], masks: list[Tensor], **kwargs: Any) -> Any:
    """Ours with the patches that transformers picked, one mask for each pass it made."""
    several = name == "ViltForImagesAndTextClassification"
    patch_mask = torch.stack(masks, dim=1) if several else masks[0]
    return model(**inputs, patch_mask=patch_mask, **kwargs)


def relative(got: Tensor, wanted: Tensor, name: str = "tensor") -> float:
    """Largest difference over the largest magnitude of `wanted`; shapes and dtypes must be the same."""
    assert got.shape == wanted.shape, f"{name}: got the shape {tuple(got.shape)}, wanted {tuple(wanted.shape)}"
    assert got.dtype == wanted.dtype, f"{name}: got {got.dtype}, wanted {wanted.dtype}"
    if not wanted.numel():
        return 0.0
    return (got - wanted).abs().max().item() / max(wanted.abs().max().item(), 1e-30)


def check_close(name: str, got: Tensor, wanted: Tensor, tolerance: float, rows: Tensor | None = None) -> None:
    """The largest difference is at most `tolerance` times the largest magnitude of `wanted`, in `rows` (B, S)."""
    share = relative(got, wanted, name) if rows is None else relative(got[rows], wanted[rows], name)
    told = f"{name}: off by {share:.3g} of the largest magnitude, {tolerance:g} allowed"
    assert share <= tolerance, f"{told}; {worst(got, wanted, rows)}"


def check_equal(name: str, got: Tensor, wanted: Tensor) -> None:
    """The same shape, and bit for bit the same values."""
    assert got.shape == wanted.shape, f"{name}: got the shape {tuple(got.shape)}, wanted {tuple(wanted.shape)}"
    differ = int((got != wanted).sum())
    assert torch.equal(got, wanted), f"{name}: {differ} of {got.numel()} values differ; {worst(got, wanted)}"


def worst(got: Tensor, wanted: Tensor, rows: Tensor | None = None) -> str:
    """Where the largest difference is, among `rows` (B, S) or all, and which values stand there."""
    got, wanted = got.detach().double(), wanted.detach().double()
    difference = (got - wanted).abs()
    if rows is not None:
        difference[~rows] = 0
    place = torch.unravel_index(difference.argmax(), got.shape)
    index = ", ".join(str(int(i)) for i in place)
    return f"worst at [{index}]: got {got[place].item():.9g}, wanted {wanted[place].item():.9g}"


def check_zero(name: str, got: Tensor) -> None:
    """Every value is exactly zero."""
    assert got.eq(0).all(), f"{name}: {int(got.ne(0).sum())} of {got.numel()} values are not zero"


def check_rows(name: str, got: Tensor, wanted: Tensor, real: Tensor, tolerance: float) -> None:
    """(B, S, ...) outputs agree on the rows of `real` (B, S), and `got` is exactly zero on the others."""
    check_close(f"{name}, real rows", got, wanted, tolerance, real)
    check_zero(f"{name}, padded rows", got[~real])


def check_attentions(name: str, got: Tensor, wanted: Tensor, real: Tensor, tolerance: float) -> None:
    """(B, heads, S, S) probabilities agree for real queries; `got` is exactly zero for padded queries and keys."""
    by_query = got.transpose(1, 2)
    check_close(f"{name}, real queries", by_query, wanted.transpose(1, 2), tolerance, real)
    check_zero(f"{name}, padded queries", by_query[~real])
    check_zero(f"{name}, padded keys", got.permute(0, 3, 1, 2)[~real])


def check_layers(name: str, got: Any, wanted: Any, real: Tensor, tolerance: float) -> None:
    """The tuple `name` ("hidden_states" or "attentions") of a model, layer by layer."""
    check = check_attentions if name.endswith("attentions") else check_rows
    assert len(got) == len(wanted), f"{name}: got {len(got)} layers, wanted {len(wanted)}"
    for layer, (ours, theirs) in enumerate(zip(got, wanted, strict=True)):
        check(f"{name}[{layer}]", ours, theirs, real, tolerance)


def check_field(
    field: str, got: Any, expected: Any, inputs: dict[str, Tensor], real: list[Tensor], tolerance: float
) -> None:
    """One field of both outputs; rows of words only, words and patches, or all values, by the field and its shape."""
    ours, theirs = got[field], expected[field]
    if field in ("hidden_states", "attentions"):
        a, b = (ours, theirs) if isinstance(theirs, list) else ([ours], [theirs])
        assert len(a) == len(b) == len(real), f"{field}: {len(a)}, {len(b)} and {len(real)} passes"
        for image, (our_layers, their_layers) in enumerate(zip(a, b, strict=True)):
            check_layers(f"image {image}: {field}", our_layers, their_layers, real[image], tolerance)
    elif field == "last_hidden_state":
        check_rows(field, ours, theirs, real[0], tolerance)
    elif field == "logits" and theirs.dim() == 3:
        words = inputs["attention_mask"] != 0
        check_close("logits of real words", ours, theirs, tolerance, words)
    else:
        check_close(field, ours, theirs, tolerance)


def check_outputs(got: Any, expected: Any, inputs: dict[str, Tensor], real: list[Tensor], tolerance: float) -> None:
    """Every field of both outputs."""
    assert list(got.keys()) == list(expected.keys())
    for field in expected.keys():
        check_field(field, got, expected, inputs, real, tolerance)
