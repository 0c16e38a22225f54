"""The whole tiny VisualBERT through the Triton kernels, against the reference; interpreted on a CPU, or on a GPU."""

import pytest
import torch

import vilt_fast
from vilt_fast import ops
from vilt_fast.frozen.visual_bert import plan_regions

pytest.importorskip("triton", reason="the kernels need Triton")

CLASSES = (
    *("VisualBertModel", "VisualBertForPreTraining", "VisualBertForQuestionAnswering"),
    *("VisualBertForMultipleChoice", "VisualBertForVisualReasoning", "VisualBertForRegionToPhraseAlignment"),
)
# Head size 12, features of 21 columns, an activation that is fused.
CONFIG = dict(
    vocab_size=37,
    hidden_size=48,
    visual_embedding_dim=21,
    num_hidden_layers=1,
    num_attention_heads=4,
    intermediate_size=80,
    max_position_embeddings=12,
    num_labels=5,
)
QA = "VisualBertForQuestionAnswering"


@pytest.fixture
def make(oracle, visual_bert_oracle, device):
    """(model, inputs) of a class, on the device; the batch is ragged, with an alignment where it is asked for."""

    def build(name=QA, aligned=True, **fields):
        config = vilt_fast.VisualBertConfig(**{**CONFIG, **fields})
        model = oracle.randomise(getattr(vilt_fast, name)(config), seed=3).eval().to(device)
        inputs = visual_bert_oracle.inputs_for(name, config, 1 if aligned else 0)
        assert ("image_text_alignment" in inputs) == aligned
        return model, {key: value.to(device) for key, value in inputs.items()}

    return build


def called(model, inputs, backend, **options):
    with torch.no_grad(), vilt_fast.backend(backend):
        return model(**inputs, **options)


def leaves(output):
    return torch.utils._pytree.tree_leaves(dict(output))


# fp32 through a block: sums in another order than BLAS, a few 1e-7 each, as in the reference's own 5e-6.
def check_same(oracle, got, wanted):
    assert list(got) == list(wanted)
    for index, (mine, judge) in enumerate(zip(leaves(got), leaves(wanted), strict=True)):
        oracle.check_close(f"tensor {index}", mine, judge, 1e-5)


@pytest.mark.parametrize("aligned", [False, True], ids=["regions", "aligned"])
@pytest.mark.parametrize("name", CLASSES)
def test_live_and_frozen_on_the_kernels(oracle, make, name, aligned):
    model, inputs = make(name, aligned)
    wanted = called(model, inputs, "reference")
    check_same(oracle, called(model, inputs, "kernels"), wanted)
    check_same(oracle, called(vilt_fast.freeze(model), inputs, "kernels"), wanted)


def test_states_maps_head_masks_and_bypass(oracle, make):
    """What no head shows above."""
    model, inputs = make("VisualBertModel", num_hidden_layers=2, bypass_transformer=True)
    heads = torch.tensor([[1.0, 0.0, 0.5, 1.0], [1.0, 1.0, 2.0, 0.0]], device=model.device)
    options = dict(output_hidden_states=True, output_attentions=True, head_mask=heads)
    wanted, got = (called(model, inputs, backend, **options) for backend in ("reference", "kernels"))
    check_same(oracle, got, wanted)
    for mine, judge in zip(leaves(got), leaves(wanted), strict=True):
        oracle.check_equal("zeros", mine == 0, judge == 0)


@pytest.mark.parametrize("aligned", [False, True], ids=["regions", "aligned"])
@pytest.mark.parametrize("operation", [name for name, known in ops.OPERATIONS.items() if known.ablation])
def test_each_kernel_can_stand_in_for_its_reference(oracle, make, operation, aligned):
    model, inputs = make(aligned=aligned)
    wanted = called(model, inputs, "reference").logits
    with torch.no_grad(), vilt_fast.backend("reference"), vilt_fast.backend(**{operation: "kernels"}):
        got = model(**inputs).logits
    oracle.check_close(f"logits with the kernel of {operation}", got, wanted, 1e-5)


def test_regions_that_are_planned_run_on_the_kernels(oracle, make):
    """`plan_regions`: the pairs of a forward call, without their padding."""
    model, inputs = make(aligned=False)
    words, kept = inputs["attention_mask"].bool(), inputs["visual_attention_mask"].bool()
    inputs |= {"token_type_ids": None, "visual_token_type_ids": None}
    rows = [ids[mask].tolist() for ids, mask in zip(inputs["input_ids"], words, strict=True)]
    batch = plan_regions(rows, inputs["visual_embeds"][kept], kept.sum(1).tolist())
    with torch.no_grad(), vilt_fast.backend("kernels"):
        got = vilt_fast.freeze(model).run(batch).logits
    oracle.check_close("logits", got, called(model, inputs, "reference").logits, 1e-5)


@pytest.mark.parametrize("asked", ["word_embeddings", "visual_projection", "visual_token_type_embeddings"])
def test_a_backward_pass_through_the_kernels_says_that_there_is_none(make, asked):
    """Whatever wants a gradient: words, the projection of regions, or a table of theirs."""
    model, inputs = make()
    model.requires_grad_(False).visual_bert.embeddings.get_submodule(asked).requires_grad_(True)
    with vilt_fast.backend("kernels"):
        logits = model(**inputs).logits
    assert logits.requires_grad
    with pytest.raises((RuntimeError, NotImplementedError), match="autograd|backward"):
        logits.sum().backward()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_pair_is_bit_for_bit_the_same_in_any_batch(dtype, device):
    if device.type != "cuda":
        pytest.skip("needs a CUDA GPU")
    torch.manual_seed(0)
    config = vilt_fast.VisualBertConfig(visual_embedding_dim=2048, num_labels=3129)
    model = vilt_fast.VisualBertForQuestionAnswering(config).to(device, dtype).eval()
    count, length, regions = 256, 60, 36
    inputs = {
        "input_ids": torch.randint(2, config.vocab_size, (count, length), device=device),
        "attention_mask": torch.arange(length, device=device) < torch.randint(2, length + 1, (count, 1), device=device),
        "visual_embeds": torch.randn(count, regions, 2048, device=device, dtype=dtype),
        "visual_attention_mask": torch.arange(regions, device=device)
        < torch.randint(1, regions + 1, (count, 1), device=device),
        "image_text_alignment": torch.randint(-1, length, (count, regions, 3), device=device),
    }

    def logits(rows):
        with torch.no_grad():
            return model(**{name: value[rows] for name, value in inputs.items()}).logits

    everything = torch.arange(count, device=device)
    together = logits(everything)
    assert torch.equal(together, logits(everything.flip(0)).flip(0)), "logits depend on the order of the batch"
    for pair in (0, 1, 100, 255):
        assert torch.equal(logits(everything[pair : pair + 1])[0], together[pair]), f"pair {pair} differs alone"
