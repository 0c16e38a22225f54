"""The check and the clock by themselves."""

import math
import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vilt_fast.bench import suites, timing, verify

CPU = torch.device("cpu")


def test_relative_error_by_hand():
    wanted = torch.tensor([[3.0, 4.0], [6.0, 8.0]])
    got = torch.tensor([[3.0, 4.5], [6.0, 8.0]])
    assert verify.relative_error(got, wanted) == pytest.approx(0.1)
    assert verify.relative_error(wanted.bfloat16(), wanted) == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_not_finite_is_infinitely_wrong(bad):
    wanted = torch.randn(3, 5)
    got = wanted.clone()
    got[2, 4] = bad
    assert verify.relative_error(got, wanted) == math.inf
    assert not verify.relative_error(wanted, got) <= 1.0


def test_another_shape_is_infinitely_wrong():
    assert verify.relative_error(torch.ones(2, 3), torch.ones(2, 4)) == math.inf
    assert verify.relative_error(torch.ones(1, 3), torch.ones(2, 3)) == math.inf


def test_one_row_cannot_hide_among_many():
    wanted = torch.randn(10_000, 8)
    got = wanted.clone()
    got[77] = wanted[78]
    assert verify.relative_error(got, wanted) > 0.2


def test_a_row_of_zeros_is_held_to_the_others():
    wanted = torch.ones(4, 3)
    wanted[0] = 0
    assert verify.relative_error(wanted + 1e-9, wanted) < 1e-6
    got = wanted.clone()
    got[0] = 0.5
    assert verify.relative_error(got, wanted) > 10


def test_zeros_alone_are_right_or_wrong():
    """A column of a plan can be all zeros."""
    zeros = torch.zeros(1, 3, dtype=torch.int32)
    assert verify.relative_error(zeros, zeros) == 0
    assert verify.relative_error(zeros + 1, zeros) > 1


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=30))
def test_summary(samples):
    times = timing.summary(samples)
    assert min(samples) <= times.p20_ms <= times.median_ms <= times.p80_ms <= max(samples)
    assert times.samples == len(samples)


def test_summary_by_hand():
    assert timing.summary([5.0, 1.0, 2.0, 3.0, 4.0]) == timing.Times(3.0, pytest.approx(1.8), pytest.approx(4.2), 5)


def test_contestants_take_turns_and_sets_rotate():
    order = []

    def call(name):
        return lambda: order.append(name)

    budget = timing.Budget(seconds=0.0, least=4, most=50)
    times = timing.measure([[call("a0"), call("a1")], [call("b")]], CPU, budget)
    assert [t.samples for t in times] == [4, 4], "the least number of rounds is kept though no time is left"
    assert order[-8:] == ["a0", "b", "a1", "b"] * 2


def test_the_clock_tells_slow_from_fast():
    budget = timing.Budget(seconds=5.0, least=3, most=3)
    slow, fast = timing.measure([[lambda: time.sleep(0.03)], [lambda: None]], CPU, budget)
    assert slow.median_ms >= 30 > fast.median_ms


def test_times_first_is_the_median_of_the_rounds(monkeypatch):
    """On a machine whose load changes by the round it is 2, and the ratio of the medians 4 / 1."""
    clock = iter([8.0, 4.0, 4.0, 1.0, 2.0, 1.0])
    monkeypatch.setattr(timing, "_one", lambda *_: next(clock))
    first, second = timing.measure([[int], [int]], CPU, timing.Budget(0.0, least=3, warm_up=0))
    assert (first.times_first, second.times_first) == (1.0, 2.0)
    assert (first.median_ms, second.median_ms) == (4.0, 1.0)


def test_the_cpu_clock_does_not_count_waiting():
    """As for another process: the wall clock counts it."""
    calls = [[lambda: time.sleep(0.03)]]
    of_thread, of_wall = (
        timing.measure(calls, CPU, timing.Budget(0.0, least=2, clock=clock))[0].median_ms for clock in ("cpu", "wall")
    )
    assert of_thread < 15 < 30 <= of_wall


def test_the_cpu_clock_is_of_a_cpu():
    run = suites.Run(CPU, quick=True, clock="cpu")
    assert run.budget.clock == "cpu" and torch.get_num_threads() == 1
    with pytest.raises(ValueError, match="clock: got 'cpu' on a GPU"):
        suites.Run(torch.device("cuda"), clock="cpu")


def test_rounds_end_with_the_time():
    budget = timing.Budget(seconds=0.05, least=2, most=10**6)
    (times,) = timing.measure([[lambda: time.sleep(0.005)]], CPU, budget)
    assert 2 <= times.samples <= 11


def test_rotations():
    """Small inputs rotate until they exceed the cache; large ones need not."""
    assert timing.rotations(2**30, CPU) == 1
    assert timing.rotations(2**24, CPU) == 4
    assert timing.rotations(1, CPU) == 8


def test_peaks_are_measured():
    peaks = timing.measure_peaks(CPU, torch.float32, quick=True)
    assert 0 < peaks.matmul_tflops < 1000 and 0 < peaks.copy_gbps < 100_000
