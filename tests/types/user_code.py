"""Code as users write it; `make types` checks it, and it never runs."""

import torch
from typing_extensions import assert_type

from vilt_fast import ViltConfig, ViltForQuestionAnswering, ViltImageProcessor, ViltProcessor
from vilt_fast.models.outputs import SequenceClassifierOutput
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
