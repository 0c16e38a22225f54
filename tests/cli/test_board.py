"""Which patches an answer was drawn from, and the picture that shows it."""

import numpy as np
import pytest
import torch
from PIL import Image

from vilt_fast.commands import attended, board


def test_rollout_worked_by_hand():
    """Two layers, one head, one word, the CLS and two patches."""
    first = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.25] * 4, [0, 0, 1, 0], [0, 1, 0, 0]])
    last = torch.tensor([[0.0, 0.0, 0.5, 0.5], [1.0, 0, 0, 0], [0, 1, 0, 0], [0.5, 0.5, 0, 0]])
    product = (last + torch.eye(4)) / 2 @ ((first + torch.eye(4)) / 2)
    got = attended.attended_patches([first[None, None], last[None, None]], 1, (1, 2))
    np.testing.assert_allclose(got, product[0, 2:][None].numpy(), rtol=1e-6)


def test_rollout_is_row_0_of_the_product():
    """Against the product of whole matrices, whose rows are distributions over the words, the CLS and the patches."""
    torch.manual_seed(0)
    layers = [torch.randn(1, 3, 15, 15, dtype=torch.float64).softmax(-1) for _ in range(4)]
    product = torch.eye(15, dtype=torch.float64)
    for layer in layers:
        product = (layer[0].mean(0) + torch.eye(15, dtype=torch.float64)) / 2 @ product
    torch.testing.assert_close(product.sum(-1), torch.ones(15, dtype=torch.float64))
    share = attended.attended_patches(layers, 2, (3, 4))
    np.testing.assert_allclose(share.ravel(), product[0, 3:].numpy(), rtol=1e-12)


def test_rollout_refuses_another_layout():
    with pytest.raises(ValueError, match="14 tokens"):
        attended.attended_patches([torch.ones(1, 1, 14, 14) / 14], 2, (3, 4))


def test_overlay_is_brightest_where_the_attention_is():
    picture = Image.new("RGB", (80, 60), (120, 120, 120))
    attention = np.zeros((3, 4))
    attention[1, 2] = 1.0
    shown = np.asarray(board.overlay(picture, attention), np.int64).sum(-1)
    y, x = np.unravel_index(shown.argmax(), shown.shape)
    assert shown.shape == (60, 80) and 20 <= y < 40 and 40 <= x < 60


@pytest.mark.parametrize("attention", [np.zeros((2, 2)), np.full((1, 1), 0.25)])
def test_overlay_of_even_attention(attention):
    shown = np.asarray(board.overlay(Image.new("RGB", (30, 20), (90, 90, 90)), attention))
    assert (shown == shown[0, 0]).all()


def test_board_holds_long_words():
    """Neither a question nor an answer runs out of its place, and an empty one does no harm."""
    long = board.Answered(Image.new("RGB", (40, 40)), "w" * 300, [("answer " * 40, 1.0)], np.ones((2, 2)))
    short = board.Answered(Image.new("RGB", (400, 20)), "", [("", 0.0)], np.ones((1, 9)))
    assert board.draw_board([long, short], "t" * 500, "m" * 500).startswith(b"\x89PNG")
    for text in ("w" * 300, "many words " * 30, ""):
        lines = board._wrap(text, 22, 200, most=2)
        assert len(lines) <= 2 and all(board._font(22).getlength(line) <= 200 for line in lines)


def test_board_shows_names_beneath_images():
    """As many as fit; long names stay in their place, and the card is as tall as what is in it."""
    from io import BytesIO

    answered = [board.Answered(Image.new("RGB", (40, 40)), "what?", [("this", 1.0)], np.ones((2, 2)))]
    red = Image.new("RGB", (60, 90), (200, 0, 0))
    named = [board.Named(red, "name " * 30, 0.5, np.eye(3)) for _ in range(9)]
    without = Image.open(BytesIO(board.draw_board(answered, "title", "model")))
    shown = Image.open(BytesIO(board.draw_board(answered, "title", "model", named=named))).convert("RGB")
    assert shown.width == without.width and shown.height > without.height + 2 * board.SMALL_BOX
    row = np.asarray(shown)[without.height - 62 + 40 + board.SMALL_BOX // 2]
    is_red = (row == (200, 0, 0)).all(-1)
    assert (np.diff(is_red.astype(int)) == 1).sum() == 6
