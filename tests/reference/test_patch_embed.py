"""reference.patch_embed on cases worked by hand, and its positions against F.interpolate."""

import pytest
import torch
import torch.nn.functional as F

from vilt_fast.reference.patch_embed import interpolate, patch_embed


def test_one_patch_worked_by_hand() -> None:
    # Two pictures of 2 x 4 pixels, one channel, patches of 2 x 2. Weight row 0 sums a patch, row 1 takes its corner.
    pixels = torch.arange(16, dtype=torch.float64).view(2, 1, 2, 4)
    weight = torch.tensor([[[[1.0, 1.0], [1.0, 1.0]]], [[[1.0, 0.0], [0.0, 0.0]]]], dtype=torch.float64)
    bias = torch.tensor([0.5, 0.0], dtype=torch.float64)
    position = torch.tensor([[1000.0, 0.0], [10.0, 0.0], [20.0, 0.0]], dtype=torch.float64)  # CLS, then a 1 x 2 table
    cls_token = torch.tensor([5.0, 6.0], dtype=torch.float64)
    modality = torch.tensor([[0.0, 0.0], [0.0, 100.0], [0.0, 200.0]], dtype=torch.float64)
    out = patch_embed(
        torch.full((6, 2), float("nan"), dtype=torch.float64),
        pixels,
        weight,
        bias,
        position,
        cls_token,
        modality,
        torch.tensor([1, 2]),
        torch.tensor([[1, 2], [1, 1]], dtype=torch.int32),
        torch.tensor([1, 2, -1], dtype=torch.int32),  # picture 0, right patch; picture 1, left patch
        torch.tensor([3, 0, -1], dtype=torch.int32),
        torch.tensor([2, 5], dtype=torch.int32),
        table_size=(1, 2),
    )
    # Right patch of picture 0: pixels 2 3 / 6 7, sum 18, corner 2, table's right end 20, modality 1.
    assert out[3].tolist() == [38.5, 102.0]
    # Left patch of picture 1: pixels 8 9 / 12 13, sum 42, corner 8; a grid of one column reads the table's left end.
    assert out[0].tolist() == [52.5, 208.0]
    assert out[2].tolist() == [1005.0, 106.0]
    assert out[5].tolist() == [1005.0, 206.0]
    assert out[[1, 4]].isnan().all()


def test_an_image_without_cls() -> None:
    """cls_row -1 writes nothing, and above all not the last row."""
    tables = torch.zeros(2, 1), torch.ones(1), torch.zeros(1, 1)  # position, cls_token, modality
    nothing = torch.full((1,), -1)
    places = (torch.tensor([0, 0]), torch.ones(2, 2), nothing, nothing, torch.tensor([1, -1]))
    tokens = torch.full((3, 1), -7.0)
    out = patch_embed(
        tokens, torch.zeros(2, 1, 2, 2), torch.zeros(1, 1, 2, 2), None, *tables, *places, table_size=(1, 1)
    )
    assert out.flatten().tolist() == [-7, 1, -7]


@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (3, 4), (12, 12), (12, 20), (31, 2)])
@pytest.mark.parametrize("table_size", [(1, 1), (3, 5), (12, 12)])
def test_positions_are_bilinear_with_aligned_corners(grid: tuple[int, int], table_size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    table = torch.randn(table_size[0] * table_size[1], 6, dtype=torch.float64)
    picture = table.T.reshape(1, 6, *table_size)
    expected = F.interpolate(picture, size=grid, mode="bilinear", align_corners=True)[0].flatten(1).T
    y, x = (axis.flatten() for axis in torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij"))
    got = interpolate(table, table_size, torch.tensor(grid).expand(len(y), 2), y, x)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-13)  # fp64, another order of the four terms
