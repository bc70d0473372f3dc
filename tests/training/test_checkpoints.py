"""Trained filters as files: what comes back, what is refused, and that nothing in them can run."""

import ast
import pickle
from pathlib import Path

import pytest
import torch
from small import shaken, small_filter
from small_runs import assert_same, ring_trainer, tiny

import assim_lib
from assim_lib.storage import PACKAGE, IntegrityError, data_dir, sha256, write_json
from assim_lib.systems import Lorenz96, register_system
from assim_lib.tracking import assimilate
from assim_lib.training import checkpoints
from assim_lib.training.build import build_filter
from assim_lib.training.checkpoints import checkpoint_path, load_checkpoint, load_filter, save_checkpoint
from assim_lib.training.experiment import ParameterError
from assim_lib.trajectories import observed, simulate


@pytest.fixture
def checkpoint(tmp_path):
    model = shaken(small_filter("hybrid", lag=1)).float()
    path = checkpoint_path("filter", tmp_path)
    save_checkpoint(model, path, {"experiment": {"m": 4}, "seconds": 1.5})
    return path, model


def test_checkpoints_are_in_the_folder_of_data(tmp_path, monkeypatch):
    monkeypatch.setenv("ASSIM_DATA", str(tmp_path))
    assert checkpoint_path("a-filter") == tmp_path / "checkpoints" / "a-filter.safetensors"


def test_a_checkpoint_comes_back(checkpoint):
    path, model = checkpoint
    weights, log = load_checkpoint(path)
    units = {name: weights.pop(f"units.{name}") for name in ("mean", "std")}
    assert_same(units, {"mean": model.analysis.mean, "std": model.analysis.std})
    assert_same(weights, model.state_dict())
    assert log == {"sha256": sha256(path), "experiment": {"m": 4}, "seconds": 1.5}
    assert sorted(p.name for p in path.parent.iterdir()) == ["filter.json", "filter.safetensors"]


def test_changed_weights_are_refused(checkpoint):
    path, _ = checkpoint
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    for load in (load_checkpoint, load_filter):
        with pytest.raises(IntegrityError, match=r"^filter\.safetensors is corrupt: [^\n]+\.$"):
            load(path)


@pytest.mark.parametrize("missing", [".json", ".safetensors"])
def test_half_a_checkpoint_is_one_sentence(checkpoint, missing):
    path, _ = checkpoint
    path.with_suffix(missing).unlink()
    with pytest.raises(FileNotFoundError, match=r"^no checkpoint filter in [^\n]+ are needed\.$"):
        load_checkpoint(path)


def test_weights_without_a_checksum_are_refused(checkpoint):
    path, _ = checkpoint
    write_json(path.with_suffix(".json"), {"experiment": {}})
    with pytest.raises(IntegrityError, match=r"^filter\.json has no sha256; [^\n]+\.$"):
        load_checkpoint(path)


def test_a_published_filter_is_loaded_by_its_name():
    name = next((data_dir() / "checkpoints").glob("*.safetensors")).stem
    assert load_filter(name)[0].name == name
    with pytest.raises(ParameterError, match=f"is no known filter: did you mean {name!r}?"):
        load_filter(name + "0")


def test_a_filter_comes_back_in_its_own_units_and_in_other_settings(tmp_path, home):
    """On another machine the same seed makes another climatology; wherever it was trained, no GPU is needed."""
    chosen = tiny("hybrid", 3, lag=1)
    model = shaken(build_filter(chosen, 5 + 2 * torch.randn(50, 1, 40)))
    path = checkpoint_path(chosen.name, tmp_path)
    save_checkpoint(model, path, {"experiment": {**chosen.model_dump(), "device": "cuda"}})
    experiment, loaded = load_filter(path)
    assert experiment == chosen
    assert not loaded.training
    assert_same(loaded.state_dict(), model.state_dict())
    assert torch.equal(loaded.highest, model.highest)
    other, changed = load_filter(path, noise=2.0, step_size=0.15, obs_conf="partial_obs")
    assert (other.noise, changed.steps, len(changed.schedule), float(changed.error[0, 0])) == (2.0, 3, 2, 2.0)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"hidden_size": 7}, "hidden_size = 7: the weights of {name} are of another shape; train one from nothing."),
        ({"nois": 2.0}, "Unknown parameter `nois`: did you mean `noise`?"),
        ({"inflation": 1.9}, "inflation = 1.9 is what analysis = 'hybrid' starts its training with, and {name} has"),
        ({"noise": -1.0}, "noise = -1.0 (of type float) is not allowed; noise is "),
        (
            {"analysis": "extended", "m": 1, "drift": 0.0, "lag": 0},
            "analysis = 'extended', m = 1, drift = 0.0, lag = 0: ",
        ),
    ],
    ids=str,
)
def test_what_a_filter_cannot_be_is_one_sentence(tmp_path, home, changed, sentence):
    chosen = tiny("hybrid", 3, lag=1)
    path = checkpoint_path(chosen.name, tmp_path)
    save_checkpoint(build_filter(chosen), path, {"experiment": chosen.model_dump()})
    with pytest.raises(ParameterError) as caught:
        load_filter(path, **changed)
    assert str(caught.value).startswith(sentence.replace("{name}", chosen.name))
    assert "\n" not in str(caught.value)


def test_what_fails_while_a_filter_is_built_is_no_matter_of_its_weights(tmp_path, home, monkeypatch):
    path = checkpoint_path(tiny().name, tmp_path)
    save_checkpoint(build_filter(tiny()), path, {"experiment": tiny().model_dump()})

    def too_large(*_):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(checkpoints, "build_filter", too_large)
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        load_filter(path)


@pytest.mark.usefixtures("readers_cell")
def test_a_convolution_runs_on_a_ring_of_another_size_and_a_feed_forward_network_does_not():
    @register_system
    class LargeRing(Lorenz96):
        name = "l96_60"

        def __init__(self, sites: int = 60, dt: float = 0.05):
            super().__init__(sites=sites, dt=dt)

    committed = PACKAGE.parent / "data" / "checkpoints"
    trained = checkpoint_path("l96_conv-full_obs-dt0.1-s1-recurrent-m1-seed0", committed)
    _, model = load_filter(trained, system="l96_60")
    assert torch.equal(model.analysis.std, load_filter(trained)[1].analysis.std)  # the units that it was trained in
    truth, seen = observed(simulate(LargeRing(), 0.1, 200, 1, seed=5), model.observation_model)
    missed = assimilate(model, seen, torch.Generator().manual_seed(0)).mean(-3) - truth
    assert missed[0, 100:].square().mean().sqrt() < 0.4  # observations alone: 1
    with pytest.raises(ParameterError, match=r"^system = 'l96_60': the weights of l96_ff\S+ are of another shape; "):
        load_filter(checkpoint_path("l96_ff-full_obs-dt0.1-s1-gated-ff-m10-seed4", committed), system="l96_60")


# ---- nothing runs


class Mischief:
    def __reduce__(self):
        return Path.touch, (Path("mischief"),)


@pytest.mark.parametrize("write", [pickle.dump, torch.save], ids=["pickle", "torch"])
def test_nothing_that_is_loaded_can_run_code(tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.safetensors"
    with path.open("wb") as file:
        write(Mischief(), file)
    write_json(path.with_suffix(".json"), {"sha256": sha256(path)})
    for load in (load_checkpoint, ring_trainer().load):
        with pytest.raises(Exception, match=r"(?i)header|safetensor|invalid|deserializ"):
            load(path)
    assert not Path("mischief").exists()


def test_the_library_knows_no_pickle():
    dangerous = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    paths = list(Path(assim_lib.__file__).parent.rglob("*.py"))
    assert len(paths) > 40
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None) or ""}
                assert not {name.split(".")[0] for name in names} & dangerous, path.name
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert f"{node.value.id}.{node.attr}" not in {"torch.load", "torch.save", "np.load", "pd.read_pickle"}
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                # A sweep runs the parameter cells of a notebook, as the run itself does: it is the user's own program.
                allowed = {"exec"} if path.name == "program.py" else set()
                assert node.func.id not in {"eval", "exec", "__import__"} - allowed, path.name


def test_a_filter_of_a_plugin_asks_for_it():
    options = tiny().model_dump() | {"obs_conf": "mine"}
    with pytest.raises(
        ParameterError,
        match=r"^obs_conf = 'mine' is not registered; .* give the plugin that registers it \(--plugins\)\.$",
    ):
        checkpoints.stored_experiment({"experiment": options})
