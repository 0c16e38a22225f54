"""Code as users write it; `make types` checks it, and it never runs."""

import torch
from typing_extensions import assert_type

from vilt_fast import (
    ViltConfig,
    ViltForQuestionAnswering,
    ViltImageProcessor,
    ViltModel,
    ViltPreTrainedModel,
    ViltProcessor,
    VisualBertConfig,
    VisualBertForQuestionAnswering,
    VisualBertModel,
    VisualBertPreTrainedModel,
    VisualBertProcessor,
    freeze,
    read_regions,
)
from vilt_fast.models.outputs import SequenceClassifierOutput, VisualBertForPreTrainingOutput
from vilt_fast.processing.batch import BatchEncoding, BatchFeature


class MyConfig(ViltConfig):
    model_type = "my_vilt"


config = ViltConfig(
    30522, hidden_size=48, num_labels=3, architectures=["ViltModel"], problem_type="regression", my_note="kept"
)
assert_type(config.num_labels, int)
assert_type(config.hidden_size, int)
assert_type(config.id2label, dict[int, str])
assert_type(ViltConfig.from_pretrained("somewhere", revision="main", num_labels=3), ViltConfig)
assert_type(ViltConfig.from_dict({}), ViltConfig)
assert_type(MyConfig.from_pretrained("somewhere"), MyConfig)
assert_type(MyConfig.from_dict({}), MyConfig)
ViltConfig(hidden_size="48")  # type: ignore[arg-type]

model = ViltForQuestionAnswering.from_pretrained("somewhere", token="secret", subfolder="inner", num_labels=3)
assert_type(model, ViltForQuestionAnswering)
ViltForQuestionAnswering.from_pretrained("somewhere", cache_dir=3)  # type: ignore[arg-type]
assert_type(
    ViltForQuestionAnswering.from_pretrained(None, config={}, state_dict={}, device_map="auto", load_in_8bit=False),
    ViltForQuestionAnswering,
)
model.gradient_checkpointing_enable({"use_reentrant": False})
model.save_pretrained("somewhere", state_dict=model.state_dict(), variant="fp16", push_to_hub=True, repo_id="me/it")
model.save_pretrained("somewhere", variant=16)  # type: ignore[arg-type]
model.resize_token_embeddings("30522")  # type: ignore[arg-type]


class MyModel(ViltPreTrainedModel):
    def __init__(self, config: ViltConfig) -> None:
        super().__init__(config)
        self.vilt = ViltModel(config)
        self.post_init()


assert_type(MyModel.from_pretrained("somewhere", strict=False), MyModel)

images = ViltImageProcessor(True, {"shortest_edge": 384}, size_divisor=32, my_note="kept")
assert_type(images.preprocess("photo.png", False, 384, return_tensors="pt"), BatchFeature)
ViltImageProcessor(size_divisor="32")  # type: ignore[arg-type]
images.preprocess("photo.png", do_resize="no")  # type: ignore[arg-type]

processor = ViltProcessor.from_pretrained("somewhere")
assert_type(processor("photo.png", "what is it?", True, "max_length", device=torch.device("cpu")), BatchEncoding)
processor("photo.png", "what is it?", max_length="40")  # type: ignore[arg-type]

output = SequenceClassifierOutput(logits=torch.ones(2, 3))
assert_type(output.logits, torch.Tensor | None)
SequenceClassifierOutput(logit=torch.ones(2, 3))  # type: ignore[call-arg]

regions_config = VisualBertConfig(visual_embedding_dim=2048, bypass_transformer=True, num_labels=3129)
assert_type(regions_config.visual_embedding_dim, int)
VisualBertConfig(visual_embedding_dim="2048")  # type: ignore[arg-type]
answering = VisualBertForQuestionAnswering.from_pretrained("somewhere", num_labels=3129)
assert_type(answering, VisualBertForQuestionAnswering)
VisualBertForQuestionAnswering(ViltConfig())  # type: ignore[arg-type]
freeze(answering)


class MyRegions(VisualBertPreTrainedModel):
    def __init__(self, config: VisualBertConfig) -> None:
        super().__init__(config)
        self.visual_bert = VisualBertModel(config, add_pooling_layer=False)
        self.post_init()


assert_type(MyRegions.from_pretrained("somewhere", strict=False), MyRegions)
asked = VisualBertProcessor.from_pretrained("bert")("what is it?", read_regions("photo.npz"), return_tensors="pt")
assert_type(asked, BatchEncoding)
answering.forward(**asked)
pretrained = VisualBertForPreTrainingOutput(prediction_logits=torch.ones(1, 2, 3))
assert_type(pretrained.seq_relationship_logits, torch.Tensor | None)
VisualBertForPreTrainingOutput(logits=torch.ones(2, 3))  # type: ignore[call-arg]
