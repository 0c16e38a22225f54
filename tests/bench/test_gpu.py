"""The suites on a GPU with the tiny model: nobody of ours breaks or is wrong."""

import pytest
import torch

from vilt_fast.bench import ablation, suites

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


@pytest.fixture
def gpu_run():
    return suites.Run(torch.device("cuda"), quick=True)


# What our contestants may refuse on a GPU: buckets draw other samples, and take one image per text.
REFUSALS = ("not run: samples other patches", "not run: the engine takes one image", "not run: changes ")


@pytest.mark.parametrize("name", suites.SUITES)
def test_suite(name, gpu_run):
    pytest.importorskip("transformers", reason="transformers is a contestant")
    rows = [row for some in suites.run_suite(name, gpu_run) for row in some]
    ours = [row for row in rows if row.is_ours]
    bad = [row for row in ours if row.status != "ok" and not row.status.startswith(REFUSALS)]
    assert not bad, [(row.workload, row.contestant, row.status) for row in bad]
    assert any("kernels" in row.contestant and row.status == "ok" for row in ours)


def test_every_switch(gpu_run):
    rows = ablation.run_ablation(gpu_run)
    assert [row.contestant for row in rows if row.status != "ok" and not row.status.startswith(REFUSALS)] == []
