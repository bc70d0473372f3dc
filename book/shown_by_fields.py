"""What a stored file holds is shown by its fields, without what pydantic and Python add to them: a Sphinx extension."""

from typing import Any

from pydantic import BaseModel
from sphinx.application import Sphinx


def without_signature(app: Sphinx, kind: str, name: str, documented: Any, *_: Any) -> tuple[str, None] | None:
    """An empty signature for it, where pydantic would show how fields are checked; the usual one for all else."""
    return ("", None) if kind == "class" and issubclass(documented, BaseModel) else None


def skipped(app: Sphinx, kind: str, name: str, documented: Any, *_: Any) -> bool | None:
    """How pydantic is to check it is no field; and those of a named tuple are told with its arguments."""
    alias = str(documented.__doc__).startswith("Alias for field number")
    return True if alias or name == "model_config" else None


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("autodoc-process-signature", without_signature)
    app.connect("autodoc-skip-member", skipped)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
