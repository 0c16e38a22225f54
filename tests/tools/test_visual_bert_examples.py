"""The examples of VisualBERT's documentation, 5.17's and 4.37's, with the import changed: they give the same.

Ids of the hub become directories with small random weights; the detector's features, which the examples leave open,
are random too.
"""

import inspect
import re
from types import ModuleType, SimpleNamespace

import pytest
import torch

import vilt_fast

transformers = pytest.importorskip("transformers", minversion="5.0", reason="transformers is the oracle of these tests")

HEADS = ("PreTraining", "MultipleChoice", "QuestionAnswering", "VisualReasoning", "RegionToPhraseAlignment")
SIZES = dict(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, visual_embedding_dim=20)
# What 4.37's page documents beside the docstrings; as short as it can be.
MODEL_437 = """
import torch
from transformers import AutoTokenizer, VisualBertModel
model = VisualBertModel.from_pretrained("uclanlp/visualbert-vqa-coco-pre")
tokenizer = AutoTokenizer.from_pretrained("google-bert/bert-base-uncased")
inputs = tokenizer("What is the man eating?", return_tensors="pt")
visual_embeds = get_visual_embeddings(image).unsqueeze(0)
inputs.update({
    "visual_embeds": visual_embeds,
    "visual_token_type_ids": torch.ones(visual_embeds.shape[:-1], dtype=torch.long),
    "visual_attention_mask": torch.ones(visual_embeds.shape[:-1], dtype=torch.float),
})
outputs = model(**inputs)
last_hidden_states = outputs.last_hidden_state
"""


def documented(owner) -> str:
    """The example of a docstring, without prompts."""
    return re.sub(r"^>>> ", "", inspect.getdoc(owner).split("```python")[1].split("```")[0], flags=re.MULTILINE)


EXAMPLES = {
    "VisualBertConfig": documented(transformers.VisualBertConfig),
    "VisualBertModel of 4.37": MODEL_437,
    "VisualBertModel": documented(transformers.VisualBertModel.forward),
    **{f"VisualBertFor{head}": documented(getattr(transformers, f"VisualBertFor{head}").forward) for head in HEADS},
}


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """A directory with every word of the examples."""
    words = sorted(set(re.findall(r"[a-z]+|[^\w\s]", " ".join(EXAMPLES.values()).lower())))
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    return path.parent, 5 + len(words)


def run(example: str, vocabulary, home: ModuleType, folder) -> dict:
    """The names that an example leaves behind, whose classes are those of `home`."""
    directory, count = vocabulary
    kind = re.findall(r"(VisualBert\w+)\.from_pretrained", example)[0]
    kind = "VisualBertModel" if kind == "VisualBertConfig" else kind
    path = folder / "weights"
    if not path.exists():
        torch.manual_seed(1)
        config = transformers.VisualBertConfig(vocab_size=count, num_labels=2, **SIZES)
        getattr(transformers, kind)(config).save_pretrained(path)
    example = re.sub(r'"uclanlp/[\w-]+"', repr(str(path)), example)
    example = example.replace('"google-bert/bert-base-uncased"', repr(str(directory)))
    example = example.replace("import AutoTokenizer, ", "import BertTokenizer as AutoTokenizer, ")
    example = example.replace("from transformers import", f"from {home.__name__} import")
    features = torch.randn(6, SIZES["visual_embedding_dim"], generator=torch.Generator().manual_seed(3))
    names = {"torch": torch, "image": None, "get_visual_embeddings": lambda image: features}
    torch.manual_seed(0)
    exec(compile(example, "example", "exec"), names)
    return names


def whole_places(example: str) -> str:
    """5.17 does not run its own example of phrases: it gathers by floats."""
    return example.replace(
        "visual_embeds.shape[-2]))\n\ninputs", "visual_embeds.shape[-2]), dtype=torch.long)\n\ninputs"
    )


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_gives_what_it_gives_there(oracle, vocabulary, tmp_path, name):
    there = SimpleNamespace(**run(whole_places(EXAMPLES[name]), vocabulary, transformers, tmp_path))
    here = SimpleNamespace(**run(EXAMPLES[name], vocabulary, vilt_fast, tmp_path))
    assert type(here.model).__module__.startswith("vilt_fast")
    if name == "VisualBertConfig":
        assert here.configuration.visual_embedding_dim == there.configuration.visual_embedding_dim
        return
    for field, wanted in there.outputs.items():
        got = here.outputs[field]
        if (name, field) == ("VisualBertForQuestionAnswering", "logits"):  # there they change where labels are given
            got = got.log_softmax(-1)
        oracle.check_close(field, got, wanted, 1e-5)
    assert list(here.outputs) == list(there.outputs)


def test_transformers_does_not_run_its_example_of_phrases(vocabulary, tmp_path):
    """Should this fail, `whole_places` has no use any more."""
    with pytest.raises(RuntimeError, match="int64"):
        run(EXAMPLES["VisualBertForRegionToPhraseAlignment"], vocabulary, transformers, tmp_path)
