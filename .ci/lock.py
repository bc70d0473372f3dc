"""Write constraints.txt and environment.yml from the versions installed beside this interpreter.

Only what the project needs is written: the closure of its dependencies and extras, found through the installed
packages' own metadata, so that a stray package in the environment never enters the lock.
"""

import platform
import re
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from assim_lib.storage import write_bytes

ROOT = Path(__file__).resolve().parent.parent
HEAD = "# A tested set of versions, for `pip install -c constraints.txt`. Written by `make lock`; not edited by hand."


def direct_requirements() -> list[Requirement]:
    """What pyproject.toml asks for, in the core and in every extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    wanted = [Requirement(line) for group in groups for line in group]
    return [each for each in wanted if each.name != project["name"]]  # an extra that takes in another


def closure(requirements: Iterable[Requirement]) -> dict[str, str]:
    """Names and versions of all that ``requirements`` install here, themselves included."""
    pins: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    queue = [(requirement, extra) for requirement in requirements for extra in ("", *requirement.extras)]
    while queue:
        requirement, extra = queue.pop()
        name = canonicalize_name(requirement.name)
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        # "+cpu" and the like say where a wheel came from, not what it does.
        pins[name] = Version(version(name)).public
        for line in requires(name) or []:
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                queue += [(needed, each) for each in ("", *needed.extras)]
    return dict(sorted(pins.items()))


def constraints(pins: dict[str, str]) -> str:
    """The text of constraints.txt."""
    return "\n".join([HEAD, *(f"{name}=={pin}" for name, pin in pins.items())]) + "\n"


def read_constraints(text: str) -> dict[str, str]:
    """The pins that a constraints file holds."""
    return dict(re.findall(r"^([\w.-]+)==(\S+)$", text, flags=re.MULTILINE))


def environment(pins: dict[str, str], python: str) -> str:
    """The text of environment.yml: Python from conda-forge, everything else the wheels that were tested."""
    names = sorted({canonicalize_name(requirement.name) for requirement in direct_requirements()})
    lines = [
        "# For conda users: `conda env create -f environment.yml`. Written by `make lock`; not edited by hand.",
        "name: amortized-assimilation",
        "channels: [conda-forge, nodefaults]",
        "dependencies:",
        f"  - python={python}",
        "  - pip",
        "  - pip:",
        "      - -c constraints.txt  # versions of what the packages below need in turn",
        *(f"      - {name}=={pins[name]}" for name in names),
        "      - -e .",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    try:
        pins = closure(direct_requirements())
    except PackageNotFoundError as missing:
        raise SystemExit(f"{missing.name} is not installed here: run `make install` first.") from None
    python = ".".join(platform.python_version_tuple()[:2])
    for name, text in {"constraints.txt": constraints(pins), "environment.yml": environment(pins, python)}.items():
        write_bytes(ROOT / name, text.encode())
    print(f"constraints.txt and environment.yml: {len(pins)} packages, Python {python}")
