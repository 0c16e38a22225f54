"""Hooks and patched forwards: what they do to transformers' model they do to ours."""

import copy
from collections import Counter

import pytest
import torch
from torch import nn

pytest.importorskip("transformers", minversion="5.0", reason="transformers is the oracle of these tests")

CLASSES = (
    "ViltModel",
    "ViltModel without pooler",
    "ViltForMaskedLM",
    "ViltForQuestionAnswering",
    "ViltForImagesAndTextClassification",
    "ViltForImageAndTextRetrieval",
    "ViltForTokenClassification",
)
KINDS = (
    "register_forward_pre_hook",
    "register_forward_hook",
    "register_full_backward_pre_hook",
    "register_full_backward_hook",
)
TYPES = (nn.Linear, nn.LayerNorm, nn.Embedding, nn.Conv2d, nn.Dropout, nn.Sequential, nn.ModuleList)


@pytest.fixture(params=CLASSES)
def name(request):
    return request.param


def test_module_tree(built, name):
    """The names of transformers' modules, in its order, and the types that tools look for."""
    ours, theirs, _ = built(name)
    got, wanted = dict(ours.named_modules()), dict(theirs.named_modules())
    missing, unexpected = sorted(wanted.keys() - got.keys()), sorted(got.keys() - wanted.keys())
    assert not missing and not unexpected, f"missing: {missing}; not in transformers: {unexpected}"
    assert list(got) == list(wanted), "the order differs"
    for path, module in wanted.items():
        for kind in TYPES:
            assert isinstance(got[path], kind) == isinstance(module, kind), f"{path} is a {type(got[path]).__name__}"


def test_parameters_come_in_the_same_order(built, name):
    """An optimizer's state knows its parameters by their place alone."""
    ours, theirs, _ = built(name)
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]


def calls(both, model, inputs, kind):
    """How often each module's hook is called."""
    count, handles = Counter(), []
    for path, module in model.named_modules():
        handles.append(getattr(module, kind)(lambda *_, path=path: count.update([path])))
    both.backward(model, inputs)
    model.zero_grad()
    for handle in handles:
        handle.remove()
    return count


@pytest.mark.parametrize("kind", KINDS)
def test_what_fires_there_fires_here(both, built, name, kind):
    ours, theirs, inputs = built(name)
    got, wanted = (calls(both, model, inputs, kind) for model in (ours, theirs))
    assert not wanted.keys() - got.keys(), f"silent: {sorted(wanted.keys() - got.keys())}"
    if "backward" not in kind:  # transformers' outputs hide their tensors from the backward hooks of whole models
        assert not got.keys() - wanted.keys(), f"silent in transformers: {sorted(got.keys() - wanted.keys())}"
    if name != "ViltForImagesAndTextClassification":  # all images run in one batch here
        differ = {path: (got[path], wanted[path]) for path in wanted if got[path] != wanted[path]}
        assert not differ, f"(calls here, calls there): {differ}"


@pytest.mark.parametrize("kind", KINDS)
def test_global_hooks(both, pair, kind):
    """`register_module_forward_hook` and its kin see every Linear, LayerNorm, Embedding, Conv2d and Dropout."""
    ours, theirs, inputs = pair()
    register = getattr(nn.modules.module, kind.replace("register_", "register_module_"))
    counts = []
    for model in (ours, theirs):
        count = Counter()
        handle = register(
            lambda module, *_, count=count: count.update(k.__name__ for k in TYPES if isinstance(module, k))
        )
        both.backward(model, inputs)
        model.zero_grad()
        handle.remove()
        counts.append(count)
    assert counts[0] == counts[1]
    assert counts[1]["Linear"] == 15


def test_a_global_hook_changes_the_output(both, pair):
    ours, theirs, inputs = pair()

    def double(module, _, output):
        return output * 2 if isinstance(module, nn.Linear) else None

    handle = nn.modules.module.register_module_forward_hook(double)
    try:
        both.check_same_scores("logits", (ours, theirs, inputs))
    finally:
        handle.remove()


@pytest.fixture(scope="module")
def shifted_there(both, built):
    """Of transformers' model: the scores when one module's output, or its input, is changed."""
    known = {}

    def wanted(name, path, change):
        if (name, path, change) not in known:
            _, theirs, inputs = built(name)
            with change(both, theirs, path):
                known[name, path, change] = both.scores(theirs, inputs)
        return known[name, path, change]

    return wanted


class hooked:
    """A forward hook that changes what a module gives."""

    def __init__(self, both, model, path):
        self.change, self.module = both.change_for(path), model.get_submodule(path)

    def __enter__(self):
        self.handle = self.module.register_forward_hook(lambda module, args, output: self.change(output))

    def __exit__(self, *_):
        self.handle.remove()


class patched(hooked):
    """A forward of the module's own."""

    def __enter__(self):
        inner = self.module.forward
        self.module.forward = lambda *args, **kwargs: self.change(inner(*args, **kwargs))

    def __exit__(self, *_):
        del self.module.forward


class pre_hooked(hooked):
    """A forward pre-hook that changes the first argument; that of a table are ids."""

    def __enter__(self):
        def change(module, args):
            ids = isinstance(module, nn.Embedding)
            first = (args[0] * 3 + 1) % module.num_embeddings if ids else self.change(args[0])
            return (first, *args[1:])

        self.handle = self.module.register_forward_pre_hook(change)


def ignored(both, built, shifted_there, name, change, wanted_change, paths):
    """Which of `paths` change our scores in another way than transformers'."""
    ours, _, inputs = built(name)
    found = {}
    for path in paths:
        wanted = shifted_there(name, path, wanted_change)
        try:
            with change(both, ours, path):
                share = both.off(both.scores(ours, inputs), wanted)
            found[path] = f"off by {share:.2g}" if share > 2e-5 else None
        except Exception as error:
            found[path] = f"{type(error).__name__}: {error}"
    return {path: what for path, what in found.items() if what}


@pytest.mark.parametrize("change", [hooked, patched], ids=["forward hook", "own forward"])
def test_a_changed_output(both, built, shifted_there, name, change):
    """Of every module, leaf or container: transformers' scores follow, and so do ours."""
    _, theirs, inputs = built(name)
    paths = both.called_modules(theirs)
    wrong = ignored(both, built, shifted_there, name, change, hooked, paths)
    assert not wrong, f"{len(wrong)} of {len(paths)} modules: {wrong}"


@pytest.mark.parametrize("name", ["ViltForMaskedLM", "ViltForQuestionAnswering", "ViltForTokenClassification"])
def test_a_changed_input(both, built, shifted_there, name):
    """Of every module whose first argument holds values or ids: all but the models and the words' embeddings."""
    _, theirs, inputs = built(name)
    without = ("vilt", "vilt.embeddings", "vilt.embeddings.text_embeddings")
    paths = [path for path in both.called_modules(theirs) if path not in without]
    wrong = ignored(both, built, shifted_there, name, pre_hooked, pre_hooked, paths)
    assert not wrong, f"{len(wrong)} of {len(paths)} modules: {wrong}"


def test_every_change_matters(both, built, shifted_there, name):
    """The checks above compare something: each module's change moves transformers' scores."""
    _, theirs, inputs = built(name)
    plain = both.scores(theirs, inputs)
    unused = {"vilt.pooler", "vilt.pooler.dense", "vilt.pooler.activation"} if name == "ViltForMaskedLM" else set()
    for path in both.called_modules(theirs):
        moved = both.off(shifted_there(name, path, hooked), plain) > 1e-3
        assert moved or path in unused, path


FORMS = {
    "vilt.embeddings": tuple,
    "vilt.encoder.layer.0": tuple,
    "vilt.encoder.layer.0.attention": tuple,
    "vilt.encoder.layer.0.attention.attention": tuple,
    "vilt.encoder.layer.0.attention.output": torch.Tensor,
    "vilt.encoder.layer.0.intermediate": torch.Tensor,
    "vilt.encoder.layer.0.output": torch.Tensor,
    "vilt.pooler": torch.Tensor,
    "classifier": torch.Tensor,
}


@pytest.mark.parametrize("path", FORMS)
def test_form_of_what_a_container_gives(both, pair, path):
    """Hooks are written for transformers' forms: `output[0]` of a layer is its rows, not its first row."""
    *models, inputs = pair()
    for model in models:
        seen = []
        handle = model.get_submodule(path).register_forward_hook(lambda m, a, output, seen=seen: seen.append(output))
        both.scores(model, inputs)
        handle.remove()
        assert isinstance(seen[0], FORMS[path]), f"{type(model).__module__}: {type(seen[0])}"


@pytest.mark.parametrize("path", ["vilt", "vilt.encoder"])
def test_fields_of_what_a_model_gives(both, pair, path):
    """`output.last_hidden_state` and `output[0]` of the model under the head and of its encoder."""
    ours, _, inputs = pair()
    seen = []
    handle = ours.get_submodule(path).register_forward_hook(lambda m, a, output: seen.append(output))
    both.scores(ours, inputs)
    handle.remove()
    assert seen and seen[0].last_hidden_state is seen[0][0]
    assert seen[0].last_hidden_state.shape[-1] == 24
    assert path == "vilt.encoder" or seen[0].pooler_output.shape == (3, 24)


ROWS = (
    *("layernorm_before", "attention.attention.query", "attention.attention.key", "attention.attention.value"),
    *("attention.output.dense", "attention.output.dropout", "layernorm_after", "intermediate.dense"),
    *("intermediate.intermediate_act_fn", "output.dense", "output.dropout"),
)


@pytest.mark.parametrize("layer", [0, 1], ids=["first layer", "last layer"])
def test_a_hook_sees_the_packed_rows(both, pair, layer):
    """(total_tokens, d): transformers' real rows, pair after pair, in the last layer too, where a head reads few."""
    ours, theirs, inputs = pair()
    seen = []
    for model in (ours, theirs):
        outputs, handles = {}, []
        for path in ROWS:
            module = model.vilt.encoder.layer[layer].get_submodule(path)
            handles.append(module.register_forward_hook(lambda m, a, o, path=path, to=outputs: to.update({path: o})))
        both.scores(model, inputs)
        for handle in handles:
            handle.remove()
        seen.append(outputs)
    got, wanted = seen
    assert sorted(got) == sorted(wanted), f"not called: {sorted(wanted.keys() - got.keys())}"
    both.check_tensors("rows", got, {path: rows[inputs.real] for path, rows in wanted.items()})


def grad_sums(both, model, inputs, which):
    """Gradients that full backward hooks see, summed over rows: rows of padding have none."""
    sums, handles = {}, []

    def keep(path, grads):
        if grads and grads[0] is not None:
            rows = grads[0].transpose(1, -1).flatten(0, -2) if grads[0].dim() == 4 else grads[0].flatten(0, -2)
            sums[path] = sums.get(path, 0) + rows.sum(0)

    for path, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.LayerNorm | nn.Conv2d | nn.Embedding):

            def hook(module, grad_input, grad_output, path=path):
                keep(path, (grad_input, grad_output)[which])

            handles.append(module.register_full_backward_hook(hook))
    both.backward(model, inputs)
    model.zero_grad()
    for handle in handles:
        handle.remove()
    return sums


@pytest.mark.parametrize("which", [0, 1], ids=["grad_input", "grad_output"])
def test_what_backward_hooks_see(both, built, name, which):
    ours, theirs, inputs = built(name)
    # In double precision: some of these sums cancel.
    inputs = inputs.but(**{key: value.double() for key, value in inputs.items() if value.is_floating_point()})
    models = (copy.deepcopy(model).double() for model in (ours, theirs))
    got, wanted = (grad_sums(both, model, inputs, which) for model in models)
    pixels = "vilt.embeddings.patch_embeddings.projection"  # its input has no gradient
    wanted = {path.removeprefix("vilt."): total for path, total in wanted.items() if which or not path.endswith(pixels)}
    got = {path.removeprefix("vilt."): total for path, total in got.items()}
    assert not wanted.keys() - got.keys(), f"silent: {sorted(wanted.keys() - got.keys())}"
    both.check_tensors("sums of gradients", {path: got[path] for path in wanted}, wanted, 1e-9)


def test_a_backward_hook_changes_the_gradient(both, pair):
    ours, theirs, inputs = pair()
    found = []
    for model in (ours, theirs):
        module = model.get_submodule("vilt.encoder.layer.1.output.dense")
        handle = module.register_full_backward_hook(lambda m, grad_input, grad_output: (grad_input[0] * 2,))
        both.backward(model, inputs)
        handle.remove()
        found.append({name: grad.clone() for name, grad in both.gradients(model).items()})
        model.zero_grad()
    both.check_tensors("gradients", *found, 5e-5)


def test_hooks_of_the_inner_model_see_its_arguments(both, pair):
    """As in transformers, a head calls `model.vilt(input_ids, pixel_values=...)`."""
    ours, theirs, inputs = pair()

    def dim(module, args, kwargs):
        assert args[0] is inputs["input_ids"]
        return args, {**kwargs, "pixel_values": kwargs["pixel_values"] * 0.5}

    plain = both.scores(theirs, inputs)
    handles = [model.vilt.register_forward_pre_hook(dim, with_kwargs=True) for model in (ours, theirs)]
    wanted = both.check_same_scores("logits", (ours, theirs, inputs))
    for handle in handles:
        handle.remove()
    assert both.off(wanted, plain) > 1e-3


def test_a_replaced_pooled_row(both, pair):
    ours, theirs, inputs = pair()

    def replace(module, args, output):
        output.pooler_output = torch.linspace(-1, 1, 3 * 24).view(3, 24)
        return output

    handles = [model.vilt.register_forward_hook(replace) for model in (ours, theirs)]
    both.check_same_scores("logits", (ours, theirs, inputs))
    for handle in handles:
        handle.remove()


def test_a_removed_hook_leaves_nothing_behind(both, pair):
    ours, _, inputs = pair()
    before = both.scores(ours, inputs)
    for path in both.called_modules(ours):
        with hooked(both, ours, path):
            both.scores(ours, inputs)
    assert torch.equal(both.scores(ours, inputs), before)


@pytest.mark.parametrize("kind", [nn.Linear, nn.LayerNorm, nn.Embedding, nn.Conv2d], ids=lambda kind: kind.__name__)
def test_a_patched_class(both, built, monkeypatch, kind):
    """Some tools replace `nn.Linear.forward` itself."""
    inner = kind.forward
    monkeypatch.setattr(kind, "forward", lambda module, x: inner(module, x) * 1.25)
    both.check_same_scores("logits", built())
