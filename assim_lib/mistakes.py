"""What is answered with a sentence: one base class."""


class Mistake(ValueError):
    """What cannot be used; its message is one sentence naming what came and what is allowed."""

    def _render_traceback_(self) -> list[str]:
        # Read by IPython: in a notebook the sentence alone says everything.
        return [f"{type(self).__name__}: {self}"]
