"""ViLT's names: Hugging Face's, and those of the original repository (dandelin/ViLT) with its fused qkv.

Source of the latter: vilt/modules/vilt_module.py, vision_transformer.py and heads.py of that repository.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from vilt_fast.checkpoints.files import brief, listing
from vilt_fast.checkpoints.hub import is_file, local_path
from vilt_fast.checkpoints.weight_files import StoredTensor, StoredWeights, open_weights

PREFIX = "vilt."
MODEL_TYPES = ("vilt",)
# Heads of known checkpoints: a model without one leaves its tensors out.
HEADS = ("classifier.", "mlm_score.", "rank_output.", "itm_score.", "mpp_score.", "vilt.pooler.")
FRESH = ()
WORD_HEAD = "mlm_score."
DECODER, WORDS = "mlm_score.decoder.weight", "vilt.embeddings.text_embeddings.word_embeddings.weight"
SECOND_NAMES: dict[str, str] = {}
# Tables of constants that old transformers saved.
_CONSTANTS = (".position_ids", ".token_type_ids")
_BLOCK, _LAYER = r"transformer\.blocks\.(\d+)\.", r"vilt.encoder.layer.\1."
_RENAMED = {
    _BLOCK + r"norm1\.": _LAYER + "layernorm_before.",
    _BLOCK + r"norm2\.": _LAYER + "layernorm_after.",
    _BLOCK + r"attn\.proj\.": _LAYER + "attention.output.dense.",
    _BLOCK + r"mlp\.fc1\.": _LAYER + "intermediate.dense.",
    _BLOCK + r"mlp\.fc2\.": _LAYER + "output.dense.",
    r"transformer\.norm\.": "vilt.layernorm.",
    r"transformer\.cls_token$": "vilt.embeddings.cls_token",
    r"transformer\.pos_embed$": "vilt.embeddings.position_embeddings",
    r"transformer\.patch_embed\.proj\.": "vilt.embeddings.patch_embeddings.projection.",
    r"text_embeddings\.": "vilt.embeddings.text_embeddings.",
    r"token_type_embeddings\.": "vilt.embeddings.token_type_embeddings.",
    r"pooler\.": "vilt.pooler.",
    r"(vqa|nlvr2)_classifier\.": "classifier.",
    r"mlm_score\.bias$": "mlm_score.decoder.bias",
}
_FUSED = re.compile(_BLOCK + r"attn\.qkv\.(weight|bias)")
# A table of constants, timm's unused classifier, and what the training metrics counted.
_DROPPED = re.compile(r"text_embeddings\.position_ids|(transformer\.)?head\.(weight|bias)|(train|val|dev|test)_\w+\..*")
# Heads of these vit= architectures that are not 64 wide, whatever num_heads says.
_NUM_HEADS = {"vit_small_patch16_224": 8, "vit_huge_patch16_224_in21k": 16, "vit_huge_patch32_384": 16}
# Fields of the configuration: the tensor of the original, and its axis, that show each.
_SIZES = {
    "vocab_size": ("text_embeddings.word_embeddings.weight", 0),
    "hidden_size": ("text_embeddings.word_embeddings.weight", 1),
    "max_position_embeddings": ("text_embeddings.position_embeddings.weight", 0),
    "type_vocab_size": ("text_embeddings.token_type_embeddings.weight", 0),
    "modality_type_vocab_size": ("token_type_embeddings.weight", 0),
    "intermediate_size": ("transformer.blocks.0.mlp.fc1.weight", 0),
    "num_channels": ("transformer.patch_embed.proj.weight", 1),
    "patch_size": ("transformer.patch_embed.proj.weight", 2),
}
_TABLE = "transformer.pos_embed"
# What a checkpoint was trained for: the first of these heads that it has.
_TASKS = {
    "nlvr2_classifier.3.weight": "ViltForImagesAndTextClassification",
    "vqa_classifier.3.weight": "ViltForQuestionAnswering",
    "rank_output.weight": "ViltForImageAndTextRetrieval",
    "mlm_score.decoder.weight": "ViltForMaskedLM",
    "itm_score.fc.weight": "ViltForImageTextMatching",
}


def full_names(stored: dict[str, StoredTensor], config: Any) -> dict[str, StoredTensor]:
    """Tensors under the names of a model with a head, whichever format and model they come from."""
    if is_original(stored):
        return _rename(stored)
    bare = not any(name.startswith(PREFIX) for name in stored)
    tensors: dict[str, StoredTensor] = {}
    # In this order the decoder's own bias wins over mlm_score.bias, its second name in 4.37.
    for name in sorted(stored, key=lambda name: name != "mlm_score.bias"):
        if name.endswith(_CONSTANTS):
            continue
        full = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
        full = "mlm_score.decoder.bias" if full == "mlm_score.bias" else full
        tensors[PREFIX + full if bare and not full.startswith(HEADS) else full] = stored[name]
    return tensors


def is_original(names: Iterable[str]) -> bool:
    """Whether names of tensors are those of the original repository."""
    return any(name.startswith("transformer.blocks.") for name in names)


def _rename(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors under Hugging Face's names, query, key and value apart; unknown ones keep their name.

    Raises:
        ValueError: a fused qkv that is not three blocks of rows, or two tensors for one name.
    """
    renamed: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        if _DROPPED.fullmatch(name):
            continue
        fused = _FUSED.fullmatch(name)
        parts = _split(tensor, *fused.groups()) if fused else {_new_name(name): tensor}
        if parts.keys() & renamed.keys():
            raise ValueError(f"two tensors of the checkpoint become {listing(sorted(parts))}; one is {name}")
        renamed.update(parts)
    return renamed | _rank_output(renamed)


def _new_name(name: str) -> str:
    for old, new in _RENAMED.items():
        if re.match(old, name):
            return re.sub(old, new, name, count=1)
    return name


def _split(tensor: StoredTensor, layer: str, kind: str) -> dict[str, StoredTensor]:
    rows = tensor.shape[0] // 3 if tensor.shape else 0
    if rows == 0 or tensor.shape[0] != 3 * rows:
        raise ValueError(f"{tensor.name}: got shape {tensor.shape}, wanted query, key and value in 3 blocks of rows")
    return {
        f"vilt.encoder.layer.{layer}.attention.attention.{part}.{kind}": _rows(tensor, i * rows, (i + 1) * rows)
        for i, part in enumerate(("query", "key", "value"))
    }


def _rows(tensor: StoredTensor, start: int, stop: int) -> StoredTensor:
    return replace(tensor, shape=(stop - start, *tensor.shape[1:]), read=lambda: tensor.read()[start:stop])


def _rank_output(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The retrieval head before its training: row 1 of the matching head, as the original starts it."""
    sources = {f"rank_output.{kind}": f"itm_score.fc.{kind}" for kind in ("weight", "bias")}
    if "rank_output.weight" in tensors or any(
        name not in tensors or tensors[name].shape[:1] != (2,) for name in sources.values()
    ):
        return {}
    return {name: replace(_rows(tensors[source], 1, 2), derived=True) for name, source in sources.items()}


def read_original_fields(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The fields of the configuration that belongs to a `.ckpt` of the original repository.

    `ViltConfig.from_pretrained(path)` makes the configuration of them.

    Sizes come from its tensors; the number of heads and the dropout from its hyperparameters, or hidden_size / 64
    and 0. The encoder's LayerNorm eps is 1e-6, as it was trained. `max_image_length` stays -1: the original's 200 is
    a training setting that would sample patches at inference.

    Raises:
        FileNotFoundError: no such file. ValueError: it is no such checkpoint, or its number of attention heads cannot
            be determined.
    """
    if not is_file(local_path(path)):
        raise FileNotFoundError(f"no checkpoint file {brief(str(path))}")
    with open_weights(path) as stored:
        shapes = {name: tensor.shape for name, tensor in stored.tensors.items()}
        if not is_original(shapes):
            raise ValueError(
                f"{stored.path} is no checkpoint of the original ViLT repository; "
                f"it holds {listing(sorted(shapes), 5) or 'no tensors'}"
            )
        sizes, hyper = _sizes(shapes, stored), _hyperparameters(stored.extra)
    dropout = hyper.get("drop_rate")
    return {
        **sizes,
        **_task(shapes),
        "num_attention_heads": _num_heads(sizes["hidden_size"], hyper, stored),
        "hidden_dropout_prob": float(dropout) if isinstance(dropout, int | float) else 0.0,
        "layer_norm_eps": 1e-12,
        "encoder_layer_norm_eps": 1e-6,
        "tie_word_embeddings": False,
    }


def _sizes(shapes: dict[str, tuple[int, ...]], stored: StoredWeights) -> dict[str, Any]:
    absent = [name for name in dict.fromkeys([*(name for name, _ in _SIZES.values()), _TABLE]) if name not in shapes]
    if absent:
        raise ValueError(f"{stored.path} lacks {listing(absent)}: its configuration cannot be determined")
    # A tensor needs the axis that is read, and a size.
    odd = [name for name, axis in [*_SIZES.values(), (_TABLE, 1)] if 0 in shapes[name] or len(shapes[name]) <= axis]
    if odd:
        got = listing([f"{name} {shapes[name]}" for name in dict.fromkeys(odd)])
        raise ValueError(f"{stored.path}: its configuration cannot be determined from tensors of these shapes: {got}")
    sizes = {field: shapes[name][axis] for field, (name, axis) in _SIZES.items()}
    side = math.isqrt(shapes[_TABLE][1] - 1)
    if 1 + side * side != shapes[_TABLE][1]:
        raise ValueError(f"{stored.path}: {_TABLE} has shape {shapes[_TABLE]}, wanted (1, 1 + n * n, hidden)")
    return {
        **sizes,
        "image_size": side * sizes["patch_size"],
        "num_hidden_layers": 1 + max(int(match.group(1)) for match in map(re.compile(_BLOCK).match, shapes) if match),
        "qkv_bias": "transformer.blocks.0.attn.qkv.bias" in shapes,
    }


def _hyperparameters(extra: dict[str, Any]) -> dict[str, Any]:
    found = extra.get("hyper_parameters")
    found = found.get("config", found) if isinstance(found, dict) else {}
    return found if isinstance(found, dict) else {}


def _num_heads(hidden_size: int, hyper: dict[str, Any], stored: StoredWeights) -> int:
    heads = _NUM_HEADS.get(str(hyper.get("vit"))) or hyper.get("num_heads")
    if not isinstance(heads, int):
        heads = hidden_size // 64 if hidden_size % 64 == 0 else 0
    if heads < 1 or hidden_size % heads:
        raise ValueError(
            f"{stored.path}: the number of attention heads of hidden size {hidden_size} cannot be determined "
            f"(hyper_parameters say {hyper.get('num_heads')!r}); give config="
        )
    return heads


def _task(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """The class that the heads are for, and its labels."""
    head, name = next(((head, name) for head, name in _TASKS.items() if head in shapes), ("", "ViltModel"))
    task: dict[str, Any] = {"architectures": [name]}
    if "classifier" in head and shapes[head]:  # one without an axis is refused where it is loaded
        task["num_labels"] = shapes[head][0]
    if name == "ViltForImagesAndTextClassification":
        task["num_images"] = 2
        if task.get("num_labels") == 2:
            task["id2label"] = {0: "False", 1: "True"}
    return task
