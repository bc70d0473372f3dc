"""The page of promises: its tests exist, and its numbers are theirs."""

import re

from small import ROOT

from assim_lib.study.verify import ELSEWHERE, SAME

PAGE = (ROOT / "book" / "promises.md").read_text()
ROWS = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| ") and "`tests/" in line]


def examples() -> list[int]:
    text = (ROOT / "tests" / "test_properties.py").read_text()
    return [int(number) for number in re.findall(r"max_examples=(\d+)", text)]


def test_every_promise_has_a_test():
    assert len(ROWS) > 10
    for _, where in ROWS:
        file, test = where.strip("`").split("::")
        assert f"def {test}(" in (ROOT / file).read_text(), where


def test_its_numbers_are_those_of_the_tests():
    *wrong, valid = examples()
    options, parameters, records, sizes = wrong
    said = (
        f"Of {sum(wrong):,} wrong inputs ({options} options, {parameters} parameters, {records} records, {sizes} sizes "
        "far too large) none"
    )
    assert said in PAGE
    assert f"| {valid} valid experiments" in PAGE
    bits = re.search(r"range\((\d+)\)", (ROOT / "tests" / "test_tensor_files.py").read_text())
    assert bits is not None
    assert f"Any of {bits[1]} flipped bits" in PAGE
    assert (SAME, ELSEWHERE) == (1e-6, 0.01)
    assert "to 10⁻⁶ of its RMSE on the same processor and PyTorch, to 1 % elsewhere" in PAGE
