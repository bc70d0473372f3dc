"""How nbval compares a notebook's fresh outputs with its committed ones: words and numbers, not pictures or clocks.

A pytest plugin, loaded by name in pyproject.toml.
"""

import pytest

# Pictures differ from one font or zlib version to the next; HTML repeats what the plain text beside it says.
PICTURES = ("image/png", "image/svg+xml", "image/gif", "image/jpeg")
SKIPPED = (
    *PICTURES,
    *(f"application/papermill.record/{kind}" for kind in (*PICTURES, "text/html")),
    "text/html",
    "application/json",
    "application/javascript",
    "stderr",
)

REPLACED = {
    r"0x[0-9a-f]{6,}": "ADDRESS",
    r"\b\d+(\.\d+)? ?(ms|s|min|h)\b": "DURATION",
}


def pytest_collectstart(collector: pytest.Collector) -> None:
    if hasattr(collector, "skip_compare"):  # nbval's notebook files, and nothing else
        collector.skip_compare += SKIPPED
        collector.sanitize_patterns.update(REPLACED)
