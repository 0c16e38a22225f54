"""The weights of a frozen model: copied, cast and laid out once, as the operations want them.

Only what is provably what it looks like is taken: a module with a hook, an adapter, a parametrization or a forward of
its own computes something that its weights do not say, and is refused by name.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from vilt_fast.checkpoints import shapes_only
from vilt_fast.checkpoints.files import listing
from vilt_fast.frozen.blocks import Affine, Block, FoldedBlock, Norm, NormedAffine, PostNormBlock, can_fold
from vilt_fast.frozen.embedding import PatchEmbedding, PatchTables, RegionEmbedding, TextTables
from vilt_fast.frozen.heads import (
    ClassifierHead,
    Head,
    PatchHead,
    PhraseHead,
    PooledHead,
    PreTrainingHead,
    WordHead,
)
from vilt_fast.layers.activations import fused_name
from vilt_fast.layers.embeddings import VisualBertEmbeddings
from vilt_fast.layers.heads import Classifier, MaskedLMHead, MatchingHead, PreTrainingHeads, RegionToPhraseAttention
from vilt_fast.layers.post_norm import PostNormLayer
from vilt_fast.layers.reconstruction import PatchDecoder
from vilt_fast.layers.untouched import has_own, has_usual_settings, is_patched
from vilt_fast.models.heads import WithHead

LOG = logging.getLogger(__name__)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_ADVICE = "undo the change (remove a hook, merge an adapter), or call the live model"
# What a user's class may define without computing anything else.
_HARMLESS = {"__module__", "__doc__", "__annotations__", "__dict__", "__weakref__", "__init__", "config_class"}
_HARMLESS |= {"__firstlineno__", "__static_attributes__", "__annotate_func__", "__annotations_cache__"}  # Python 3.13


@dataclass(frozen=True, eq=False)
class Weights:
    """Of a whole model."""

    dtype: torch.dtype
    device: torch.device
    embeddings: PatchEmbedding | RegionEmbedding
    blocks: tuple[Block | FoldedBlock | PostNormBlock, ...]  # all of one kind
    additional: PostNormBlock | None  # one block more, for words and regions that the others do not read together
    norm: Norm | None  # None: blocks are post-norm
    pooler: PooledHead | None
    head: Head | None  # rows to scores; None for a model without a head
    is_folded: bool  # whether the norms of the blocks are part of the products after them


def collect(model: Any, dtype: torch.dtype, device: torch.device, folds: bool | None = None) -> Weights:
    """A copy of a model's weights.

    folds: whether to fold the norms of the blocks into the products after them; None: as the switch "fold_norm" says,
        where that can be done and loses nothing, see `vilt_fast.frozen.blocks`.

    Raises:
        ValueError: a module is not what its class says, or a weight is NaN or infinite in that dtype; names it.
    """
    refuse_changed(model)
    _refuse_non_finite(model, dtype, device)
    take = _Taker(dtype, device)
    body = body_of(model)
    can = can_fold(model.config, dtype, device) if folds is None else folds
    blocks, is_folded = take.blocks(body.encoder.layer, can)
    additional = getattr(body, "additional_layer", None)
    has_pooler = body.pooler is not None and getattr(model, "reads_pooler", True)
    return Weights(
        dtype=dtype,
        device=device,
        embeddings=take.embeddings(body.embeddings),
        blocks=blocks,
        additional=None if additional is None else take.post_norm_block(additional),
        norm=None if body.layernorm is None else take.norm(body.layernorm),
        pooler=take.pooler(body.pooler) if has_pooler else None,
        head=None if body is model else take.head(model),
        is_folded=is_folded,
    )


def body_of(model: Any) -> Any:
    """The model below a head; a base model is its own."""
    return model._body if isinstance(model, WithHead) else model


class _Taker:
    """Copies parameters to a dtype and a device; one that is used twice is copied once."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.options: dict[str, Any] = {"dtype": dtype, "device": device, "copy": True}
        self.taken: dict[int, Tensor] = {}  # by the id of the parameter, which the model keeps alive

    def __call__(self, parameter: Tensor) -> Tensor:
        if id(parameter) not in self.taken:
            self.taken[id(parameter)] = parameter.detach().to(**self.options).contiguous()
        return self.taken[id(parameter)]

    def affine(self, linear: Any) -> Affine:
        return Affine(self(linear.weight), None if linear.bias is None else self(linear.bias))

    def joined(self, *linears: Any) -> Affine:
        """One product in place of several on the same rows."""
        weight = torch.cat([linear.weight.detach() for linear in linears]).to(**self.options)
        if linears[0].bias is None:
            return Affine(weight, None)
        return Affine(weight, torch.cat([linear.bias.detach() for linear in linears]).to(**self.options))

    def folded(self, norm: Any, *linears: Any) -> NormedAffine | None:
        """LayerNorm and one product in place of several: from the parameters as they are, rounded once."""
        weight = torch.cat([linear.weight.detach() for linear in linears]).double()
        scaled, shift = weight * norm.weight.detach().double(), weight @ norm.bias.detach().double()
        if linears[0].bias is not None:
            shift = shift + torch.cat([linear.bias.detach() for linear in linears]).double()
        # A normalised row sums to zero, so the mean of a row of the weight adds nothing. Without it the sums are those
        # of roundings alone, and a row that is far from zero has little to cancel.
        centred = scaled - scaled.mean(dim=1, keepdim=True)
        rounded = centred.to(self.options["dtype"])
        lost = (rounded.double() - centred).norm(dim=1)
        # Half an ulp is what a row may lose, as it would as it is; an element that over- or underflows costs more.
        if not (lost <= torch.finfo(rounded.dtype).eps / 2 * scaled.norm(dim=1)).all():
            return None
        device, sums = self.options["device"], rounded.double().sum(dim=1)
        return NormedAffine(rounded.to(device), sums.float().to(device), shift.float().to(device), norm.eps)

    def norm(self, norm: Any) -> Norm:
        return Norm(self(norm.weight), self(norm.bias), norm.eps)

    def embeddings(self, embeddings: Any) -> PatchEmbedding | RegionEmbedding:
        if isinstance(embeddings, VisualBertEmbeddings):
            return self.regions(embeddings)
        modality = None if embeddings.token_type_embeddings is None else self(embeddings.token_type_embeddings.weight)
        projection, mask_token = embeddings.patch_embeddings.projection, embeddings.mask_token
        text = getattr(embeddings, "text_embeddings", None)
        return PatchEmbedding(
            text=None if text is None or modality is None else self.text(text, modality[0]),
            patches=PatchTables(
                weight=self(projection.weight),
                bias=None if projection.bias is None else self(projection.bias),
                position=self(embeddings.position_embeddings)[0],
                cls_token=self(embeddings.cls_token)[0, 0],
                modality=modality,
                mask_token=None if mask_token is None else self(mask_token)[0, 0],
                table_size=embeddings.table_size,
            ),
        )

    def regions(self, embeddings: Any) -> RegionEmbedding:
        text = self.text(embeddings, None)
        visual = replace(
            text,
            word=None,
            position=self(embeddings.visual_position_embeddings.weight)[:1].clone(),
            token_type=self(embeddings.visual_token_type_embeddings.weight),
        )
        return RegionEmbedding(text, self.affine(embeddings.visual_projection), visual)

    def text(self, text: Any, modality: Tensor | None) -> TextTables:
        norm = self.norm(text.LayerNorm)
        return TextTables(
            word=self(text.word_embeddings.weight),
            position=self(text.position_embeddings.weight),
            token_type=self(text.token_type_embeddings.weight),
            ln_weight=norm.weight,
            ln_bias=norm.bias,
            modality=modality,
            eps=norm.eps,
        )

    def pooler(self, pooler: Any) -> PooledHead:
        return PooledHead(self.affine(pooler.dense), **self.epilogue(pooler.activation))

    def epilogue(self, act: nn.Module) -> dict[str, Any]:
        """What follows a product: a step of the product itself, or a module to call after it."""
        fused = fused_name(act)
        if fused is not None:
            return {"activation": fused, "activation_after": None}
        place = {name: self.options[name] for name in ("dtype", "device")}
        return {"activation": None, "activation_after": copy.deepcopy(act).to(**place).eval().requires_grad_(False)}

    def blocks(self, layers: Any, folds: bool) -> tuple[tuple[Block | FoldedBlock | PostNormBlock, ...], bool]:
        """All blocks, and whether their norms are folded."""
        if any(isinstance(layer, PostNormLayer) for layer in layers):
            return tuple(self.post_norm_block(layer) for layer in layers), False
        if folds:
            folded = [self.folded_block(layer, layer is layers[-1]) for layer in layers]
            if None not in folded:
                return tuple(block for block in folded if block is not None), True
            LOG.info("norms stay: a weight of a norm times one of the next product is out of %s", self.options["dtype"])
        return tuple(self.block(layer) for layer in layers), False

    def block(self, layer: Any) -> Block:
        return Block(
            norm_before=self.norm(layer.layernorm_before),
            joined=self.joined(*_projections(layer)),
            norm_after=self.norm(layer.layernorm_after),
            up=self.affine(layer.intermediate.dense),
            **self.rest(layer),
        )

    def folded_block(self, layer: Any, is_last: bool) -> FoldedBlock | None:
        """None where a weight in which a norm is folded is not one of the dtype any more."""
        joined = self.folded(layer.layernorm_before, *_projections(layer))
        up = self.folded(layer.layernorm_after, layer.intermediate.dense)
        if joined is None or up is None:
            return None
        return FoldedBlock(joined=joined, up=up, is_last=is_last, **self.rest(layer))

    def post_norm_block(self, layer: Any) -> PostNormBlock:
        return PostNormBlock(
            joined=self.joined(*_projections(layer)),
            norm_after_attention=self.norm(layer.attention.output.LayerNorm),
            up=self.affine(layer.intermediate.dense),
            norm_after_mlp=self.norm(layer.output.LayerNorm),
            **self.rest(layer),
        )

    def rest(self, layer: Any) -> dict[str, Any]:
        """What blocks of all kinds have in common."""
        heads = layer.attention.heads
        return {
            "out": self.affine(layer.attention.output.dense),
            "down": self.affine(layer.output.dense),
            "num_heads": heads.num_attention_heads,
            "kept_heads": heads.kept_heads,
            **self.epilogue(layer.intermediate.intermediate_act_fn),
        }

    def words(self, head: Any) -> WordHead:
        transform = head.transform
        return WordHead(
            dense=self.affine(transform.dense),
            **self.epilogue(transform.transform_act_fn),
            norm=self.norm(transform.LayerNorm),
            decoder=self.affine(head.decoder),
        )

    def head(self, model: Any) -> Head | None:
        for name in ("attention", "cls", "rank_output", "itm_score", "mlm_score", "classifier", "decoder"):
            head = getattr(model, name, None)
            if isinstance(head, RegionToPhraseAttention):
                return PhraseHead(self.affine(head.query), self.affine(head.key))
            if isinstance(head, PreTrainingHeads):
                return PreTrainingHead(self.words(head.predictions), self.affine(head.seq_relationship))
            if isinstance(head, nn.Linear):
                return self.affine(head)
            if isinstance(head, nn.Identity):
                return None
            if isinstance(head, PatchDecoder):
                convolution, shuffle = cast(Any, head)
                bias = None if convolution.bias is None else self(convolution.bias)
                return PatchHead(Affine(self(convolution.weight).flatten(1), bias), shuffle.upscale_factor)
            if isinstance(head, MatchingHead):
                return self.affine(head.fc)
            if isinstance(head, Classifier):
                first, norm, _, last = head.children()
                return ClassifierHead(self.affine(first), self.norm(norm), self.affine(last))
            if isinstance(head, MaskedLMHead):
                return self.words(head)
        raise ValueError(f"freeze: got a {type(model).__name__}, which has no head that can be frozen")


def _projections(layer: Any) -> tuple[nn.Module, nn.Module, nn.Module]:
    heads = layer.attention.heads
    return heads.query, heads.key, heads.value


def own_class(model: nn.Module) -> Any:
    """The class of this library that a model is of: its own, or the one that a user's class adds nothing to.

    Raises:
        ValueError: the user's class overrides something; names it.
    """
    for kind in type(model).__mro__:
        if kind.__module__.startswith("vilt_fast."):
            return kind
        changed = sorted((vars(kind).keys() & set(dir(nn.Module)) | vars(kind).keys() & _ours(model)) - _HARMLESS)
        if changed:
            raise ValueError(f"freeze: {kind.__name__} has a {changed[0]} of its own; {_ADVICE}")
    raise ValueError(f"freeze: model: got {type(model).__name__}, wanted a model of vilt_fast")


def _ours(model: nn.Module) -> set[str]:
    """The names that this library's classes define."""
    kinds = (kind for kind in type(model).__mro__ if kind.__module__.startswith("vilt_fast."))
    return {name for kind in kinds for name in vars(kind)}


def refuse_changed(model: Any) -> None:
    """Raise unless every module and parameter is what the model's class makes, and nothing hangs on it.

    Raises:
        ValueError: names the module and what was found.
    """
    kind = own_class(model)
    if _has_any_global_hook():
        raise ValueError("freeze: a hook of all modules is registered, which a frozen model would not call; remove it")
    plain = _plain(model, kind)
    wanted = dict(plain.named_modules(remove_duplicate=False))
    found = dict(model.named_modules(remove_duplicate=False))
    for name, module in found.items():
        if name not in wanted:
            raise _refusal(name, f"is a {type(module).__name__} that {kind.__name__} does not have")
        if type(module) is not type(wanted[name]) and module is not model:
            raise _refusal(name, f"is a {_full_name(module)}, not a {type(wanted[name]).__name__}")
        hooks = next((hooks for hooks in _HOOKS if getattr(module, hooks)), None)
        if hooks is not None:
            raise _refusal(name, f"has {hooks.strip('_').replace('_', ' ')}")
        own = sorted(name for name in vars(module) if name != "extra_repr" and has_own(module, name))
        if own or is_patched(type(module)):
            raise _refusal(name, f"has a {[*own, 'forward'][0]} of its own")
        if module._buffers.keys() != wanted[name]._buffers.keys():
            raise _refusal(name, "has a buffer of its own")
        if not has_usual_settings(module):
            raise _refusal(name, f"is a {module!r}, which the model does not make")
    for name in sorted(wanted.keys() - found.keys()):
        raise _refusal(name, "is missing")
    _refuse_parameters(model, plain)


def _plain(model: Any, kind: Any) -> nn.Module:
    """What the configuration makes, without weights."""
    # First, as many blocks take their time without weights too.
    body = body_of(model)
    blocks, said = len(body.encoder.layer), model.config.num_hidden_layers
    if blocks != said:
        raise ValueError(f"freeze: the model has {blocks} blocks, config.num_hidden_layers is {said}; make them agree")
    # What a base model may have been made with or without.
    options = {"add_pooling_layer": model.pooler is not None} if body is model else {}
    if body is model and getattr(body.embeddings, "mask_token", None) is not None:
        options["use_mask_token"] = True
    try:
        with shapes_only():
            return kind(model.config, **options)
    except (RuntimeError, TypeError, ArithmeticError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"freeze: config: it was changed, and makes no {kind.__name__} any more: {reason}") from error


def _refuse_non_finite(model: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Raise where a weight is NaN or infinite, or becomes so in a dtype."""
    weights = {name: tensor.detach() for name, tensor in model.named_parameters() if tensor.numel()}
    # The extremes say it, NaN included, in a tenth of the time of `isfinite`; all are read back at once.
    extremes = [torch.stack(_comparable(tensor).aminmax()).to(device, dtype) for tensor in weights.values()]
    are_fine = torch.stack(extremes).isfinite().all(1).tolist()
    bad = [name for name, is_fine in zip(weights, are_fine, strict=True) if not is_fine]
    if bad:
        found = f"{len(bad)} weights are NaN or infinite in {str(dtype).removeprefix('torch.')}"
        raise ValueError(f"freeze: {found}: {listing(bad)}")


def _comparable(weight: Tensor) -> Tensor:
    """The same values in a dtype that can be compared: those of 8 bits cannot."""
    return weight.float() if weight.element_size() == 1 else weight


def _refuse_parameters(model: nn.Module, plain: nn.Module) -> None:
    wanted = dict(plain.named_parameters(remove_duplicate=False))
    found = dict(model.named_parameters(remove_duplicate=False))
    for name in sorted(wanted.keys() ^ found.keys()):
        raise _refusal(name, "is missing" if name in wanted else "is a parameter of your own")
    for name, tensor in found.items():
        if type(tensor) not in (Tensor, nn.Parameter):
            raise _refusal(name, f"is a {type(tensor).__name__}, not a plain tensor")
        if tensor.is_meta:
            raise ValueError(f"freeze: {name} is on the meta device: load weights first")
        if tensor.shape != wanted[name].shape:
            shapes = f"{tuple(tensor.shape)}, not {tuple(wanted[name].shape)} as the configuration says"
            raise _refusal(name, f"has the shape {shapes}")


def _refusal(name: str, what: str) -> ValueError:
    return ValueError(f"freeze: {name or 'the model'} {what}; {_ADVICE}")


def _full_name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"
