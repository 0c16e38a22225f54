"""Who else a user could pick: transformers, and two encoders written by hand around PyTorch's own attention.

The peers take our weights, so that their answers can be checked. The hand-written ones start from embedded rows, as a
reader would write them in an afternoon: fused query, key and value, exact GELU, the last block and the head on the
first rows. They skip masks, patches and the embedding, so they stand beside our encoder, not beside our model.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vilt_fast.bench.case import Case
from vilt_fast.bench.contestant import ENCODER, EVERY_ROW, Calls, Contestant, Unavailable, graphed

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


# --- transformers -----------------------------------------------------------------------------------------------------


def transformers_calls(case: Case, dtype: torch.dtype, *, compile: bool = False) -> Calls:
    """transformers' own class with our weights on the padded inputs."""
    model = transformers_model(case, dtype)
    forward = torch.compile(model) if compile else model
    return [partial(_logits, forward, inputs) for inputs in case.inputs_in(dtype)]


def transformers_model(case: Case, dtype: torch.dtype) -> nn.Module:
    """Its class for the case's task.

    Raises:
        Unavailable: transformers is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise Unavailable("transformers is not installed") from error

    def make() -> nn.Module:
        config = case.config.to_dict()
        for name in ("model_type", "architectures", "encoder_layer_norm_eps", "transformers_version"):
            config.pop(name, None)
        model = getattr(transformers, type(case.master).__name__)(transformers.ViltConfig(**config))
        model.load_state_dict(case.master.state_dict())
        return model

    return case.shared("transformers", dtype, make)


def _logits(model: Callable[..., Any], inputs: dict[str, Tensor]) -> Tensor:
    return model(**inputs).logits


# --- the encoder by hand ----------------------------------------------------------------------------------------------


class HandWritten(nn.Module):
    """ViLT or ViT from embedded rows to logits, around an attention that is handed in; pre-norm.

    Args:
        state: weights under Hugging Face's names. config: of the model. images: sequences per pair.
    """

    heads_at = "attention.attention"  # where a block has query, key and value

    def __init__(self, state: dict[str, Tensor], config: Any, images: int) -> None:
        super().__init__()
        self.heads, self.eps = config.num_attention_heads, config.layer_norm_eps
        self.layers, self.images, self.body = config.num_hidden_layers, images, config.model_type
        replaced = ("embeddings.", f".{self.heads_at}.")
        kept = {name: value for name, value in state.items() if not any(part in name for part in replaced)}
        for block in map(f"{self.body}.encoder.layer.{{}}".format, range(self.layers)):
            for kind in ("weight", "bias"):
                parts = [state[f"{block}.{self.heads_at}.{name}.{kind}"] for name in ("query", "key", "value")]
                kept[f"{block}.qkv.{kind}"] = torch.cat(parts)
        for name, value in kept.items():
            self.register_buffer(name.replace(".", "_"), value.clone())

    def _of(self, name: str) -> tuple[Tensor, Tensor]:
        name = name.replace(".", "_")
        return getattr(self, f"{name}_weight"), getattr(self, f"{name}_bias")

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, *self._of(name))

    def _norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], *self._of(name), eps)

    def forward(self, x: Tensor, first: Tensor, attend: Attend, every_row: bool = False) -> Tensor:
        """Logits.

        Args:
            x: (rows, d) packed, or (B, S, d) padded. first: flat indices of the rows that the head reads.
            attend: query, key, value (..., heads, head_dim) to the same shape.
            every_row: whether the last block goes on with all rows after its attention.
        """
        for i in range(self.layers):
            block = f"{self.body}.encoder.layer.{i}"
            qkv = self._linear(f"{block}.qkv", self._before(block, x))
            query, key, value = qkv.unflatten(-1, (3, self.heads, -1)).unbind(-3)
            context = attend(query, key, value).flatten(-2)
            if i + 1 == self.layers and not every_row:
                context, x = context.flatten(0, -2)[first], x.flatten(0, -2)[first]
            x = self._after(block, context, x)
        return self._head(x.flatten(0, -2)[first] if every_row else x)

    def _before(self, block: str, x: Tensor) -> Tensor:
        return self._norm(f"{block}.layernorm_before", x, self.eps)

    def _after(self, block: str, context: Tensor, x: Tensor) -> Tensor:
        x = x + self._linear(f"{block}.attention.output.dense", context)
        inner = self._linear(f"{block}.intermediate.dense", self._norm(f"{block}.layernorm_after", x, self.eps))
        return x + self._linear(f"{block}.output.dense", F.gelu(inner))

    def _head(self, x: Tensor) -> Tensor:
        rows = self._norm(f"{self.body}.layernorm", x, self.eps)
        if self.body == "vit":
            return self._linear("classifier", rows)
        pooled = torch.tanh(self._linear("vilt.pooler.dense", rows)).view(len(rows) // self.images, -1)
        inner = self._norm("classifier.1", self._linear("classifier.0", pooled), 1e-5)
        return self._linear("classifier.3", F.gelu(inner))


class PostNormHandWritten(HandWritten):
    """The same of VisualBERT: post-norm blocks, and one linear layer on the rows that are read."""

    heads_at = "attention.self"

    def _before(self, block: str, x: Tensor) -> Tensor:
        return x

    def _after(self, block: str, context: Tensor, x: Tensor) -> Tensor:
        x = x + self._linear(f"{block}.attention.output.dense", context)
        x = self._norm(f"{block}.attention.output.LayerNorm", x, self.eps)
        inner = F.gelu(self._linear(f"{block}.intermediate.dense", x))
        return self._norm(f"{block}.output.LayerNorm", x + self._linear(f"{block}.output.dense", inner), self.eps)

    def _head(self, x: Tensor) -> Tensor:
        return self._linear("cls", x)


def hand_written(case: Case, dtype: torch.dtype) -> nn.Module:
    """The module with the case's weights, on its device."""
    kind = PostNormHandWritten if case.config.model_type == "visual_bert" else HandWritten

    def make() -> HandWritten:
        return kind(case.master.state_dict(), case.config, case.workload.pictures)

    return case.shared("by hand", dtype, make)


def padded_calls(
    case: Case, dtype: torch.dtype, *, mode: str | None = None, graphs: bool = False, cudnn: bool = False
) -> Calls:
    """(B, S, d) rows, every sequence as long as the longest, and F.scaled_dot_product_attention with a key mask."""
    tokens, layout = case.packed
    places, length = layout.padded_row, layout.max_seqlen
    # Words, CLS and patches of each pair moved to the left: the rows stand as in the packed tensor.
    at = torch.arange(length, device=case.device)
    real = at < layout.cu_seqlens.diff()[:, None]
    rows = torch.where(real, layout.first[:, None] + at, 0)
    x = (tokens[rows] * real[..., None]).to(dtype)
    first, mask = torch.arange(len(places), device=case.device) * length, real[:, None, None]

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = (t.transpose(1, 2) for t in (query, key, value))
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)

    calls = _encoder_calls(case, dtype, x, first, attend, mode, graphs)
    if not cudnn:
        return calls
    if case.device.type != "cuda":
        raise Unavailable("needs a GPU: cuDNN")
    return [sdpa_kernel(SDPBackend.CUDNN_ATTENTION)(calls[0])]


def one_by_one_calls(case: Case, dtype: torch.dtype) -> Calls:
    """(rows, d) packed, and F.scaled_dot_product_attention on one sequence after the other: a CPU's varlen_attn."""
    if case.device.type == "cuda":
        raise Unavailable("needs a CPU: a GPU has varlen_attn for it")
    tokens, layout = case.packed
    attend = in_spans(layout.cu_seqlens.diff().tolist())
    return _encoder_calls(case, dtype, tokens.to(dtype), layout.first.long(), attend, None, False)


def in_spans(lengths: list[int]) -> Attend:
    """Attention inside spans of such lengths, a call for each."""

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        spans = zip(*(rows.transpose(0, 1)[None].split(lengths, 2) for rows in (query, key, value)), strict=True)
        return torch.cat([F.scaled_dot_product_attention(*span) for span in spans], 2)[0].transpose(0, 1)

    return attend


def packed_calls(
    case: Case, dtype: torch.dtype, *, mode: str | None = None, graphs: bool = False, every_row: bool = False
) -> Calls:
    """(rows, d) packed and torch.nn.attention.varlen.varlen_attn (FlashAttention)."""
    tokens, layout = case.packed
    attend = varlen(tokens.to(dtype), layout.cu_seqlens, layout.max_seqlen)
    return _encoder_calls(case, dtype, tokens.to(dtype), layout.first.long(), attend, mode, graphs, every_row)


def varlen(rows: Tensor, spans: Tensor, longest: int) -> Attend:
    """torch's varlen_attn over spans of such rows.

    Raises:
        Unavailable: it has no kernel for the rows' device or dtype, or torch has no varlen_attn.
    """
    if not rows.is_cuda:
        raise Unavailable("needs a GPU: varlen_attn has no CPU kernel")
    if rows.dtype not in (torch.float16, torch.bfloat16):
        raise Unavailable("varlen_attn takes fp16 and bf16 alone")
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError as error:
        raise Unavailable(f"torch {torch.__version__} has no torch.nn.attention.varlen") from error

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out: Any = varlen_attn(query, key, value, spans, spans, longest, longest)  # a tuple only if asked for more
        return out

    return attend


def flex_calls(case: Case, dtype: torch.dtype, *, graphs: bool = False) -> Calls:
    """(rows, d) packed and FlexAttention with a document mask: compiled on a GPU, eager on the CPU for tiny cases."""
    tokens, layout = case.packed
    if case.device.type != "cuda" and len(tokens) > 1024:
        raise Unavailable("needs a GPU: eager FlexAttention makes the whole score matrix")
    if case.device.type == "cuda" and not case.compiles:
        raise Unavailable("compiles for long: takes part where a case says so (--compile)")
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    lengths = layout.cu_seqlens.diff().long()
    # Compiled FlexAttention wants whole blocks of 128; the rows at the end are a document that nobody reads.
    total = -(-len(tokens) // 128) * 128
    lengths = torch.cat((lengths, lengths.new_tensor([total - len(tokens)])))
    document = torch.arange(len(lengths), device=case.device).repeat_interleave(lengths)
    x = F.pad(tokens, (0, 0, 0, total - len(tokens))).to(dtype)

    def same_document(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return document[q] == document[k]

    # Not compiled, it makes the whole (rows, rows) mask first: 10 GB at 100,000 rows.
    make_mask = torch.compile(create_block_mask) if case.device.type == "cuda" else create_block_mask
    block_mask = make_mask(same_document, None, None, total, total, device=case.device.type)
    flex = torch.compile(flex_attention) if case.device.type == "cuda" else flex_attention

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = (t.transpose(0, 1)[None] for t in (query, key, value))
        return flex(query, key, value, block_mask=block_mask)[0].transpose(0, 1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # eager FlexAttention warns of what the name of this contestant says
        return _encoder_calls(case, dtype, x, layout.first.long(), attend, None, graphs)


def _encoder_calls(
    case: Case,
    dtype: torch.dtype,
    x: Tensor,
    first: Tensor,
    attend: Attend,
    mode: str | None,
    graphs: bool,
    every_row: bool = False,
) -> Calls:
    module = hand_written(case, dtype)
    forward = module if mode is None else torch.compile(module, mode=mode, dynamic=False)
    call = partial(forward, x, first + case.read_at, attend, every_row)
    return [graphed(call, case.device) if graphs else call]


# --- the list ---------------------------------------------------------------------------------------------------------


def model_peers(dtypes: tuple[torch.dtype, ...]) -> list[Contestant]:
    """From pixels and ids to logits."""
    name, call = "transformers eager", transformers_calls
    eager = [Contestant(name, dtype, partial(call, dtype=dtype), samples=False) for dtype in dtypes]
    compiled = partial(call, dtype=dtypes[-1], compile=True)
    return [*eager, Contestant("transformers + torch.compile", dtypes[-1], compiled, compiles=True, samples=False)]


def encoder_peers(dtype: torch.dtype) -> list[Contestant]:
    """From embedded rows to logits."""
    makes: dict[str, tuple[Callable[..., Calls], dict[str, Any]]] = {
        "padded SDPA": (padded_calls, {}),
        "padded SDPA + graph": (padded_calls, {"graphs": True}),
        "padded SDPA + torch.compile": (padded_calls, {"mode": "default"}),
        "padded SDPA + torch.compile + graph": (padded_calls, {"mode": "default", "graphs": True}),
        "padded SDPA, cuDNN": (padded_calls, {"cudnn": True}),
        "packed varlen_attn": (packed_calls, {}),
        "packed varlen_attn + graph": (packed_calls, {"graphs": True}),
        "packed varlen_attn + torch.compile": (packed_calls, {"mode": "default"}),
        "packed varlen_attn + torch.compile + graph": (packed_calls, {"mode": "default", "graphs": True}),
        "packed varlen_attn + max-autotune": (packed_calls, {"mode": "max-autotune-no-cudagraphs"}),
        "packed FlexAttention": (flex_calls, {}),
        "packed, SDPA one by one": (one_by_one_calls, {}),
    }
    found = [
        Contestant(name, dtype, partial(make, dtype=dtype, **options), compiles="mode" in options, **ENCODER)
        for name, (make, options) in makes.items()
    ]
    for name in ("packed varlen_attn + graph", "packed varlen_attn + torch.compile + graph"):
        call = partial(packed_calls, dtype=dtype, every_row=True, **makes[name][1])
        found.append(Contestant(name, dtype, call, compiles="mode" in makes[name][1], **EVERY_ROW))
    return found
