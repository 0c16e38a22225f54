"""Python ends while an engine is at work: with the user's own exit code, and nothing of ours on stderr."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the endings are forks of one process")


@pytest.fixture(scope="module")
def outcomes():
    command = [sys.executable, str(Path(__file__).with_name("endings.py"))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


ALL = "answer\n" * 60


@pytest.mark.parametrize(
    ("ending", "code", "stdout"),
    [
        ("pending", 0, ALL),
        ("iteration", 0, None),
        ("broken_off", 0, None),
        ("blocked_iterator", 0, None),
        ("dropped", 0, ALL),
        ("exit_code", 3, ALL),
        ("exit_handler", 0, "4\n"),
    ],
)
def test_it_ends_as_it_would_without_an_engine(outcomes, ending, code, stdout):
    outcome = outcomes[ending]
    assert (outcome["code"], outcome["stderr"]) == (code, "")
    assert outcome["stdout"].count("\n") == 1 if stdout is None else outcome["stdout"] == stdout


@pytest.mark.parametrize(
    ("ending", "code", "last"),
    [("error", 1, "ValueError: mine"), ("interrupt", -signal.SIGINT, "KeyboardInterrupt")],
)
def test_an_error_of_the_users_is_all_that_is_said(outcomes, ending, code, last):
    outcome = outcomes[ending]
    assert outcome["code"] == code
    assert outcome["stderr"].count("Traceback") == 1 and outcome["stderr"].splitlines()[-1] == last


@pytest.mark.parametrize("ending", ["finaliser", "finaliser_of_a_new_engine"])
def test_what_asks_too_late_is_told_so_at_once(outcomes, ending):
    outcome = outcomes[ending]
    assert (outcome["code"], outcome["stderr"]) == (0, "")
    said = outcome["stdout"].splitlines()
    assert len(said) == 3 and all("takes no more pairs" in line for line in said)


def test_threads_that_outlive_the_main_thread_go_on_asking(outcomes):
    outcome = outcomes["thread_that_goes_on"]
    assert (outcome["code"], outcome["stderr"], outcome["stdout"].count("\n")) == (0, "", 3)
