"""The scripts of the live pages: their modules joined, and the weights of a trained filter beside them.

The modules in ``_static/live`` are the source, and what the tests call. A page gets them as one classic script, because
a browser loads no module from a folder that nobody serves, and a book is also read like that.
"""

import base64
import json
import re
from pathlib import Path
from typing import Any

from assim_lib import checkpoint_path, load_filter
from assim_lib.storage import data_dir

MODULES = Path(__file__).resolve().parent / "_static" / "live"
PAGES = {
    "live": ["dynamics", "observations", "filter", "twin", "drawing", "weights", "page"],
    "scalar": ["drawing", "scalar"],
}
# Beside the filters that are scored: this one is for looking at.
FILTER = checkpoint_path("l96_any-72settings-recurrent-m1-seed0", data_dir() / "live")
STEP_SIZE = 0.1


def exported(checkpoint: Path = FILTER) -> dict[str, Any]:
    """What ``filter.js`` needs of a recurrent filter with one member and no lag; weights as base64 of float32."""
    _, model = load_filter(checkpoint, device="cpu")
    trunk = model.analysis.trunk.state_dict()
    layers = [key.removesuffix(".weight") for key in trunk if key.endswith(".weight")]
    return {
        "name": checkpoint.stem,
        "mean": model.analysis.mean.item(),
        "std": model.analysis.std.item(),
        "clamp": model.clamp,
        "memory": model.analysis.memory,
        "steps": model.dynamics.steps_per_cycle(STEP_SIZE),
        # The embedding, the blocks in turn, the head.
        "layers": [
            {kind: _base64(trunk[f"{layer}.{kind}"].numpy().astype("<f4").tobytes()) for kind in ("weight", "bias")}
            for layer in layers
        ],
    }


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def joined(sources: list[str]) -> str:
    """One classic script of modules that stand in the order of their imports."""
    text = re.sub(r"^import [^;]*;\n", "", "\n".join(sources), flags=re.MULTILINE)
    return "(() => {\n" + re.sub(r"^export ", "", text, flags=re.MULTILINE) + "})();\n"


def write(static: Path) -> None:
    """Write the weights, and the script of each page, into a staged folder ``_static``."""
    weights = static / "live" / "weights.js"
    weights.write_text(f"export const WEIGHTS = {json.dumps(exported())};\n")
    for page, modules in PAGES.items():
        script = joined([(static / "live" / f"{module}.js").read_text() for module in modules])
        (static / f"{page}.js").write_text(script)
