"""One of several processes that train a sharded or replicated model; test_fsdp.py starts them and checks the results.

Usage: python sharded.py DIRECTORY RANK RANKS. DIRECTORY holds config.json, weights.pt and a batch for each rank. For
each way of sharding, the losses of this rank, the gradients and the weights are written there.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from vilt_fast import ViltConfig, ViltForQuestionAnswering


def whole_trunk(model, mesh):
    """The model under the head, and what is left."""
    fully_shard(model.vilt, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def every_layer(model, mesh):
    for layer in model.vilt.encoder.layer:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def every_part(model, mesh):
    """Each module with weights that transformers' forward calls; nothing else may read them."""
    for module in [*model.modules()][:0:-1]:
        if any(True for _ in module.parameters(recurse=False)):
            fully_shard(module, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def recomputed_layers(model, mesh):
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return every_layer(model, mesh)


def replicated(model, mesh):
    return nn.parallel.DistributedDataParallel(model)


WAYS = (whole_trunk, every_layer, every_part, recomputed_layers, replicated)


def full(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()


def train(model, batch):
    """Two steps of SGD: the losses, the gradients of the second step, and the weights after it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    named = {name.removeprefix("module."): p for name, p in model.named_parameters()}
    gradients = {name: full(p.grad) for name, p in named.items()}
    return {"losses": losses, "gradients": gradients, "weights": {name: full(p.detach()) for name, p in named.items()}}


def main(directory, rank, ranks):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=ranks)
    mesh = init_device_mesh("cpu", (ranks,))
    batch = torch.load(directory / f"batch{rank}.pt")
    for way in WAYS:
        model = ViltForQuestionAnswering(ViltConfig.from_pretrained(directory)).train()
        model.load_state_dict(torch.load(directory / "weights.pt"))
        try:
            result = train(way(model, mesh), batch)
        except Exception as error:  # the test shows it; the next way may work
            result = {"error": f"{type(error).__name__}: {error}"}
        torch.save(result, directory / f"{way.__name__}{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
