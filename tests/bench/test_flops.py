"""The formulas beside torch's own counter."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import vilt_fast
from vilt_fast import ops
from vilt_fast.bench import flops, peers, visual_bert, vit, workloads
from vilt_fast.bench.case import Case, tiny_config


def counted(call) -> int:
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        call()
    return counter.get_total_flops()


def spelled_out(query, key, value):
    """Attention of one span as two products, which the counter knows on every device."""
    query, key, value = (t.transpose(0, 1) for t in (query, key, value))
    return (torch.bmm(query, key.transpose(1, 2)).softmax(-1) @ value).transpose(0, 1)


@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 16, 48), (65, 48, 96), (197, 96, 7)])
def test_linear(rows, inputs, outputs):
    x, weight, bias = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
    cost = flops.linear(rows, inputs, outputs, 4)
    assert cost.flops == counted(lambda: ops.linear(x, weight, bias, activation="gelu"))
    tensors = (x, weight, bias, ops.linear(x, weight, bias))
    assert cost.bytes == sum(t.nbytes for t in tensors)
    with_residual = flops.linear(rows, inputs, outputs, 4, residual=True)
    assert with_residual == (cost.flops, cost.bytes + tensors[-1].nbytes)


@pytest.mark.parametrize("lengths", [(1,), (64, 65), (5, 197, 63)])
def test_attention(lengths):
    d, heads = 48, 3
    total = 0
    for n in lengths:
        query, key, value = torch.randn(3, n, heads, d // heads)
        total += counted(lambda q=query, k=key, v=value: spelled_out(q, k, v))
    cost = flops.attention(lengths, d, 2)
    assert cost.flops == total
    assert cost.bytes == sum(lengths) * (3 * d + d) * 2


def test_layer_norm_and_embeddings_move_bytes_alone():
    x = torch.randn(65, 48)
    assert counted(lambda: F.layer_norm(x, (48,))) == 0
    assert flops.layer_norm(65, 48, 4) == (0, 2 * x.nbytes + 2 * 48 * 4)
    assert flops.text_embed(9, 48, 2) == (0, 2 * 9 * 48 * 2)


def test_patch_embed():
    patches, images, channels, patch, d = 30, 2, 3, 8, 48
    pixels, weight = torch.randn(patches, channels, patch, patch), torch.randn(d, channels, patch, patch)
    cost = flops.patch_embed(patches, images, channels * patch**2, d, 4)
    # One image of one patch each: the convolution that the projection is.
    assert cost.flops == counted(lambda: F.conv2d(pixels, weight, stride=patch))
    assert cost.bytes == pixels.nbytes + weight.nbytes + (patches + images) * d * 4


@pytest.mark.parametrize("batch", [1, 3])
def test_encoder_and_head(batch):
    """The hand-written module, one sequence at a time so that nothing is padded."""
    total = 0
    for index in range(batch):
        work = workloads.shrunk(workloads.vqa_mix(batch, seed=5), 8, side=192)
        one = workloads.Workload("one", (work.sizes[index],), (work.lengths[index],))
        case = Case(one, tiny_config(one), torch.device("cpu"))
        tokens, layout = case.packed
        module = peers.hand_written(case, torch.float32)
        first = layout.first.long()
        got = counted(lambda m=module, t=tokens, f=first: m(t, f, spelled_out))
        assert got == case.cost("encoder", torch.float32).flops
        every_row = counted(lambda m=module, t=tokens, f=first: m(t, f, spelled_out, every_row=True))
        assert every_row == case.cost("encoder, every row", torch.float32).flops > got
        total += got
    whole = Case(work, tiny_config(work), torch.device("cpu"))
    assert whole.cost("encoder", torch.float32).flops == total


@pytest.mark.parametrize("name", vit.WORKLOADS)
def test_whole_vit(name):
    """Our frozen model but for the last block, where it skips what nobody reads."""
    case = vit.ViTCase.of(vit.WORKLOADS[name](2, seed=1), torch.device("cpu"), 1, False, quick=True)
    model, config = vilt_fast.freeze(case.model(torch.float32)), case.config
    got = counted(lambda: model(**case.inputs[0]))
    skipped = 2 * (sum(case.lengths) - 2) * config.hidden_size * (config.hidden_size + 2 * config.intermediate_size)
    attention = flops.attention(case.lengths, config.hidden_size, 4).flops * config.num_hidden_layers
    encoder, whole = (case.cost(scope, torch.float32).flops for scope in ("encoder", "model"))
    # torch's counter may or may not know the CPU's fused attention; everything else is exact.
    assert got in (whole - skipped, whole - skipped - attention)
    assert encoder == whole - skipped - 2 * (sum(case.lengths) - 2) * 3 * 64 * config.hidden_size


@pytest.mark.parametrize("name", visual_bert.WORKLOADS)
def test_whole_visual_bert(name):
    """Our frozen model but for the last block, where it skips what nobody reads."""
    make, cpu = visual_bert.VisualBertCase.of, torch.device("cpu")
    case = make(visual_bert.WORKLOADS[name](3, seed=1), cpu, 1, False, quick=True)
    model, config = vilt_fast.freeze(case.model(torch.float32)), case.config
    got = counted(lambda: model(**case.inputs[0]))
    skipped = 2 * (sum(case.lengths) - 3) * config.hidden_size * (config.hidden_size + 2 * config.intermediate_size)
    attention = flops.attention(case.lengths, config.hidden_size, 4).flops * config.num_hidden_layers
    encoder, whole = (case.cost(scope, torch.float32) for scope in ("encoder", "model"))
    # torch's counter may or may not know the CPU's fused attention; everything else is exact.
    assert got in (whole.flops - skipped, whole.flops - skipped - attention)
    projected = 2 * sum(case.workload.regions) * config.visual_embedding_dim * config.hidden_size
    assert encoder.flops == whole.flops - skipped - projected
    # A norm reads and writes a row, and post-norm has both behind the attention, where few rows go on.
    every_row = case.cost("encoder, every row", torch.float32)
    norms = 2 * 2 * (sum(case.lengths) - 3) * config.hidden_size * 4
    assert every_row.bytes - encoder.bytes > norms


@pytest.mark.parametrize("pictures", [1, 2])
def test_whole_model(pictures):
    """Our packed model but for the last block, where it skips what nobody reads."""
    make = workloads.vqa_mix if pictures == 1 else workloads.nlvr2
    work = workloads.shrunk(make(2, seed=1), 8, side=192)
    case = Case(work, tiny_config(work), torch.device("cpu"))
    # The frozen form: the counter hangs global hooks on modules, and the live form lets those see every row.
    model, config = vilt_fast.freeze(case.model(torch.float32)), case.config
    d, hidden = config.hidden_size, config.intermediate_size
    got = counted(lambda: model(**case.inputs[0]))
    sequences = len(work.sizes)
    skipped = sum(case.lengths) - sequences
    skipped_flops = 2 * skipped * d * (d + 2 * hidden)
    missing = flops.attention(case.lengths, d, 4).flops * config.num_hidden_layers
    wanted = case.cost("model", torch.float32).flops - skipped_flops
    # torch's counter may or may not know the CPU's fused attention; everything else is exact.
    assert got in (wanted, wanted - missing)
