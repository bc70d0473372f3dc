"""The moving picture of the front page: a model left alone, and the same model corrected by a committed filter."""

from assim_lib import checkpoint_path, figures, load_filter, run_filter
from assim_lib.study.facts import MOVING_QUARTER, best
from assim_lib.training.build import build_filter

CYCLES = 40
ALT = (
    "Animation in two panels of Lorenz-96 with a quarter of its sites observed. Left, the model alone wanders away "
    "from the dashed truth. Right, the trained filter's curve soon lies on the truth."
)


def moving_picture() -> str:
    """HTML of the picture, from the best filter that has learned all it does."""
    row = best(MOVING_QUARTER, method="amortized", analysis="recurrent", m=1)
    experiment, trained = load_filter(checkpoint_path(row.checkpoint))
    twin = experiment.setting.load()
    # Before its training such a filter changes nothing.
    both = {"model alone": build_filter(experiment, trained.climatology), "trained filter": trained}
    states = {title: run_filter(experiment, model, twin, cycles=CYCLES)[0][:, :, 0] for title, model in both.items()}
    truth, seen = twin.truth[:CYCLES, 0], twin.observations[:CYCLES, 0]
    return str(figures.tracking(truth, seen, states, experiment.step_size, ALT).data)
