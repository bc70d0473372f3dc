"""A pytest plugin that ends a run with its slowest tests and its slowest cells of notebooks, each with its set-up."""

from collections import Counter

import pytest

SHOWN = 10


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    seconds: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[report.nodeid] += report.duration
    cells = Counter({name: spent for name, spent in seconds.items() if ".ipynb::" in name})
    for kind, chosen in (("tests", seconds - cells), ("cells", cells)):
        if chosen:
            terminalreporter.section(f"slowest {kind}")
            for name, spent in chosen.most_common(SHOWN):
                terminalreporter.write_line(f"{spent:7.1f} s  {name}")
