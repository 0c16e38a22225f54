"""Every class with a small model of it, ragged batches of chosen sizes, and what its axes are called.

tests/ is no package: the test files load this one by its path.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import vilt_fast
from vilt_fast.bench.case import telling_weights

# fp32, of the largest magnitude: the same sums of 24 to 192 terms in another order, a block or two deep.
TOLERANCE = 1e-5
PATCH = 8
# One block: each takes a third of a second to trace.
SMALL = dict(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=40, num_labels=5)
TEXT = dict(vocab_size=37, max_position_embeddings=12)
IMAGE = dict(image_size=3 * PATCH, patch_size=PATCH)
NLVR2 = dict(num_images=2, modality_type_vocab_size=3)


class Sizes(NamedTuple):
    """Of a padded batch."""

    batch: int
    words: int
    rows: int
    columns: int
    regions: int
    choices: int


EXAMPLE = Sizes(2, 5, 3, 4, 6, 3)
# Larger and smaller than the example on every axis, and the least that there is (an answer is read at the last word
# but one, so VisualBERT's texts have two words).
OTHERS = (Sizes(3, 9, 2, 5, 3, 2), Sizes(5, 4, 4, 2, 8, 4), Sizes(1, 1, 2, 2, 1, 1))
# PyTorch 2.13 takes a size that follows from another, as H // patch does, for one that is not 1, and guards it.
THIN = (Sizes(1, 1, 1, 1, 1, 1), Sizes(2, 3, 1, 4, 1, 1), Sizes(2, 3, 4, 1, 1, 1))
# The names of a tensor's axes; None is fixed. A batch of choices, or of several images, has one more behind the first.
AXES: dict[str, tuple[str | None, ...]] = {
    "input_ids": ("batch", "words"),
    "attention_mask": ("batch", "words"),
    "token_type_ids": ("batch", "words"),
    "inputs_embeds": ("batch", "words", None),
    "pixel_values": ("batch", None, "height", "width"),
    "pixel_mask": ("batch", "height", "width"),
    "patch_mask": ("batch", "rows", "columns"),
    "bool_masked_pos": ("batch", "rows", "columns"),
    "image_embeds": ("batch", "places", None),
    "visual_embeds": ("batch", "regions", None),
    "visual_attention_mask": ("batch", "regions"),
    "visual_token_type_ids": ("batch", "regions"),
    "region_to_phrase_position": ("batch", "phrases"),
    "image_text_alignment": ("batch", "regions", None),
    "head_mask": (None,),
}
GROWS = ("last_hidden_state", "hidden_states", "attentions")  # padded to all cells of the grid


@dataclass(frozen=True)
class Case:
    """A class of the library under a name, and how it is made.

    Args:
        family: "vilt", "vit" or "visual_bert".
        fields: of the configuration. options: of the class beside it.
    """

    name: str
    family: str
    fields: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def class_name(self) -> str:
        """What users import."""
        return self.name.split(" ")[0]

    @property
    def dynamic_axes(self) -> tuple[str, ...]:
        """In the order of the inputs."""
        words = ("batch", "choices", "words") if "MultipleChoice" in self.name else ("batch", "words")
        phrases = ("phrases",) if "RegionToPhrase" in self.name else ()
        return {
            "vilt": ("batch", "words", "height", "width"),
            "vit": ("batch", "height", "width"),
            "visual_bert": (*words, "regions", *phrases),
        }[self.family]

    def model(self, **changes: Any) -> Any:
        """Random weights under which every term counts."""
        sizes, config = {
            "vilt": ({**TEXT, **IMAGE}, vilt_fast.ViltConfig),
            "vit": ({**IMAGE, "encoder_stride": PATCH}, vilt_fast.ViTConfig),
            "visual_bert": ({**TEXT, "visual_embedding_dim": 14}, vilt_fast.VisualBertConfig),
        }[self.family]
        make = getattr(vilt_fast, self.class_name)
        return telling_weights(make(config(**{**SMALL, **sizes, **self.fields, **changes}), **self.options)).eval()

    def inputs(self, model: Any, sizes: Sizes = EXAMPLE, seed: int = 0) -> dict[str, Tensor]:
        """A ragged batch."""
        generator = torch.Generator().manual_seed(4000 + seed)
        if self.family == "vit":
            found = images(model.config, sizes, generator)
            if self.class_name == "ViTForMaskedImageModeling":
                places = torch.rand(sizes.batch, sizes.rows, sizes.columns, generator=generator)
                places[:, 0, 0] = 0  # a loss of nothing would be no number
                found["bool_masked_pos"] = places < 0.5
            return found
        if self.family == "vilt":
            several = sizes.batch * self.fields.get("num_images", 1)
            found = images(model.config, sizes._replace(batch=several), generator)
            if "num_images" in self.fields:
                found = {name: x.unflatten(0, (sizes.batch, -1)) for name, x in found.items()}
            return {**words(model.config, sizes, generator, least=1), **found}
        return self._pairs(model.config, sizes._replace(words=max(2, sizes.words)), generator)

    def _pairs(self, config: Any, sizes: Sizes, generator: torch.Generator) -> dict[str, Tensor]:
        has_choices = self.class_name == "VisualBertForMultipleChoice"
        several = sizes._replace(batch=sizes.batch * sizes.choices) if has_choices else sizes
        found = {**words(config, several, generator, least=2), **regions(config, several, generator)}
        if self.class_name == "VisualBertForRegionToPhraseAlignment":
            shape = (sizes.batch, sizes.rows)
            found["region_to_phrase_position"] = torch.randint(0, 2, shape, generator=generator)
        return {name: x.unflatten(0, (sizes.batch, -1)) for name, x in found.items()} if has_choices else found


VILT = tuple(
    Case(name, "vilt", NLVR2 if name == "ViltForImagesAndTextClassification" else {})
    for name in (
        "ViltModel",
        "ViltForQuestionAnswering",
        "ViltForImageAndTextRetrieval",
        "ViltForMaskedLM",
        "ViltForImagesAndTextClassification",
        "ViltForTokenClassification",
        "ViltForImageTextMatching",
    )
)
VIT = (
    Case("ViTModel", "vit"),
    Case("ViTForImageClassification", "vit"),
    Case("ViTForMaskedImageModeling", "vit"),
)
VISUAL_BERT = (
    Case("VisualBertModel", "visual_bert"),
    Case("VisualBertModel with bypass_transformer", "visual_bert", {"bypass_transformer": True}),
    *(
        Case(f"VisualBertFor{task}", "visual_bert")
        for task in ("PreTraining", "QuestionAnswering", "MultipleChoice", "VisualReasoning", "RegionToPhraseAlignment")
    ),
)
CASES = (*VILT, *VIT, *VISUAL_BERT)
BY_NAME = {case.name: case for case in CASES}


# --- batches; what is masked holds values that must not be read -------------------------------------------------------


def words(config: Any, sizes: Sizes, generator: torch.Generator, *, least: int) -> dict[str, Tensor]:
    """input_ids, attention_mask, token_type_ids (B, L) int64; every text has at least so many words, one has all."""
    shape = (sizes.batch, sizes.words)
    lengths = torch.randint(least, sizes.words + 1, (sizes.batch, 1), generator=generator)
    lengths[0] = sizes.words
    return {
        "input_ids": torch.randint(0, config.vocab_size, shape, generator=generator),
        "attention_mask": (torch.arange(sizes.words) < lengths).long(),
        "token_type_ids": torch.randint(0, config.type_vocab_size, shape, generator=generator),
    }


def images(config: Any, sizes: Sizes, generator: torch.Generator) -> dict[str, Tensor]:
    """pixel_values (B, C, H, W) fp32 and pixel_mask (B, H, W) int64; no image need fill the grid."""
    grid = torch.tensor((sizes.rows, sizes.columns))
    sides = (1 + torch.rand(sizes.batch, 2, generator=generator) * grid).long().minimum(grid) * PATCH
    height, width = sizes.rows * PATCH, sizes.columns * PATCH
    mask = (torch.arange(height)[:, None] < sides[:, :1, None]) & (torch.arange(width) < sides[:, 1:, None])
    pixels = torch.randn(sizes.batch, config.num_channels, height, width, generator=generator)
    return {"pixel_values": torch.where(mask[:, None], pixels, 1000.0), "pixel_mask": mask.long()}


def regions(config: Any, sizes: Sizes, generator: torch.Generator) -> dict[str, Tensor]:
    """visual_embeds (B, R, features) fp32, visual_attention_mask (B, R) fp32, visual_token_type_ids (B, R) int64."""
    shape = (sizes.batch, sizes.regions)
    mask = torch.rand(shape, generator=generator) < 0.7
    mask[:, -1] = True
    features = torch.randn(*shape, config.visual_embedding_dim, generator=generator)
    return {
        "visual_embeds": torch.where(mask[..., None], features, 1000.0),
        "visual_attention_mask": mask.float(),
        "visual_token_type_ids": torch.randint(0, config.type_vocab_size, shape, generator=generator),
    }


# --- export and comparison --------------------------------------------------------------------------------------------


def dynamic_shapes(config: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """For each of the inputs which of its axes may have any size."""
    rows, columns = Dim("rows", min=1, max=64), Dim("columns", min=1, max=64)
    dims: dict[str | None, Any] = {"rows": rows, "columns": columns, "height": PATCH * rows, "width": PATCH * columns}
    dims["words"] = Dim("words", min=1, max=getattr(config, "max_position_embeddings", 64))
    for name in ("batch", "choices", "regions", "phrases", "places"):
        dims[name] = Dim(name, min=1, max=64)

    def shape(name: str, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return None
        axes = list(AXES[name])
        if name == "pixel_mask" and "image_embeds" in inputs:
            axes = ["batch", "places"]
        if value.ndim > len(axes):
            axes.insert(1, None if name.startswith("pixel") else "choices")
        return {place: dims[axis] for place, axis in enumerate(axes) if axis is not None}

    return {name: shape(name, value) for name, value in inputs.items()}


def export(model: Any, inputs: dict[str, Any], *, dynamic: bool, strict: bool = False) -> ExportedProgram:
    """As a user would."""
    shapes = dynamic_shapes(model.config, inputs) if dynamic else None
    with torch.no_grad():
        return torch.export.export(model, (), inputs, dynamic_shapes=shapes, strict=strict)


def flat(output: Any, prefix: str = "") -> dict[str, Tensor]:
    """Every tensor of an output by its name; states and attentions one by one."""
    if isinstance(output, Tensor):
        return {prefix: output}
    pairs = output.items() if isinstance(output, Mapping) else enumerate(output)
    found: dict[str, Tensor] = {}
    for name, value in pairs:
        found |= flat(value, f"{prefix}.{name}".lstrip("."))
    return found


def check(got: Any, wanted: Any, tolerance: float = TOLERANCE, *, same_dtype: bool = True) -> None:
    """The same names and values. Rows of states may go on behind eager's last one: with zeros.

    What is the least number of its dtype, a score of a masked region, is so on both sides.
    """
    got, wanted = flat(got), flat(wanted)
    assert list(got) == list(wanted)
    for name, value in wanted.items():
        found = got[name]
        assert found.dtype == value.dtype or not same_dtype, f"{name}: got {found.dtype}"
        assert found.ndim == value.ndim, f"{name}: got {found.ndim} axes"
        if name.split(".")[0] in GROWS:
            inner = tuple(slice(size) for size in value.shape)
            rest = found.clone()
            rest[inner] = 0
            assert not rest.any(), f"{name}: padding is not zero"
            found = found[inner]
        assert found.shape == value.shape, f"{name}: got {tuple(found.shape)}, wanted {tuple(value.shape)}"
        got_masked, masked = (x == torch.finfo(x.dtype).min for x in (found, value))
        assert torch.equal(got_masked, masked), f"{name}: other places are masked"
        found, value = found[~masked].double(), value[~masked].double()
        assert value.isfinite().all() and value.any(), f"{name}: nothing to compare"
        share = ((found - value).abs().max() / value.abs().max()).item()
        assert share <= tolerance, f"{name}: off by {share:.3g} of the largest magnitude, {tolerance:g} allowed"


def check_all(program: Callable[..., Any], model: nn.Module, batches: list[dict[str, Any]]) -> None:
    """What the program gives for each batch is what the model gives."""
    for inputs in batches:
        with torch.no_grad():
            check(program(**inputs), model(**inputs))


def call_targets(program: ExportedProgram) -> set[str]:
    """What the nodes of a graph, and of graphs inside it, call."""
    modules = [module for module in program.graph_module.modules() if hasattr(module, "graph")]
    return {str(node.target) for module in modules for node in module.graph.nodes if node.op == "call_function"}
