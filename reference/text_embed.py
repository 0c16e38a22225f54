"""LayerNorm(word + position + type) + modality, one row per word (Kim et al. 2021, 3.1; Li et al. 2019, 3.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .placing import which_count, write_rows


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
    """Embed the words of a padded batch and put each at its row of the packed tensor.

    A region of VisualBERT (Li et al. 2019, section 3.2) is a word too, alone in its text: its projected features are
    `inputs_embeds` (regions, 1, d), so that all have position 0.

    Args:
        tokens: (rows, d); every row that no word goes to is passed on as it is.
        text_row: (B, L) int32, the row of each word, -1 for a word that is masked.
        input_ids: (B, L) int64, or None with `inputs_embeds`.
        token_type_ids: (B, L) int64.
        inputs_embeds: (B, L, d) in place of the word table's rows, or None. Converted to the dtype of `word`, or of
            `position` where there is no `word`.
        word: (vocabulary, d), or None with `inputs_embeds`; position: (positions, d); token_type: (types, d).
        ln_weight, ln_bias: (d,).
        modality: (d,), added after the normalisation, or None.
        eps: of the normalisation.
        position_ids: (B, L) int64, the row of `position` for each word; None: its column.

    Returns:
        (rows, d): `tokens` with the words written. The kernel writes in place, this function does not.

    Raises:
        ValueError: from the kernel, where an argument has another shape, dtype or device than that.

    Example:
        >>> tokens, word = torch.zeros(3, 2), torch.tensor([[1.0, 3.0], [5.0, 2.0]])
        >>> text_row, ids = torch.tensor([[2, -1]]), torch.tensor([[1, 0]])  # the second word is masked
        >>> zeros, ones = torch.zeros(2, 2), torch.ones(2)
        >>> text_embed(tokens, text_row, ids, 0 * ids, None, word, zeros, zeros, ones, zeros[0], 10 * ones, eps=0.0)
        tensor([[ 0.,  0.],
                [ 0.,  0.],
                [11.,  9.]])
    """
    row = text_row.flatten()
    kept = which_count(row)
    if position_ids is None:
        position_ids = torch.arange(text_row.shape[1], device=row.device).expand(text_row.shape)
    if inputs_embeds is None:
        assert input_ids is not None and word is not None
        words = word[input_ids.flatten()[kept]]
    else:
        # What is masked may be anything, NaN too, of which no gradient may be made.
        masked = (text_row < 0)[:, :, None]
        inputs_embeds = inputs_embeds.masked_fill(masked, 0) if torch.compiler.is_compiling() else inputs_embeds
        words = inputs_embeds.flatten(0, 1)[kept].to(position.dtype if word is None else word.dtype)
    rows = words + position[position_ids.flatten()[kept]] + token_type[token_type_ids.flatten()[kept]]
    rows = F.layer_norm(rows, (rows.shape[-1],), ln_weight, ln_bias, eps)
    if modality is not None:
        rows = rows + modality
    return write_rows(tokens, row[kept], rows)
