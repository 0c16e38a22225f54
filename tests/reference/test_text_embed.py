"""reference.text_embed on a case worked by hand."""

import torch

from vilt_fast.reference.text_embed import text_embed


def _tables() -> dict[str, torch.Tensor]:
    word = torch.tensor([[0.0, 0.0], [1.0, 3.0], [10.0, 0.0]], dtype=torch.float64)
    position = torch.tensor([[0.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    token_type = torch.tensor([[0.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    return {"word": word, "position": position, "token_type": token_type}


def test_words_go_to_their_rows_and_nothing_else_changes() -> None:
    tokens = torch.full((4, 2), float("nan"), dtype=torch.float64)
    text_row = torch.tensor([[2, -1], [-1, 0]], dtype=torch.int32)
    ids, types = torch.tensor([[1, 99], [99, 2]]), torch.tensor([[0, 0], [0, 1]])
    weight, bias = torch.tensor([1.0, 2.0]).double(), torch.tensor([0.0, 1.0]).double()
    modality = torch.tensor([100.0, 200.0], dtype=torch.float64)
    for inputs_embeds in (None, _tables()["word"][ids.clamp(max=2)]):
        input_ids = ids if inputs_embeds is None else None
        out = text_embed(
            tokens, text_row, input_ids, types, inputs_embeds, *_tables().values(), weight, bias, modality, 0.0
        )
        # (1, 3): mean 2, deviation 1, so (-1, 1) * (1, 2) + (0, 1) = (-1, 3).
        # (10, 0) + position (0, 4) + type (0, 2) = (10, 6): mean 8, deviation 2: (1, -1) * (1, 2) + (0, 1) = (1, -1).
        assert out[2].tolist() == [99.0, 203.0]
        assert out[0].tolist() == [101.0, 199.0]
        assert out[[1, 3]].isnan().all()
    assert tokens.isnan().all()
