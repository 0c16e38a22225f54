"""tune on a machine where kernels break and time runs out."""

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need Triton")
from vilt_fast.bench import check, tune  # noqa: E402
from vilt_fast.bench.operations import Task  # noqa: E402
from vilt_fast.kernels import launch  # noqa: E402


class Broken(BaseException):
    """The process ends."""


class Case:
    """Answers the number of the configuration in force, or raises."""

    def __init__(self, name: str, broken: tuple[int, ...] = ()) -> None:
        self.name, self.broken, self.calls = name, broken, []

    def sets_in(self, dtype: torch.dtype) -> list:
        return [[]]

    def ours(self) -> torch.Tensor:
        number = launch._forced.get(self.name, {}).get("T", 0)
        self.calls.append(number)
        if number in self.broken:
            raise RuntimeError("CUDA error: misaligned address")
        return torch.zeros(1)


def tasks(**broken: tuple[int, ...]) -> list[Task]:
    return [Task(name, {"N": 1}, Case(name, of), [{"T": 1}, {"T": 2}]) for name, of in broken.items()]


@pytest.fixture
def run(monkeypatch, tmp_path):
    check.kernel_device()

    def run(some: list[Task], measure=lambda call: float(call() + 1)):
        monkeypatch.setattr(tune, "_tasks", lambda *_: iter(some))
        return tune.tune(batches=(1,), directory=tmp_path, measure=measure, report=lambda line: None)

    return run


def test_what_raises_costs_one_candidate_or_one_entry(run, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"1 entries could not be measured, .* b .*misaligned"):
        run(tasks(a=(1,), b=(0,), c=()))
    (table,) = tmp_path.iterdir()
    assert [(entry["op"], entry["config"]) for entry in launch.read_table(table)] == [("a", {"T": 2}), ("c", {"T": 1})]


def test_every_entry_is_written_at_once(run, tmp_path) -> None:
    """With the entries of before behind it, until all are measured."""
    old = {"op": "z", "config": {"T": 9}}
    path = tune.write_table(tmp_path, [old], keeps=lambda entry: True)

    def measure(call) -> float:
        call()
        if launch._forced.get("b"):
            raise Broken
        return 1.0

    with pytest.raises(Broken):
        run(tasks(a=(), b=()), measure)
    assert [entry["op"] for entry in launch.read_table(path)] == ["a", "z"]
    run(tasks(a=()))
    assert [entry["op"] for entry in launch.read_table(path)] == ["a"]


def test_shares_compile_every_candidate_once(monkeypatch) -> None:
    check.kernel_device()
    found = tasks(a=(1,), b=())
    monkeypatch.setattr(tune, "_tasks", lambda *_: iter([*found, *found]))  # a second size class with the same tiles
    assert [tune.compile_share(shard, 2, {}, [1]) for shard in range(2)] == [2, 2]
    assert [sorted(task.case.calls) for task in found] == [[1, 2], [1, 2]]


def test_the_real_shares_launch_what_is_measured(monkeypatch) -> None:
    """By the sizes that a child process is given."""
    check.kernel_device()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    assert tune.compile_share(0, 20, sizes, [1]) > 0
