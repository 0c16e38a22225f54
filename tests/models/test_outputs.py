"""Model outputs read as attributes, dicts and tuples; fields that are None do not count."""

import pytest
import torch
from torch.utils import _pytree

from vilt_fast.models.outputs import BaseModelOutputWithPooling, SequenceClassifierOutput


def test_reads_as_attribute_dict_and_tuple() -> None:
    logits = torch.randn(2, 3)
    out = SequenceClassifierOutput(logits=logits, attentions=(logits,))
    assert out.logits is logits and out["logits"] is logits and out[0] is logits
    assert out.loss is None and "loss" not in out and out.get("loss") is None
    assert list(out) == ["logits", "attentions"] == list(out.keys()) and len(out) == 2
    assert out[:2] == (logits, (logits,)) == out.to_tuple()
    first, second = out.to_tuple()
    assert first is logits and dict(**out)["attentions"] is second
    with pytest.raises(KeyError):
        out["loss"]
    with pytest.raises(KeyError):
        out["no such field"]
    with pytest.raises(IndexError):
        out[2]


def test_is_a_pytree() -> None:
    out = BaseModelOutputWithPooling(last_hidden_state=torch.ones(1), hidden_states=(torch.ones(2), torch.ones(3)))
    doubled = _pytree.tree_map(lambda t: t * 2, out)
    assert isinstance(doubled, BaseModelOutputWithPooling)
    assert doubled.hidden_states[1].tolist() == [2.0, 2.0, 2.0] and doubled.pooler_output is None
