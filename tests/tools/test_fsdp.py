"""FSDP2 and DDP: two processes with batches of different sizes take the steps that one process takes."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", minversion="5.0", reason="transformers is the oracle of these tests")
if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
    pytest.skip("this PyTorch has no torch.distributed with gloo", allow_module_level=True)

RANKS = 2
WAYS = ("whole_trunk", "every_layer", "every_part", "recomputed_layers", "replicated")


@pytest.fixture(scope="module")
def model_and_batches(both, built):
    """transformers' model, and one batch per process: three ragged pairs, and one."""
    _, theirs, inputs = built()
    single = both.make_inputs("ViltForQuestionAnswering", theirs.config, seed=6, size=1)
    return theirs, [inputs, single]


@pytest.fixture(scope="module")
def results(tmp_path_factory, model_and_batches):
    """What each process wrote, by the way of sharding: one start of the processes for all tests."""
    theirs, batches = model_and_batches
    directory = tmp_path_factory.mktemp("sharded")
    theirs.config.save_pretrained(directory)
    torch.save(theirs.state_dict(), directory / "weights.pt")
    for rank, batch in enumerate(batches):
        torch.save(dict(batch), directory / f"batch{rank}.pt")
    script, environment = Path(__file__).parent / "sharded.py", {**os.environ, "OMP_NUM_THREADS": "1"}
    commands = [[sys.executable, str(script), str(directory), str(rank), str(RANKS)] for rank in range(RANKS)]
    logs = [directory / f"log{rank}.txt" for rank in range(RANKS)]
    running = [
        subprocess.Popen(command, env=environment, stdout=log.open("w"), stderr=subprocess.STDOUT)
        for command, log in zip(commands, logs, strict=True)
    ]
    try:
        codes = [process.wait(timeout=120) for process in running]
    except subprocess.TimeoutExpired:  # one failed where the other waits for it
        codes = None
    finally:
        for process in running:
            process.kill()
    told = "\n".join(log.read_text()[-2000:] for log in logs)
    found = {way: [load(directory / f"{way}{rank}.pt") for rank in range(RANKS)] for way in WAYS}
    return codes, told, found


def load(path):
    return torch.load(path) if path.exists() else {"error": "nothing was written"}


@pytest.fixture(scope="module")
def expected(both, model_and_batches):
    """One process: the mean of both batches' losses, two steps of SGD."""
    theirs, batches = model_and_batches
    model = copy.deepcopy(theirs).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        both_losses = [both.call(model, batch).loss for batch in batches]
        (sum(both_losses) / RANKS).backward()
        optimizer.step()
        losses.append([loss.item() for loss in both_losses])
    return losses, both.gradients(model), {name: p.detach() for name, p in model.named_parameters()}


def differences(both, results, expected):
    """What is wrong with the results of one way of sharding, if anything."""
    errors = [result["error"] for result in results if "error" in result]
    if errors:
        return errors
    losses, gradients, weights = expected
    try:
        for rank, result in enumerate(results):
            assert result["losses"] == pytest.approx([step[rank] for step in losses], rel=1e-4), f"rank {rank}"
            both.check_tensors(f"rank {rank}: gradients", result["gradients"], gradients, 2e-4)
            both.check_tensors(f"rank {rank}: weights", result["weights"], weights, 1e-4)
    except AssertionError as error:
        return str(error)
    return None


def test_two_processes_take_the_steps_of_one(both, results, expected):
    """In every way of sharding; one test, since starting the processes is what takes time."""
    codes, told, found = results
    wrong = {way: differences(both, found[way], expected) for way in WAYS}
    wrong = {way: what for way, what in wrong.items() if what}
    assert not wrong, f"{wrong}\n{told}"
    assert codes == [0] * RANKS, told
