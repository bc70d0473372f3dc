"""A stored filter still has the score that is stored, or that is said."""

import json
from dataclasses import replace

import pytest
from small_runs import tiny

from assim_lib.storage import data_dir
from assim_lib.study.publish import publish
from assim_lib.study.results import read_result, write_result
from assim_lib.study.verify import ELSEWHERE, SAME, compared, to_verify, verify
from assim_lib.training.run import train


@pytest.fixture(scope="module")
def name(home):
    chosen = tiny("recurrent", 1, updates=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxtyping.config.jaxtyping_disable", True)
        publish(chosen, *train(chosen, progress=False, curve_points=1))
    return chosen.name


def stored_otherwise(name, **changed):
    path = data_dir() / "results" / f"{name}.json"
    content = json.loads(path.read_text())
    for key, value in changed.items():
        content["provenance" if key in content["provenance"] else "test"][key] = value
    path.write_text(json.dumps(content))


@pytest.fixture
def stored(name):
    """Its result, as it was after the test."""
    result = read_result(data_dir() / "results" / f"{name}.json")
    yield result
    write_result(name, result)


def test_on_the_same_processor_it_is_the_same(stored, name, command, unchecked_shapes):
    (row,) = verify(to_verify([name]))
    assert (row.verdict, row.allowed, row.difference) == ("same", SAME, 0)
    code, said, _ = command(f"verify {name}")
    assert code == 0
    assert said.endswith("  same\n0 of 1 scores have drifted\n")


def test_drift_is_named_and_ends_in_status_1(stored, name, command, unchecked_shapes):
    stored_otherwise(name, rmse=stored.test.rmse * (1 + 1e-5))
    code, said, _ = command(f"verify {name}")
    assert code == 1
    assert said.endswith("  DRIFT\n1 of 1 scores have drifted\n")


def test_elsewhere_a_little_is_allowed(stored, name, unchecked_shapes):
    stored_otherwise(name, rmse=stored.test.rmse * (1 + 1e-5), cpu="another")
    (row,) = verify(to_verify())
    assert (row.verdict, row.allowed) == ("same", ELSEWHERE)


def test_first_blocks_are_compared_with_first_blocks(stored):
    whole = replace(stored.test, blocks=(1.0, 2.0, 6.0), cycles=300, rmse=3.0)
    part = replace(whole, blocks=(1.0, 2.0), cycles=200, rmse=1.5)
    assert compared("a", whole, part, SAME).difference == 0
    assert compared("a", whole, replace(part, blocks=(1.1, 1.9)), SAME).drifted
    assert not compared("a", whole, replace(part, blocks=(1.1, 1.9)), ELSEWHERE).drifted
    assert compared("a", whole, part, ELSEWHERE, same_weights=False).drifted


def test_a_score_without_blocks_cannot_be_compared_in_part(stored, name):
    result = stored.model_copy(update={"test": replace(stored.test, blocks=(), cycles=5000)})
    (row,) = verify([(name, result)], cycles=300)
    assert (row.verdict, row.drifted) == ("not compared", False)


def test_what_is_not_published_is_said(command, home):
    code, _, said = command("verify nothing")
    assert (code, said) == (2, "assim_lib verify: name = 'nothing' is no stored filter with a score.\n")
