"""LayerNorm(word + position + type) + modality, each row written at its place (Kim et al. 2021, section 3.1).

One program per word: it reads the word's row in the packed tensor, returns at once where that is -1 (masked), and keeps
the whole row of `hidden` columns in registers between the statistics and the normalisation.

      grid (B, L)      word[id] + position[l] + token_type[t]    [ hidden .... | pad ]    BLOCK_D columns, one program
                       (x - mean) / sqrt(var + eps) * w + b + modality -> tokens[text_row[b, l]]

Sums and statistics are fp32, the variance of Welford's second form: the mean of (x - mean)^2. Not supported: backward.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .no_backward import refuse_backward
from .shipped import Configuration, compiled, empty

MAX_HIDDEN = 16384


# Strides of a batch of words are not specialised: a new length must not compile a new kernel.
@triton.jit(do_not_specialize=["stride_rb", "stride_rl", "stride_ib", "stride_il", "stride_tb", "stride_tl"])
def text_embed_kernel(
    tokens_ptr,  # (rows, hidden)
    text_row_ptr,  # (B, L) int32
    input_ids_ptr,  # (B, L) int64, or None with inputs_embeds
    token_type_ids_ptr,  # (B, L) int64
    inputs_embeds_ptr,  # (B, L, hidden) or None
    word_ptr,  # (vocabulary, hidden)
    position_ptr,  # (positions, hidden)
    token_type_ptr,  # (types, hidden)
    ln_weight_ptr,  # (hidden,)
    ln_bias_ptr,  # (hidden,)
    modality_ptr,  # (hidden,)
    hidden,
    stride_token,
    stride_rb,
    stride_rl,
    stride_ib,
    stride_il,
    stride_tb,
    stride_tl,
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
    x += tl.load(position_ptr + place * stride_position + d_offs, mask=mask, other=0.0).to(tl.float32)
    x += tl.load(token_type_ptr + kind * stride_type + d_offs, mask=mask, other=0.0).to(tl.float32)

    mean = tl.sum(x, 0) / hidden
    centred = tl.where(mask, x - mean, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 0) / hidden + eps)
    weight = tl.load(ln_weight_ptr + d_offs, mask=mask, other=0.0).to(tl.float32)
    bias = tl.load(ln_bias_ptr + d_offs, mask=mask, other=0.0).to(tl.float32)
    modality = tl.load(modality_ptr + d_offs, mask=mask, other=0.0).to(tl.float32)
    out = centred * scale * weight + bias + modality
    tokens_ptrs = tokens_ptr + row.to(tl.int64) * stride_token + d_offs
    tl.store(tokens_ptrs, out.to(tokens_ptr.dtype.element_ty), mask=mask)


# --- launchers --------------------------------------------------------------------------------------------------------


def _key(batch: tuple[Tensor | None, ...], inputs_embeds: Tensor | None, parameters: tuple[Tensor, ...]) -> tuple:
    return (
        *("text_embed", *map(launch.batch_traits, batch[1:])),
        *map(launch.traits, (batch[0], inputs_embeds, *parameters)),
        *(parameter.shape for parameter in parameters),
    )


def _launch(
    tokens: Tensor,
    text_row: Tensor,
    input_ids: Tensor | None,
    token_type_ids: Tensor,
    inputs_embeds: Tensor | None,
    word: Tensor,
    position: Tensor,
    token_type: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    modality: Tensor,
    eps: float,
) -> None:
    inputs_embeds = None if inputs_embeds is None else launch.row_major(inputs_embeds)
    tables = [launch.row_major(table) for table in (word, position, token_type)]
    parameters = (*tables, *(vector.contiguous() for vector in (ln_weight, ln_bias, modality)))
    batch = (tokens, text_row, input_ids, token_type_ids)
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
    parameters: tuple[Tensor, ...],
    eps: float,
) -> None:
    tokens, text_row, input_ids, token_type_ids = batch
    assert tokens is not None and text_row is not None and token_type_ids is not None
    if text_row.numel() == 0:
        return
    program(
        (*text_row.shape, 1),
        *(*batch, inputs_embeds, *parameters),
        *(tokens.shape[1], tokens.stride(0), *text_row.stride()),
        *((0, 0) if input_ids is None else input_ids.stride()),
        *token_type_ids.stride(),
        *((0, 0) if inputs_embeds is None else inputs_embeds.stride()[:2]),
        *(table.stride(0) for table in parameters[:3]),
        eps,
    )


_text_embed = torch.library.custom_op("vilt_fast::text_embed", _launch, mutates_args=("tokens",))


def shipped_configurations(target: str) -> list[Configuration]:
    """What launches on `target` compile."""
    shipped = []
    for dtype, embeds in (("fp32", False), ("fp16", False), ("bf16", False), ("bf16", True)):
        tokens, ids = empty(dtype, 8, 768), empty("i64", 1, 8)
        words = (None, ids, tokens[None]) if embeds else (ids, ids, None)
        arguments = (tokens, empty("i32", 1, 8), *words, *[tokens] * 3, *[tokens[0]] * 3, 1e-6)
        shipped += compiled(target, dtype + ", inputs_embeds" * embeds, _launch, *arguments)
    return shipped


# --- public function --------------------------------------------------------------------------------------------------


def text_embed(
    tokens: Tensor,
    text_row: Tensor,
    input_ids: Tensor | None,
    token_type_ids: Tensor,
    inputs_embeds: Tensor | None,
    word: Tensor,
    position: Tensor,
    token_type: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    modality: Tensor,
    eps: float,
) -> Tensor:
    """`vilt_fast.reference.text_embed.text_embed`, written in place into `tokens`, which it returns.

    Floats are fp32, fp16 or bf16, and rows have at most 16384 columns. Ids are not checked:
    that would need a wait for the device. No gradients.
    """
    parameters = (word, position, token_type, ln_weight, ln_bias, modality)
    eps = float(eps)
    if launch.is_direct() and inputs_embeds is None and input_ids is not None:
        batch = (tokens, text_row, input_ids, token_type_ids)
        program = launch.plans.get(_key(batch, None, parameters))
        fits = text_row.shape == input_ids.shape == token_type_ids.shape and text_row.ndim == 2
        if program is not None and fits and text_row.shape[1] <= position.shape[0] and tokens.shape[1] == word.shape[1]:
            _run(program, batch, None, parameters, eps)
            return launch.written(tokens)
    op = "text_embed"
    tables = {"word": word, "position": position, "token_type": token_type}
    vectors = {"ln_weight": ln_weight, "ln_bias": ln_bias, "modality": modality}
    launch.check_device(op, tokens, text_row, input_ids, token_type_ids, inputs_embeds, *parameters)
    launch.check_tensor(op, "tokens", tokens, ("rows", "d"), row_major=True)
    launch.check_tensor(op, "text_row", text_row, ("B", "L"), torch.int32)
    hidden, (batch, words) = tokens.shape[1], text_row.shape
    if not 1 <= hidden <= MAX_HIDDEN:
        raise ValueError(f"{op}: tokens: got {hidden} columns, wanted 1 to {MAX_HIDDEN}")
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError(f"{op}: got {'neither' if input_ids is None else 'both'} of input_ids and inputs_embeds")
    launch.check_tensor(op, "inputs_embeds", inputs_embeds, (batch, words, hidden))
    launch.check_tensor(op, "input_ids", input_ids, (batch, words), torch.int64)
    launch.check_tensor(op, "token_type_ids", token_type_ids, (batch, words), torch.int64)
    for name, table in tables.items():
        launch.check_tensor(op, name, table, ("entries", hidden))
    for name, vector in vectors.items():
        launch.check_tensor(op, name, vector, (hidden,))
    if words > position.shape[0]:
        raise ValueError(f"{op}: position: got {position.shape[0]} entries for {words} columns of words")
    if launch.is_direct(tokens, text_row, input_ids, token_type_ids, inputs_embeds, *parameters):
        _launch(tokens, text_row, input_ids, token_type_ids, inputs_embeds, *parameters, eps)
        return launch.written(tokens)
    _text_embed(tokens, text_row, input_ids, token_type_ids, inputs_embeds, *parameters, eps)
    return refuse_backward(op, tokens, inputs_embeds, *parameters)
