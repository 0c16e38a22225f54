"""Trains the small ViLT that ships with the package: `vilt-fast train-demo`.

Every round makes fresh images and asks several questions about each. The loss is the cross entropy of the answer
plus the model's own binary cross entropy (so that sigmoid and softmax both give probabilities). Two auxiliary
linear maps on the patches' rows, discarded afterwards, learn from what the generator knows: which thing has its middle
in a patch, and whether the question means it. They teach the blocks to see and to read before the answers can.
"""

from __future__ import annotations

import dataclasses
import math
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from vilt_fast.checkpoints.files import write_atomically
from vilt_fast.configs.vilt import ViltConfig
from vilt_fast.models.vilt import ViltForQuestionAnswering
from vilt_fast.processing.processor import ViltProcessor
from vilt_fast.processing.text import BertTokenizer
from vilt_fast.processing.vilt import ViltImageProcessor

from . import loop
from .batches import MENTION_CLASSES, THING_CLASSES, Batch, Group, make_round
from .dense import dense_forward
from .questions import ANSWERS
from .vocabulary import vocabulary


@dataclasses.dataclass(frozen=True)
class Recipe(loop.BaseRecipe):
    """Everything but the seed that the trained weights depend on.

    things_block, mentions_block: the block after which each auxiliary map reads the patches; never the last one.
    help_weight: of the auxiliary losses. They are means over some 75 patches, most of them empty; 4 was too little.
    """

    questions_per_picture: int = 10
    things_block: int = 2
    mentions_block: int = 3
    help_weight: float = 40.0


def make_processor(recipe: Recipe = Recipe(), *, vocab_file: Path) -> ViltProcessor:
    """The processor of the demo model; writes its vocabulary to `vocab_file`."""
    write_atomically(vocab_file, "\n".join(vocabulary()) + "\n")
    tokenizer = BertTokenizer(vocab_file, do_lower_case=True, model_max_length=40)
    image_processor = ViltImageProcessor(size={"shortest_edge": recipe.image_size}, size_divisor=recipe.patch_size)
    return ViltProcessor(image_processor, tokenizer)


def make_model(recipe: Recipe = Recipe()) -> ViltForQuestionAnswering:
    """The demo model with fresh weights from PyTorch's generator."""
    config = ViltConfig(
        vocab_size=len(vocabulary()), **recipe.sizes(), id2label=dict(enumerate(ANSWERS)), pad_token_id=0
    )
    model = ViltForQuestionAnswering(config)
    loop.prepare_patches(model.vilt.embeddings, config)
    *_, answer_bias = model.classifier.parameters()
    nn.init.constant_(answer_bias, -math.log(len(ANSWERS) - 1))  # one answer is right: the others are not
    return model


class _QuestionAnswering(loop.Task):
    """Answering questions, with two auxiliary maps."""

    recipe: Recipe

    def make_model(self) -> ViltForQuestionAnswering:
        return make_model(self.recipe)

    def make_helpers(self) -> nn.ModuleDict:
        classes = {"things": THING_CLASSES, "mentions": MENTION_CLASSES}
        return nn.ModuleDict({name: nn.Linear(self.recipe.hidden_size, n) for name, n in classes.items()})

    def make_round(self, seed: int, start: int, stop: int, executor: Executor | None) -> list[Group]:
        return make_round(self.processor, seed, start, stop, self.recipe.questions_per_picture, executor)

    def learn(self, model: ViltForQuestionAnswering, helpers: nn.ModuleDict, batch: Batch) -> loop.Outcome:
        output = dense_forward(model, batch.input_ids, batch.pixel_values)
        things = helpers["things"](output.patches[self.recipe.things_block - 1])
        mentions = helpers["mentions"](output.patches[self.recipe.mentions_block - 1])
        parts = {
            "answer": answer_loss(output.logits, batch.answer),
            "things": F.cross_entropy(things.float().flatten(0, 1), batch.things.flatten()),
            "mentions": F.cross_entropy(mentions.float().flatten(0, 1), batch.mentions.flatten()),
        }
        loss = parts["answer"] + self.recipe.help_weight * (parts["things"] + parts["mentions"])
        return loop.Outcome(loss, output.logits, parts)


def answer_loss(logits: Tensor, answer: Tensor) -> Tensor:
    """Cross entropy over the answers plus the sum of their binary cross entropies. logits (B, labels), answer (B,)."""
    target = F.one_hot(answer, logits.shape[1]).to(logits.dtype)
    binary = F.binary_cross_entropy_with_logits(logits, target) * logits.shape[1]
    return F.cross_entropy(logits, answer) + binary


def train(
    output_dir: str | Path, *, recipe: Recipe | None = None, **options: Any
) -> tuple[ViltForQuestionAnswering, ViltProcessor]:
    """Train the demo's ViLT and save it in Hugging Face's format; options and errors are those of `loop.train`."""

    def make_task(recipe: Recipe, directory: Path) -> loop.Task:
        return _QuestionAnswering(recipe, make_processor(recipe, vocab_file=directory / "vocab.txt"))

    return loop.train(make_task, recipe or Recipe(), output_dir, **options)
