"""LayerNorm(word + position + type) + modality, each row written at its place.

Kim et al. 2021, section 3.1; Li et al. 2019, section 3.2, whose regions are texts of one word each.

One program per word: it reads the word's row in the packed tensor, returns at once where that is -1 (masked), and keeps
the whole row of `hidden` columns in registers between the statistics and the normalisation.

      grid (B, L)      word[id] + position[p] + token_type[t]    [ hidden .... | pad ]    BLOCK_D columns, one program
                       (x - mean) / sqrt(var + eps) * w + b + modality -> tokens[text_row[b, l]]

Sums and statistics are fp32, the variance of Welford's second form: the mean of (x - mean)^2. What is None drops out
when the kernel is compiled. Not supported: backward.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .no_backward import refuse_backward
from .shipped import Configuration, compiled, empty

MAX_HIDDEN = 16384


# Strides of a batch of words are not specialised: a new length must not compile a new kernel.
@triton.jit(do_not_specialize=[f"stride_{tensor}{axis}" for tensor in "ritp" for axis in "bl"])
def text_embed_kernel(
    tokens_ptr,  # (rows, hidden)
    text_row_ptr,  # (B, L) int32
    input_ids_ptr,  # (B, L) int64, or None with inputs_embeds
    token_type_ids_ptr,  # (B, L) int64
    position_ids_ptr,  # (B, L) int64, or None: position l is column l
    inputs_embeds_ptr,  # (B, L, hidden) or None
    word_ptr,  # (vocabulary, hidden), or None with inputs_embeds
    position_ptr,  # (positions, hidden)
    token_type_ptr,  # (types, hidden)
    ln_weight_ptr,  # (hidden,)
    ln_bias_ptr,  # (hidden,)
    modality_ptr,  # (hidden,) or None
    hidden,
    stride_token,
    stride_rb,
    stride_rl,
    stride_ib,
    stride_il,
    stride_tb,
    stride_tl,
    stride_pb,
    stride_pl,
    stride_eb,
    stride_el,
    stride_word,
    stride_position,
    stride_type,
    eps,
    BLOCK_D: tl.constexpr,
):
    pair = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1).to(tl.int64)
    row = tl.load(text_row_ptr + pair * stride_rb + place * stride_rl)
    if row < 0:
        return
    d_offs = tl.arange(0, BLOCK_D)
    mask = d_offs < hidden
    if inputs_embeds_ptr is None:
        word = tl.load(input_ids_ptr + pair * stride_ib + place * stride_il).to(tl.int64)
        x = tl.load(word_ptr + word * stride_word + d_offs, mask=mask, other=0.0).to(tl.float32)
    else:
        embeds_ptr = inputs_embeds_ptr + pair * stride_eb + place * stride_el
        x = tl.load(embeds_ptr + d_offs, mask=mask, other=0.0).to(tl.float32)
    kind = tl.load(token_type_ids_ptr + pair * stride_tb + place * stride_tl).to(tl.int64)
    position = place
    if position_ids_ptr is not None:
        position = tl.load(position_ids_ptr + pair * stride_pb + place * stride_pl).to(tl.int64)
    x += tl.load(position_ptr + position * stride_position + d_offs, mask=mask, other=0.0).to(tl.float32)
    x += tl.load(token_type_ptr + kind * stride_type + d_offs, mask=mask, other=0.0).to(tl.float32)

    mean = tl.sum(x, 0) / hidden
    centred = tl.where(mask, x - mean, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 0) / hidden + eps)
    weight = tl.load(ln_weight_ptr + d_offs, mask=mask, other=0.0).to(tl.float32)
    bias = tl.load(ln_bias_ptr + d_offs, mask=mask, other=0.0).to(tl.float32)
    out = centred * scale * weight + bias
    if modality_ptr is not None:
        out += tl.load(modality_ptr + d_offs, mask=mask, other=0.0).to(tl.float32)
    tokens_ptrs = tokens_ptr + row.to(tl.int64) * stride_token + d_offs
    tl.store(tokens_ptrs, out.to(tokens_ptr.dtype.element_ty), mask=mask)


# --- launchers --------------------------------------------------------------------------------------------------------


def _key(batch: tuple[Tensor | None, ...], inputs_embeds: Tensor | None, parameters: Sequence[Tensor | None]) -> tuple:
    return (
        *("text_embed", *map(launch.batch_traits, batch[1:])),
        *map(launch.traits, (batch[0], inputs_embeds, *parameters)),
        *(None if parameter is None else parameter.shape for parameter in parameters),
    )


def _launch(
    tokens: Tensor,
    text_row: Tensor,
    input_ids: Tensor | None,
    token_type_ids: Tensor,
    inputs_embeds: Tensor | None,
    word: Tensor | None,
    position: Tensor,
    token_type: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    modality: Tensor | None,
    eps: float,
    position_ids: Tensor | None = None,
) -> None:
    matrices = (inputs_embeds, word, position, token_type)
    inputs_embeds, *tables = (None if matrix is None else launch.row_major(matrix) for matrix in matrices)
    parameters = (*tables, *launch.contiguous(ln_weight, ln_bias, modality))
    batch = (tokens, text_row, input_ids, token_type_ids, position_ids)
    key, block = _key(batch, inputs_embeds, parameters), launch.next_power_of_2(tokens.shape[1])
    program = launch.plans.get(key) or launch.Program(
        text_embed_kernel,
        BLOCK_D=block,
        num_warps=min(max(block // 256, 1), 16),  # eight columns a thread, as wide as one load of 16-bit numbers
    )
    if launch.recording is None:
        launch.plans[key] = program
    _run(program, batch, inputs_embeds, parameters, eps)


def _run(
    program: launch.Program,
    batch: tuple[Tensor | None, ...],
    inputs_embeds: Tensor | None,
    parameters: Sequence[Tensor | None],
    eps: float,
) -> None:
    tokens, text_row, input_ids, token_type_ids, position_ids = batch
    assert tokens is not None and text_row is not None and token_type_ids is not None
    if text_row.numel() == 0:
        return
    program(
        (*text_row.shape, 1),
        *(*batch, inputs_embeds, *parameters),
        *(tokens.shape[1], tokens.stride(0), *text_row.stride()),
        *((0, 0) if input_ids is None else input_ids.stride()),
        *token_type_ids.stride(),
        *((0, 0) if position_ids is None else position_ids.stride()),
        *((0, 0) if inputs_embeds is None else inputs_embeds.stride()[:2]),
        *(0 if table is None else table.stride(0) for table in parameters[:3]),
        eps,
    )


def _fits(batch: tuple[Tensor | None, ...], inputs_embeds: Tensor | None, position: Tensor) -> bool:
    """Whether the sizes of a batch, of which a plan says nothing, are what `_check` asks for."""
    tokens, text_row, *ids = batch
    assert tokens is not None and text_row is not None
    shape, hidden = text_row.shape, position.shape[1]
    return (
        len(shape) == 2
        and all(each is None or each.shape == shape for each in ids)
        and (inputs_embeds is None or inputs_embeds.shape == (*shape, hidden))
        and (ids[-1] is not None or shape[1] <= position.shape[0])
        and tokens.shape[1] == hidden
    )


def _check(batch: tuple[Tensor | None, ...], inputs_embeds: Tensor | None, parameters: Sequence[Tensor | None]) -> None:
    op, (tokens, text_row, input_ids, token_type_ids, position_ids) = "text_embed", batch
    assert tokens is not None and text_row is not None and token_type_ids is not None
    word, position, token_type, ln_weight, ln_bias, modality = parameters
    assert position is not None
    launch.check_device(op, *batch, inputs_embeds, *parameters)
    launch.check_tensor(op, "tokens", tokens, ("rows", "d"), row_major=True)
    launch.check_tensor(op, "text_row", text_row, ("B", "L"), torch.int32)
    hidden, (pairs, words) = tokens.shape[1], text_row.shape
    if not 1 <= hidden <= MAX_HIDDEN:
        raise ValueError(f"{op}: tokens: got {hidden} columns, wanted 1 to {MAX_HIDDEN}")
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError(f"{op}: got {'neither' if input_ids is None else 'both'} of input_ids and inputs_embeds")
    if input_ids is not None and word is None:
        raise ValueError(f"{op}: word: got None with input_ids, wanted (vocabulary, {hidden})")
    launch.check_tensor(op, "inputs_embeds", inputs_embeds, (pairs, words, hidden))
    indices = {"input_ids": input_ids, "token_type_ids": token_type_ids, "position_ids": position_ids}
    for name, ids in indices.items():
        launch.check_tensor(op, name, ids, (pairs, words), torch.int64)
    for name, table in {"word": word, "position": position, "token_type": token_type}.items():
        launch.check_tensor(op, name, table, ("entries", hidden))
    for name, vector in {"ln_weight": ln_weight, "ln_bias": ln_bias, "modality": modality}.items():
        launch.check_tensor(op, name, vector, (hidden,))
    if position_ids is None and words > position.shape[0]:
        raise ValueError(f"{op}: position: got {position.shape[0]} entries for {words} columns of words")


_text_embed = torch.library.custom_op("vilt_fast::text_embed", _launch, mutates_args=("tokens",))


def shipped_configurations(target: str) -> list[Configuration]:
    """What launches on `target` compile."""
    shipped, ids, text_row = [], empty("i64", 1, 8), empty("i32", 1, 8)
    for dtype in ("fp32", "fp16", "bf16"):
        tokens = empty(dtype, 8, 768)
        rest = (tokens, tokens, tokens[0], tokens[0])  # position, token_type, ln_weight, ln_bias
        calls: dict[str, tuple] = {
            "": (text_row, ids, ids, None, tokens, *rest, tokens[0], 1e-6),
            ", no modality": (text_row, ids, ids, None, tokens, *rest, None, 1e-12),
        }
        if dtype == "bf16":
            calls[", inputs_embeds"] = (text_row, None, ids, tokens[None], tokens, *rest, tokens[0], 1e-6)
            calls[", regions"] = (text_row.T, None, ids.T, tokens[:, None], None, *rest, None, 1e-12)
            calls[", position_ids"] = (text_row, ids, ids, None, tokens, *rest, None, 1e-12, ids)
        for name, arguments in calls.items():
            shipped += compiled(target, dtype + name, _launch, tokens, *arguments)
    return shipped


# --- public function --------------------------------------------------------------------------------------------------


def text_embed(
    tokens: Tensor,
    text_row: Tensor,
    input_ids: Tensor | None,
    token_type_ids: Tensor,
    inputs_embeds: Tensor | None,
    word: Tensor | None,
    position: Tensor,
    token_type: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    modality: Tensor | None,
    eps: float,
    *,
    position_ids: Tensor | None = None,
) -> Tensor:
    """`vilt_fast.reference.text_embed.text_embed`, written in place into `tokens`, which it returns.

    Floats are fp32, fp16 or bf16, and rows have at most 16384 columns. Ids are not checked:
    that would need a wait for the device. No gradients.
    """
    parameters = (word, position, token_type, ln_weight, ln_bias, modality)
    eps = float(eps)
    batch = (tokens, text_row, input_ids, token_type_ids, position_ids)
    if launch.is_direct():
        program = launch.plans.get(_key(batch, inputs_embeds, parameters))
        if program is not None and _fits(batch, inputs_embeds, position):
            _run(program, batch, inputs_embeds, parameters, eps)
            return launch.written(tokens)
    _check(batch, inputs_embeds, parameters)
    arguments = (tokens, text_row, input_ids, token_type_ids, inputs_embeds, *parameters, eps, position_ids)
    if launch.is_direct(*batch, inputs_embeds, *parameters):
        _launch(*arguments)
        return launch.written(tokens)
    _text_embed(*arguments)
    return refuse_backward("text_embed", tokens, inputs_embeds, *parameters)
