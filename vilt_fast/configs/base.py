"""What the configurations of all families share: config.json in and out, labels, equality."""

from __future__ import annotations

import copy
import inspect
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

import vilt_fast
from vilt_fast.checkpoints.files import directory_path, make_directory, naming, read_json, write_atomically
from vilt_fast.checkpoints.hub import HubOptions, find_file, is_file, local_path
from vilt_fast.checkpoints.json_files import to_json
from vilt_fast.configs.checks import check_flag, check_integer, check_labels, check_pruned_heads, shown
from vilt_fast.configs.spelling import nearest

if TYPE_CHECKING:
    import torch

# Keys that transformers and this package write about themselves, not about the model.
_BOOKKEEPING = "transformers_version _name_or_path torch_dtype architectures model_type".split()
# Keys of files that are of another process, or follow from others.
_NO_FIELDS = (
    "model_type use_return_dict vilt_fast_version _commit_hash "
    "_attn_implementation _attn_implementation_internal _attn_implementation_autoset"
).split()
# Arguments of transformers' from_pretrained that change nothing about a configuration.
_NO_OVERRIDES = (
    "_from_auto _from_pipeline _commit_hash code_revision force_download proxies resume_download trust_remote_code "
    "user_agent"
).split()
# What every configuration of transformers has beside the arguments, and where it says nothing.
_COMMON: dict[str, Any] = {
    "architectures": None,
    "torch_dtype": None,
    "problem_type": None,
    "is_encoder_decoder": False,
    "pruned_heads": {},
}
_FLAGS = ("output_attentions", "output_hidden_states", "return_dict")
_DTYPES = ("dtype", "torch_dtype")  # 5.x's name and 4.37's
_PROBLEMS = (None, "regression", "single_label_classification", "multi_label_classification")
_ATTENTIONS = (None, "eager", "sdpa")
_WORDS = {"true": True, "1": True, "yes": True, "y": True, "false": False, "0": False, "no": False, "n": False}
Config = TypeVar("Config", bound="PreTrainedConfig")


class PreTrainedConfig:
    """The fields of every family's config.json; a family's class adds its own.

    Args:
        pad_token_id: id of the padding token.
        id2label, label2id, num_labels: names of the labels; num_labels alone gives LABEL_0, LABEL_1, ...
        output_attentions, output_hidden_states, return_dict: defaults of the forward arguments.
        **kwargs: become attributes, and are written back by `save_pretrained`. Among them what transformers' every
            configuration has: `architectures`, `torch_dtype` (or `dtype`), `problem_type`, `is_encoder_decoder`,
            `pruned_heads` (layer -> heads), `name_or_path`. One that is spelled almost as a field is warned of.

    Raises:
        ValueError: num_labels is not a natural number, or not the number of labels; id2label does not name 0, 1, ...;
            a keyword is the name of a method or of what is computed.
    """

    model_type: ClassVar[str]
    attribute_map: ClassVar[dict[str, str]] = {}  # no field has another name
    keys_to_ignore_at_inference: ClassVar[list[str]] = []
    sub_configs: ClassVar[dict[str, Any]] = {}
    base_config_key: ClassVar[str] = ""
    is_composition: ClassVar[bool] = False
    _commit_hash: ClassVar[str | None] = None  # transformers' pipelines ask for it

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
        self.id2label, self.label2id = check_labels(id2label, label2id, num_labels)
        self.output_attentions = output_attentions
        self.output_hidden_states = output_hidden_states
        self.return_dict = return_dict
        dtypes = [kwargs.pop(name, None) for name in _DTYPES]
        self.torch_dtype = dtypes[1] if dtypes[0] is None else dtypes[0]
        self.architectures = kwargs.pop("architectures", None)
        self.problem_type = kwargs.pop("problem_type", None)
        self.is_encoder_decoder = kwargs.pop("is_encoder_decoder", False)
        self.pruned_heads = check_pruned_heads(kwargs.pop("pruned_heads", None))
        self.name_or_path = kwargs.pop("name_or_path", kwargs.pop("_name_or_path", ""))
        self._attn_implementation = kwargs.pop("attn_implementation", None)
        for name, value in kwargs.items():
            if name not in _NO_FIELDS:
                self._check_name(name)
                setattr(self, name, value)

    def count_weights(self) -> int:
        """About how many weights a model of these sizes has, and no more, for a look at the memory; 0: not known."""
        return 0

    def validate(self) -> None:
        """Check the values again, after some were assigned.

        Raises:
            ValueError: one is out of range; the message names it.
        """
        for name, known in (("problem_type", _PROBLEMS), ("_attn_implementation", _ATTENTIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name.removeprefix('_')} must be one of {known}, got {shown(getattr(self, name))}")
        for name in _FLAGS:
            check_flag(name, getattr(self, name))
        if self.pad_token_id is not None:
            check_integer("pad_token_id", self.pad_token_id, 0)

    @classmethod
    def _names(cls) -> set[str]:
        """Every keyword that means something here."""
        named = {*inspect.signature(cls).parameters, *_COMMON, *_DTYPES}
        return {*named, "name_or_path", "attn_implementation"} - {"kwargs"}

    def _check_name(self, name: str) -> None:
        """Refuse a keyword that cannot be an attribute, and warn of one that looks like a slip of the pen."""
        held = getattr(type(self), name, None)
        if callable(held) or (isinstance(held, property) and held.fset is None) or name.startswith("__"):
            raise ValueError(f"{name} is a method or computed in {type(self).__name__}, no field")
        known = self._names()
        meant = None if name in known else nearest(name, known)
        if meant is not None:
            message = f"{name} is no field of {type(self).__name__}, kept without effect; did you mean {meant}?"
            warnings.warn(message, stacklevel=4)

    def __iter__(self) -> Iterator[str]:
        """The names of the fields."""
        return iter(self.__dict__)

    @property
    def num_labels(self) -> int:
        """Number of labels of a classification head."""
        return len(self.id2label)

    @num_labels.setter
    def num_labels(self, value: int) -> None:
        self.id2label, self.label2id = check_labels(None, None, value)

    @property
    def use_return_dict(self) -> bool:
        """Hugging Face's name for `return_dict`."""
        return self.return_dict

    @property
    def name_or_path(self) -> str:
        """Where the configuration came from."""
        return self._name_or_path

    @name_or_path.setter
    def name_or_path(self, value: str | os.PathLike[str] | None) -> None:
        self._name_or_path = str(value or "")

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """What the weights were saved in; written as "float16" and so on."""
        import torch  # here, because a configuration is read without it

        name = self.__dict__["torch_dtype"]
        return None if name is None else getattr(torch, name, name)

    @torch_dtype.setter
    def torch_dtype(self, value: torch.dtype | str | None) -> None:
        self.__dict__["torch_dtype"] = None if value is None else str(value).removeprefix("torch.")

    dtype = torch_dtype

    def get_text_config(self, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        """The configuration itself, which has no parts."""
        return self

    @classmethod
    def get_config_dict(
        cls, name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """(content of the config.json, the keywords that are not the hub's); errors as from `from_pretrained`."""
        if "use_auth_token" in kwargs:
            kwargs.setdefault("token", kwargs.pop("use_auth_token"))
        hub, rest = HubOptions.split(kwargs)
        path = local_path(name_or_path)
        is_json = path.suffix == ".json" and is_file(path)
        return read_json(path if is_json else find_file(name_or_path, "config.json", **hub)), rest

    @classmethod
    def from_dict(cls: type[Config], config: dict[str, Any], **overrides: Any) -> Config:
        """A configuration from the content of a config.json; `overrides` win.

        With return_unused_kwargs=True, as transformers' AutoConfig asks: the configuration, and a dictionary of the
        overrides that are no fields of it or (`dtype`) mean the model rather.

        Raises:
            ValueError: `config` is of another architecture.
        """
        if "self" in config:
            raise ValueError("self is no field of a configuration")
        config = dict(config)
        wants_unused = overrides.pop("return_unused_kwargs", False)
        overrides = {name: value for name, value in overrides.items() if name not in _NO_OVERRIDES}
        known = {*config, *cls._names()} - {*_DTYPES}
        unused = {name: overrides.pop(name) for name in overrides.keys() - known} if wants_unused else {}
        found = config.pop("model_type", cls.model_type)
        if found != cls.model_type:
            raise ValueError(f"config.json must have model_type {cls.model_type!r}, got {found!r}")
        # What replaces a field under one name replaces it under the others.
        if overrides.keys() & {"num_labels", "id2label"}:
            superseded: tuple[str, ...] = ("num_labels", "id2label", "label2id")
        else:
            superseded = ("num_labels",) if "id2label" in config else ()
        superseded += _DTYPES if overrides.keys() & {*_DTYPES} else ()
        kept = {name: value for name, value in config.items() if name not in superseded}
        made = cls(**{**kept, **overrides})
        return cast(Config, (made, unused)) if wants_unused else made

    @classmethod
    def from_json_file(cls: type[Config], json_file: str | os.PathLike[str]) -> Config:
        """A configuration from a JSON file of any name; errors as from `from_pretrained`."""
        with naming(json_file):
            return cls.from_dict(read_json(json_file))

    @classmethod
    def from_pretrained(cls: type[Config], name_or_path: str | os.PathLike[str], **kwargs: Any) -> Config:
        """Read config.json of a directory or a hub id.

        Args:
            name_or_path: directory, hub id, or the JSON file itself.
            **kwargs: those of `HubOptions`; anything else overrides a field, or becomes one as in the constructor.
                return_unused_kwargs: see `from_dict`.

        Raises:
            FileNotFoundError: there is no config.json. ValueError: it is not JSON, not of this architecture, or
                a field is out of range; the message names the file.
        """
        content, overrides = cls.get_config_dict(name_or_path, **kwargs)
        with naming(name_or_path):
            return cls.from_dict(content, **overrides)

    def update(self, config_dict: dict[str, Any]) -> None:
        """Assign fields, and check them all."""
        for name, value in config_dict.items():
            setattr(self, name, value)
        self.validate()

    def update_from_string(self, update_str: str) -> None:
        """Assign fields from a text such as "hidden_dropout_prob=0.1,qkv_bias=false".

        Raises:
            ValueError: no such field, or not a number, a truth value or a text as the one it replaces.
        """
        changes = {}
        for part in update_str.split(","):
            name, _, text = part.partition("=")
            if name not in self.__dict__:
                raise ValueError(f"update_str: {name!r} is no field of {type(self).__name__}, in {update_str!r}")
            changes[name] = _parse_like(self.__dict__[name], text, name)
        self.update(changes)

    def to_dict(self) -> dict[str, Any]:
        """All fields, as copies; what a config.json that transformers 4.37 and 5.x read can hold."""
        fields = {name: value for name, value in self.__dict__.items() if name != "_attn_implementation"}
        if not isinstance(fields.get("hidden_act", ""), str):
            fields["hidden_act"] = getattr(fields["hidden_act"], "__name__", str(fields["hidden_act"]))
        content = {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
        return {**_copies(content), "model_type": self.model_type}

    def to_diff_dict(self) -> dict[str, Any]:
        """As `to_dict`, without what says nothing: the content of the file."""
        content = self.to_dict()
        silent = {name for name, nothing in _COMMON.items() if content[name] == nothing}
        return {name: value for name, value in content.items() if name not in {*silent, "_name_or_path"}}

    def to_json_string(self, use_diff: bool = True, **written: Any) -> str:
        """The text of config.json.

        Args:
            use_diff: False: with what says nothing (`"problem_type": null`).
            **written: further keys.

        Raises:
            ValueError: a field was given a value that no config.json can hold, or that could not be read again.
        """
        self.validate()
        check_labels(self.id2label, self.label2id, None)
        check_pruned_heads(self.pruned_heads)
        content = self.to_diff_dict() if use_diff else self.to_dict()
        return to_json({**content, **written, "vilt_fast_version": vilt_fast.__version__})

    def to_json_file(self, json_file_path: str | os.PathLike[str], use_diff: bool = True) -> None:
        """Write `to_json_string` into a file, whole or not at all."""
        write_atomically(Path(json_file_path), self.to_json_string(use_diff))

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Write config.json into `directory`, whole or not at all.

        Raises:
            ValueError: `directory` is a file, or a field could not be read again; see `to_json_string`.
        """
        path = directory_path(directory) / "config.json"
        text = self.to_json_string()
        make_directory(path.parent)
        write_atomically(path, text)

    def differing_fields(self, other: PreTrainedConfig) -> list[str]:
        """The names of the fields that differ from another configuration's, but for those that are about the file."""
        mine, its = self.to_dict(), other.to_dict()
        names = sorted({*mine, *its} - {*_BOOKKEEPING})
        return [name for name in names if name not in mine or name not in its or mine[name] != its[name]]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, type(self)) or (isinstance(other, PreTrainedConfig) and isinstance(self, type(other))):
            return not self.differing_fields(other)
        return False

    def __deepcopy__(self: Config, memo: dict[int, Any]) -> Config:
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        made.__dict__.update(_copies(self.__dict__, memo))
        return made

    def __repr__(self) -> str:
        return f"{type(self).__name__} {json.dumps(self.to_dict(), indent=2, sort_keys=True, default=str)}"


def _copies(fields: dict[str, Any], memo: dict[int, Any] | None = None) -> dict[str, Any]:
    """Copies of fields. Raises ValueError for one that cannot be copied."""
    made = {}
    for name, value in fields.items():
        try:
            # Labels are many, and texts and numbers alone.
            made[name] = dict(value) if name in ("id2label", "label2id") else copy.deepcopy(value, memo)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{name}: got a {type(value).__name__} that cannot be copied ({error})") from error
    return made


def _parse_like(old: Any, text: str, name: str) -> Any:
    """The text as a value of the kind that stands there."""
    try:
        if isinstance(old, bool):
            return _WORDS[text.lower()]
        if isinstance(old, (int, float, str)):
            return type(old)(text)
    except (KeyError, ValueError):
        pass
    raise ValueError(
        f"{name}: got {text!r}, wanted a value like {old!r}; only numbers, truth values and texts are read"
    )
