"""Two toy experiments, and DAPPER imported with the library's precautions."""

from importlib.util import find_spec

import pytest
from toy import FULL, PARTIAL, make_twin

from assim_lib.classical import dapper_bridge


@pytest.fixture(scope="session")
def dapper():
    """Not importorskip: importing DAPPER without the library's precautions has side effects."""
    if find_spec("dapper") is None:
        pytest.skip("the baselines need the extra `baselines`")
    dapper_bridge.import_dapper()


@pytest.fixture(scope="session")
def full(dapper):
    return make_twin(FULL)


@pytest.fixture(scope="session")
def partial(dapper):
    return make_twin(PARTIAL)
