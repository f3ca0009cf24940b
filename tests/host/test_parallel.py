"""The transformer spread over processes (gloo, CPU) predicts what it predicts alone."""

import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks its processes")


@pytest.fixture(scope="module")
def differences(host_script, tmp_path_factory) -> dict:
    return host_script("ranks.py", tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize(("layout", "processes"), [("guidance", 2), ("context", 2), ("both", 4)])
def test_every_process_gets_the_prediction_of_one(differences, layout, processes):
    assert len(differences[layout]) == processes
    assert max(differences[layout]) < 1e-5


def test_more_processes_than_were_started_are_refused(differences):
    assert "guidance 2 × context 1 must be the 1 processes" in differences["refused"]
