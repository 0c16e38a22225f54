"""What the configurations of all families share: config.json in and out, labels, equality."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

import vilt_fast
from vilt_fast.checkpoints.files import read_json, write_atomically
from vilt_fast.checkpoints.hub import HubOptions, find_file

# Keys that transformers and this package write about themselves, not about the model.
_BOOKKEEPING = (
    "transformers_version _name_or_path torch_dtype dtype architectures model_type vilt_fast_version"
).split()
Config = TypeVar("Config", bound="PreTrainedConfig")


class PreTrainedConfig:
    """The fields of every family's config.json; a family's class adds its own.

    Args:
        pad_token_id: id of the padding token.
        id2label, label2id, num_labels: names of the labels; num_labels alone gives LABEL_0, LABEL_1, ...
        output_attentions, output_hidden_states, return_dict: defaults of the forward arguments.
        **kwargs: kept in `extra`, and written back by `save_pretrained`.

    Raises:
        ValueError: num_labels is not a natural number, or not the number of labels.
    """

    model_type: ClassVar[str]
    sub_configs: ClassVar[dict[str, Any]] = {}  # transformers' AutoModel asks for it

    def __init__(
        self,
        *,
        pad_token_id: int | None = None,
        id2label: dict[int, str] | None = None,
        label2id: dict[str, int] | None = None,
        num_labels: int | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> None:
        self.pad_token_id = pad_token_id
        self.id2label, self.label2id = _labels(id2label, label2id, num_labels)
        self.output_attentions = output_attentions
        self.output_hidden_states = output_hidden_states
        self.return_dict = return_dict
        self.extra = {name: value for name, value in kwargs.items() if name not in ("model_type", "use_return_dict")}

    @property
    def num_labels(self) -> int:
        """Number of labels of a classification head."""
        return len(self.id2label)

    @num_labels.setter
    def num_labels(self, value: int) -> None:
        self.id2label, self.label2id = _labels(None, None, value)

    @property
    def use_return_dict(self) -> bool:
        """Hugging Face's name for `return_dict`."""
        return self.return_dict

    @classmethod
    def from_dict(cls: type[Config], config: dict[str, Any], **overrides: Any) -> Config:
        """A configuration from the content of a config.json; `overrides` win.

        With `return_unused_kwargs=True`, as transformers' AutoConfig asks: the configuration and a dictionary of the
        overrides that are no fields of it.

        Raises:
            ValueError: `config` is of another architecture.
        """
        config = {name: value for name, value in config.items() if name != "_commit_hash"}
        overrides.pop("name_or_path", None)  # like _commit_hash, AutoConfig's note of where it read
        if overrides.pop("return_unused_kwargs", False):
            known = (overrides.keys() & {*config, *vars(cls()), "num_labels"}) - {"dtype", "torch_dtype"}
            unused = {name: overrides.pop(name) for name in overrides.keys() - known}
            return cast(Config, (cls.from_dict(config, **overrides), unused))
        found = config.pop("model_type", cls.model_type)
        if found != cls.model_type:
            raise ValueError(f"config.json must have model_type {cls.model_type!r}, got {found!r}")
        if overrides.keys() & {"num_labels", "id2label"}:  # either replaces all that is saved
            for name in ("num_labels", "id2label", "label2id"):
                config.pop(name, None)
        elif "id2label" in config:
            config.pop("num_labels", None)
        return cls(**{**config, **overrides})

    @classmethod
    def from_pretrained(cls: type[Config], name_or_path: str | Path, **kwargs: Any) -> Config:
        """Read config.json of a directory or a hub id.

        Args:
            name_or_path: directory or hub id.
            **kwargs: those of `HubOptions`; anything else overrides a field.

        Raises:
            FileNotFoundError: there is no config.json. ValueError: it is not JSON, or not of this architecture.
        """
        hub, overrides = HubOptions.split(kwargs)
        return cls.from_dict(read_json(find_file(name_or_path, "config.json", **hub)), **overrides)

    def to_dict(self) -> dict[str, Any]:
        """The content of a config.json that transformers 4.37 and 5.x read."""
        fields = {name: value for name, value in self.__dict__.items() if name != "extra"}
        content: dict[str, Any] = {**self.extra, **fields, "model_type": self.model_type}
        if not isinstance(content.get("hidden_act", ""), str):
            content["hidden_act"] = getattr(content["hidden_act"], "__name__", str(content["hidden_act"]))
        content["id2label"] = {str(i): label for i, label in self.id2label.items()}
        return content

    def to_json_string(self, **written: Any) -> str:
        """The text of config.json; `written` are further keys."""
        content = {**self.to_dict(), **written, "vilt_fast_version": vilt_fast.__version__}
        if "torch_dtype" in written:
            content.pop("dtype", None)  # 5.x's name for it, of the file that was read: it may be another by now
        return json.dumps(content, indent=2, sort_keys=True) + "\n"

    def save_pretrained(self, directory: str | Path) -> None:
        """Write config.json into `directory`, whole or not at all."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        write_atomically(Path(directory) / "config.json", self.to_json_string())

    def __eq__(self, other: object) -> bool:
        def essence(config: PreTrainedConfig) -> dict[str, Any]:
            return {name: value for name, value in config.to_dict().items() if name not in _BOOKKEEPING}

        if isinstance(other, type(self)) or (isinstance(other, PreTrainedConfig) and isinstance(self, type(other))):
            return essence(self) == essence(other)
        return False

    def __repr__(self) -> str:
        return f"{type(self).__name__} {json.dumps(self.to_dict(), indent=2, sort_keys=True, default=str)}"


def _labels(
    id2label: dict | None, label2id: dict | None, num_labels: int | None
) -> tuple[dict[int, str], dict[str, int]]:
    if id2label is None:
        count = 2 if num_labels is None else num_labels
        if not isinstance(count, int) or count < 0:
            raise ValueError(f"num_labels must be an integer >= 0, got {num_labels!r}")
        id2label = {i: f"LABEL_{i}" for i in range(count)}
    id2label = dict(sorted((int(i), label) for i, label in id2label.items()))
    if num_labels is not None and len(id2label) != num_labels:
        raise ValueError(f"num_labels is {num_labels}, but id2label names {len(id2label)} labels")
    if label2id is None or len(label2id) == 0:
        label2id = {label: i for i, label in id2label.items()}
    return id2label, {label: int(i) for label, i in label2id.items()}
