"""For `transformers.Trainer`, which knows how to save its own models and PEFT's alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vilt_fast.checkpoints.files import write_atomically
from vilt_fast.models.base import PreTrainedModel


class TrainerMixin:
    """Makes a Trainer save our models as `save_pretrained` does, so that each of its folders loads by itself.

    >>> class Trainer(vilt_fast.TrainerMixin, transformers.Trainer): ...

    Without it a folder lacks config.json (then `from_pretrained` wants `config=`), and tied weights cannot be saved.
    transformers itself is not imported here.
    """

    def _save(self: Any, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Every way to save goes through here: checkpoints, `save_model`, `push_to_hub`."""
        model = self.accelerator.unwrap_model(self.model)
        if not isinstance(model, PreTrainedModel):  # PEFT's wrapper knows how
            return super()._save(output_dir, state_dict)  # type: ignore[misc]
        state_dict = model.state_dict() if state_dict is None else state_dict
        saved = {name: tensor for name, tensor in state_dict.items() if name not in model.all_tied_weights_keys}
        super()._save(output_dir, saved)  # type: ignore[misc]
        folder = Path(self.args.output_dir if output_dir is None else output_dir)
        write_atomically(folder / "config.json", model.config_file())
