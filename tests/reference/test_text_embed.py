"""reference.text_embed on a case worked by hand."""

import torch
import torch.nn.functional as F

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


def test_regions_have_position_0_and_nothing_after_the_normalisation() -> None:
    """Two regions at rows 1 and 0, as texts of one word each."""
    tokens, text_row = torch.zeros(2, 2, dtype=torch.float64), torch.tensor([[1], [0]], dtype=torch.int32)
    features = torch.tensor([[[1.0, 3.0]], [[10.0, 2.0]]])
    _, position, token_type = _tables().values()
    weight, bias = torch.tensor([1.0, 2.0]).double(), torch.tensor([0.0, 1.0]).double()
    types = torch.tensor([[0], [1]])
    out = text_embed(tokens, text_row, None, types, features, None, position, token_type, weight, bias, None, 0.0)
    # (1, 3) as above; (10, 2) + type (0, 2) = (10, 4): mean 7, deviation 3: (1, -1) * (1, 2) + (0, 1) = (1, -1).
    assert out.tolist() == [[1.0, -1.0], [-1.0, 3.0]]


def test_position_ids_choose_rows() -> None:
    """More words than the table has rows, no two at their column."""
    text_row, ids = torch.arange(3).view(1, 3).int(), torch.tensor([[1, 2, 1]])
    word, position, token_type = _tables().values()
    ones, zeros, tokens = torch.ones(2).double(), torch.zeros(2).double(), torch.zeros(3, 2).double()
    order = torch.tensor([[1, 0, 1]])
    rest = (word, position, token_type, ones, zeros, None, 0.0)
    out = text_embed(tokens, text_row, ids, 0 * ids, None, *rest, position_ids=order)
    # (1, 3) + (0, 4) = (1, 7); (10, 0); (1, 7) again.
    assert out.tolist() == [[-1.0, 1.0], [1.0, -1.0], [-1.0, 1.0]]


def test_gradients_reach_embeddings_and_every_table() -> None:
    """Beside the same sum by autograd alone."""
    g = torch.Generator().manual_seed(0)
    features, position, token_type = (torch.randn(n, 6, generator=g, dtype=torch.float64) for n in (4, 3, 2))
    weight, bias, upstream = (torch.randn(*n, 6, generator=g, dtype=torch.float64) for n in ((), (), (4,)))
    leaves = [leaf.requires_grad_() for leaf in (features, position, token_type, weight, bias)]
    types, order = torch.tensor([[0], [1], [1], [0]]), torch.tensor([[2], [0], [0], [1]])
    text_row, tokens = torch.tensor([[3], [1], [0], [2]]).int(), torch.zeros(4, 6, dtype=torch.float64)
    rest = (None, position, token_type, weight, bias, None, 1e-12)
    out = text_embed(tokens, text_row, None, types, features[:, None], *rest, position_ids=order)
    rows = F.layer_norm(features + position[order[:, 0]] + token_type[types[:, 0]], (6,), weight, bias, 1e-12)
    wanted = torch.autograd.grad((rows * upstream[text_row[:, 0].long()]).sum(), leaves)
    for got, want in zip(torch.autograd.grad((out * upstream).sum(), leaves), wanted, strict=True):
        torch.testing.assert_close(got, want)
