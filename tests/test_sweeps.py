"""A sweep: what it refuses, and that nothing finished is lost whatever is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fastparquet
import nbformat
import pandas as pd
import psutil
import pytest
import xarray as xr
from distributed import CancelledError, LocalCluster
from distributed.comm import CommClosedError
from small import ROOT

from assim_lib import ParameterError
from assim_lib.sweeps.folder import Folder
from assim_lib.sweeps.grid import Grid
from assim_lib.sweeps.point import PointError, run_point
from assim_lib.sweeps.program import Program
from assim_lib.sweeps.run import Sweep
from assim_lib.sweeps.schedule import makespan
from assim_lib.sweeps.table import on_grid, sweep_table
from assim_lib.workers import _ended

CHAPTER = ROOT / "notebooks" / "05_l96_conv.ipynb"

PARAMETERS = """\
a: int = 1  # a number
what: str = "score"  # what happens
marks: str = ""  # a folder for traces of runs
seed: int = 0  # as well
metrics: str = "m.json"  # file"""
# What a point does; each of its runs leaves a trace.
CODE = """\
import json, os, pathlib, signal, time, uuid
if marks:
    (pathlib.Path(marks) / f"{a}-{uuid.uuid4()}").touch()
if what == "raise":
    raise ArithmeticError("no good\\nat all")
if what == "hang":
    time.sleep(600)
if what == "once" and len(list(pathlib.Path(marks).glob(f"{a}-*"))) == 1:
    os.kill(os.getppid(), signal.SIGKILL)
if what == "slow":
    time.sleep(1)
if what != "nothing":
    found = {"rmse": a + seed / 10, "a": 7, "threads": os.environ["OMP_NUM_THREADS"]}
    pathlib.Path(metrics).write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    path = tmp_path_factory.mktemp("toy") / "toy.ipynb"
    parameters = nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    notebook = nbformat.v4.new_notebook(cells=[parameters, nbformat.v4.new_code_cell(CODE)])
    notebook.metadata.kernelspec = {"name": "python3", "language": "python", "display_name": "Python 3"}
    nbformat.write(notebook, path)
    return path


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as running:
        yield running


@pytest.fixture
def scheduler(cluster):
    return cluster.scheduler_address


@pytest.fixture
def marks(tmp_path):
    """A folder where each run of a point leaves a trace."""
    (tmp_path / "marks").mkdir()
    return tmp_path / "marks"


# ---- the grid


def test_a_grid_is_lists_ranges_seeds_and_experiments(tmp_path):
    path = tmp_path / "grid.yml"
    path.write_text(
        "constants: {p: 1}\n"
        "grid: {a: [1, x], b: {start: 0.1, stop: 0.3, step: 0.1}, c: {start: 0, stop: 4, step: 2}, "
        "d: {start: 0, stop: 1, num: 3}, m: {start: 5, stop: 15, num: 3}}\n"
        "seeds: 2\nexperiments: {one: {q: 1}, two: {q: 2}}\n"
    )
    grid = Grid.load(path)
    assert grid.axes() == {
        "experiment": ["one", "two"],
        "a": [1, "x"],
        "b": [0.1, 0.2, 0.3],
        "c": [0, 2, 4],
        "d": [0.0, 0.5, 1.0],
        "m": [5, 10, 15],
        "seed": [0, 1],
    }
    assert all(type(m) is int for m in grid.axes()["m"])
    points = list(grid.points())
    assert len(points) == 2 * 2 * 3 * 3 * 3 * 3 * 2
    assert points[-1].parameters == {"p": 1, "q": 2, "a": "x", "b": 0.3, "c": 4, "d": 1.0, "m": 15, "seed": 1}
    assert points[-1].coordinates["experiment"] == "two"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[1]", "g.yml is no grid"),
        ("grid: {a: [1}", "g.yml is no grid (line 1)"),
        ("gird: {a: [1]}", "g.yml: gird = "),
        ("grid: {a: 1}", "g.yml: grid.a = 1 is not allowed"),
        ("grid: {a: []}", "a = [] is not allowed"),
        ("grid: {a: [1, 1]}", "a = [1, 1] is not allowed"),
        ("grid: {a: {start: 0, stop: 1}}", "a = {'start': 0, 'stop': 1} is no range"),
        ("grid: {a: {start: 0, stop: 1, step: 0.3}}", "a = "),
        ("grid: {a: {start: 0, stop: 1, step: 0}}", "a = "),
        ("grid: {a: {start: 0, stop: 1, num: 2.5}}", "a = "),
        ("grid: {a: {start: 0, stop: 1, num: 1}}", "a = "),
        ("grid: {a: {start: 0, stop: .inf, step: 1}}", "a = "),
        ("grid: {a: {start: 0, stop: 1, step: 1.0e-12}}", "a has more than 100,000 values"),
        ("seeds: 0", "seeds = 0 is not allowed"),
        ("seeds: 1000000", "the grid has 100,001 points"),
        ("{grid: {seed: [1]}, seeds: 2}", "seed is given in two places"),
        ("{grid: {a: [1]}, experiments: {x: {a: 2}}}", "a is given in two places"),
        ("grid: {key: [1]}", "key cannot be an axis of a sweep: its table has a column of that name."),
        ("constants: {metrics: m.json}", "metrics cannot be set in a sweep: the sweep names the file."),
        ("constants: {folder: runs}", "folder cannot be set in a sweep: its points would share one state."),
    ],
)
def test_what_is_no_grid_is_one_sentence(text, sentence, tmp_path):
    (tmp_path / "g.yml").write_text(text)
    with pytest.raises(ParameterError) as error:
        Grid.load(tmp_path / "g.yml").axes()
    assert str(error.value).startswith(sentence)
    assert "\n" not in str(error.value)


# ---- what a notebook makes of its parameters


@pytest.mark.parametrize(
    ("axes", "sentence"),
    [
        ({"m": [5, 0, -1]}, "the point m = 0: m = 0 (of type int) is not allowed; m is the ensemble size"),
        ({"noize": [1]}, "the point noize = 1: Unknown parameter `noize`: did you mean `noise`?"),
        ({"plugins": ["no_such"]}, "the point plugins = 'no_such': plugins = 'no_such' cannot be imported"),
    ],
)
def test_a_chapter_refuses_a_point_before_anything_runs(axes, sentence, tmp_path):
    with pytest.raises(ParameterError) as error:
        Sweep(CHAPTER, Grid(grid=axes), str(tmp_path / "out"))
    assert str(error.value).startswith(sentence)
    assert str(error.value).endswith("(1 more points cannot be run.)") is ("m" in axes)
    assert not (tmp_path / "out").exists()


def test_a_point_is_its_validated_configuration(tmp_path):
    """What is left at its default and what is said are the same point; the file of metrics is none of it."""
    swept = Sweep(CHAPTER, Grid(grid={"m": [None, 10, 5], "noise": [1, 1.0]}), str(tmp_path))
    keys = [point["key"] for point in swept.points]
    assert keys[:4] == [keys[0]] * 4
    assert keys[4] == keys[5] != keys[0]


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [({"b": 1}, "Unknown parameter `b`"), ({"a": "x"}, "a = 'x' (of type str) is not allowed; a is of type int.")],
)
def test_any_notebook_refuses_what_it_does_not_declare(toy, parameters, sentence):
    with pytest.raises(ParameterError) as error:
        Program(toy).configuration(parameters)
    assert str(error.value).startswith(sentence)


def test_outputs_of_a_notebook_are_no_part_of_it_and_its_code_is(toy, tmp_path):
    notebook = nbformat.read(toy, as_version=4)
    notebook.cells[1].outputs = [nbformat.v4.new_output("stream", text="hello")]
    nbformat.write(notebook, tmp_path / "executed.ipynb")
    notebook.cells[1].source += "\n1"
    nbformat.write(notebook, tmp_path / "changed.ipynb")
    key, executed, changed = (
        Program(p).key({}) for p in (toy, tmp_path / "executed.ipynb", tmp_path / "changed.ipynb")
    )
    assert key == executed != changed


# ---- a point


def test_a_point_that_hangs_is_ended_and_shows_where(toy, tmp_path):
    with pytest.raises(PointError, match="it took longer than 3 s"):
        run_point(Program(toy).text, "k", {"what": "hang"}, str(tmp_path), 3.0, "")
    notebook = nbformat.read(tmp_path / "failed" / "k.ipynb", as_version=4)
    assert any("hang" in cell.source for cell in notebook.cells)
    assert not (tmp_path / "points").exists()
    assert [child for child in psutil.Process().children() if "ipykernel" in " ".join(child.cmdline())] == []


def test_a_point_that_writes_no_metrics_is_a_failure(toy, tmp_path):
    with pytest.raises(PointError, match="it wrote no metrics"):
        run_point(Program(toy).text, "k", {"what": "nothing"}, str(tmp_path), None, "")


def test_a_full_disk_leaves_no_half_of_a_point(toy, tmp_path, monkeypatch):
    def write(self, name, content):
        if name.startswith("points"):
            raise OSError(28, "No space left on device")
        return self.path(name)

    monkeypatch.setattr(Folder, "write", write)
    with pytest.raises(OSError, match="No space left"):
        run_point(Program(toy).text, "k", {}, str(tmp_path), None, "")
    assert Folder(str(tmp_path)).stems("points", ".json") == set()


# ---- sweeps


def rows(folder):
    return fastparquet.ParquetFile(str(folder / "table.parquet")).to_pandas()


def test_a_sweep_runs_each_point_once_and_makes_tables(toy, scheduler, tmp_path, marks):
    """The second time nothing runs; a larger grid runs what is new."""
    constants = {"marks": str(marks)}
    swept = Sweep(toy, Grid(constants=constants, grid={"a": [2, 3]}), str(tmp_path / "out"))
    assert swept.run(scheduler, progress=False).failed == {}
    assert len(list(marks.iterdir())) == 2
    larger = Sweep(toy, Grid(constants=constants, grid={"a": [2, 3]}, seeds=2), str(tmp_path / "out"))
    assert len(larger.missing()) == 2
    larger.run(scheduler, progress=False)
    assert len(list(marks.iterdir())) == 4
    assert Sweep(toy, larger.grid, str(tmp_path / "out")).run("tcp://127.0.0.1:1").failed == {}  # asks nobody
    table = rows(tmp_path / "out")
    assert table[["a", "seed", "rmse", "threads", "failed"]].values.tolist() == [
        [2, 0, 2.0, "1", ""],
        [2, 1, 2.1, "1", ""],
        [3, 0, 3.0, "1", ""],
        [3, 1, 3.1, "1", ""],
    ]
    with xr.open_dataset(tmp_path / "out" / "sweep.nc") as grid:
        assert grid.rmse.dims == ("a", "seed")
        assert float(grid.rmse.sel(a=3, seed=1)) == 3.1
        assert float(grid.overhead.min()) > 0


def test_a_point_that_raises_is_tried_again_and_then_shown(toy, scheduler, tmp_path, marks):
    grid = Grid(constants={"marks": str(marks)}, grid={"a": [1, 2], "what": ["score", "raise"]})
    outcome = Sweep(toy, grid, str(tmp_path / "out")).run(scheduler, retries=1, progress=False)
    assert len(list(marks.iterdir())) == 2 * 1 + 2 * 2
    for sentence in outcome.failed.values():
        assert sentence.startswith("ArithmeticError: no good (")
        shown = nbformat.read(sentence.split("(")[1].rstrip(")"), as_version=4)
        assert any(output.output_type == "error" for cell in shown.cells for output in cell.get("outputs", []))
    table = rows(tmp_path / "out")
    assert table.failed.tolist() == ["", "ArithmeticError: no good", "", "ArithmeticError: no good"]
    assert table.rmse.isna().tolist() == [False, True, False, True]


def test_a_worker_that_is_killed_loses_its_point_for_a_moment(toy, scheduler, tmp_path, marks):
    grid = Grid(constants={"marks": str(marks), "what": "once"}, grid={"a": [1, 2]})
    outcome = Sweep(toy, grid, str(tmp_path / "out")).run(scheduler, retries=3, progress=False)
    assert outcome.failed == {}
    assert rows(tmp_path / "out").rmse.tolist() == [1.0, 2.0]


def started(toy, folder, *more):
    line = [sys.executable, "-m", "assim_lib", "sweep", str(toy), "--grid", "grid.yml", "--output", "out", *more]
    return subprocess.Popen(
        line, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))},
    )  # fmt: skip


def wait_for(folder, number):
    until = time.monotonic() + 120
    while len(list((folder / "out").glob("points/*.json"))) < number:
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_a_command_that_is_stopped_keeps_what_is_finished_and_goes_on(toy, tmp_path, marks, end):
    """By Ctrl-C with a sentence and without leaving a process; by a kill, which takes the scheduler along."""
    (tmp_path / "grid.yml").write_text(f"constants: {{what: slow, marks: {marks}}}\ngrid: {{a: [1, 2]}}\n")
    process = started(toy, tmp_path, "--workers", "1")
    wait_for(tmp_path, 1)
    children = psutil.Process(process.pid).children(recursive=True)
    if end == signal.SIGINT:
        os.killpg(process.pid, end)
    else:
        process.kill()
    _, said = process.communicate(timeout=60)
    assert psutil.wait_procs(children, timeout=30)[1] == []
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "points").iterdir()}
    assert before  # a worker that outlives the command may finish what it has begun
    if end == signal.SIGINT:
        assert process.returncode == 1
        assert "Traceback" not in said
        assert said.splitlines()[-1].startswith(f"assim_lib sweep: interrupted; {len(before)} of 2 points are finished")
    again = started(toy, tmp_path, "--workers", "2")
    out, said = again.communicate(timeout=120)
    assert again.returncode == 0, said
    assert [Path(line).name for line in out.splitlines()] == ["table.parquet", "sweep.nc"]
    assert rows(tmp_path / "out").rmse.tolist() == [1.0, 2.0]
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "points").iterdir()}
    assert before.items() <= after.items()


def test_a_lost_scheduler_is_one_sentence_and_a_rerun_completes_the_table(toy, scheduler, tmp_path):
    (tmp_path / "grid.yml").write_text("constants: {what: slow}\ngrid: {a: [1, 2, 3, 4]}\n")
    dask = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0"]
    running = subprocess.Popen(
        [*dask, "--no-dashboard", "--scheduler-file", str(tmp_path / "s.json")], stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + 60
    while not ((tmp_path / "s.json").exists() and (tmp_path / "s.json").stat().st_size):
        assert time.monotonic() < until
        time.sleep(0.1)
    address = json.loads((tmp_path / "s.json").read_text())["address"]
    worker = subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-dashboard"],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        process = started(toy, tmp_path, "--scheduler", address)
        wait_for(tmp_path, 1)
        running.kill()
        _, said = process.communicate(timeout=60)
        assert process.returncode == 2
        assert "assim_lib sweep: the scheduler is gone; what is finished is kept: run the command again." in said
        again = Sweep(toy, tmp_path / "grid.yml", str(tmp_path / "out"))
        assert len(again.missing()) < 4
        again.run(scheduler, progress=False)
        assert rows(tmp_path / "out").rmse.tolist() == [1.0, 2.0, 3.0, 4.0]
    finally:
        for one in (running, worker):
            one.kill()
            one.wait()


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("status", ["cancelled", "finished", "lost"])
def test_a_scheduler_lost_between_an_end_and_its_result_is_the_same_sentence(status, monkeypatch):
    class Unanswered:
        def exception(self):
            assert self.status != "lost", "is waited for in vain"

        def result(self):
            raise {"cancelled": CancelledError, "finished": CommClosedError}[status]()

    future = Unanswered()
    future.status = status
    monkeypatch.setattr("assim_lib.workers.as_completed", iter)
    with pytest.raises(ConnectionError, match=r"^the scheduler is gone; what is finished is kept"):
        list(_ended({future: "point"}))


def test_an_s3_store_is_a_folder_as_well(toy, tmp_path, monkeypatch):
    """Of a server on loopback, to which the worker writes on its own."""
    boto3 = pytest.importorskip("boto3")
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        settings = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
        for name, value in {**settings, "AWS_DEFAULT_REGION": "us-east-1"}.items():
            monkeypatch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="sweeps")
        swept = Sweep(toy, Grid(grid={"a": [1, 2]}), "s3://sweeps/one")
        outcome = swept.run(workers=1, progress=False)
        assert outcome == (["s3://sweeps/one/table.parquet", "s3://sweeps/one/sweep.nc"], {})
        listed = boto3.client("s3").list_objects_v2(Bucket="sweeps")["Contents"]
        keys = [point["key"] for point in swept.points]
        tables = ["one/sweep.json", "one/sweep.nc", "one/table.parquet"]
        files = [name for key in keys for name in (f"one/notebooks/{key}.ipynb", f"one/points/{key}.json")]
        assert sorted(entry["Key"] for entry in listed) == sorted([*files, *tables])
        assert swept.missing() == {}
    finally:
        server.stop()


# ---- the command


def test_what_cannot_be_swept_is_one_sentence(command, toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "grid.yml").write_text("grid: {a: [1]}")
    (tmp_path / "file").touch()
    (tmp_path / "empty.yml").write_text("# nothing yet")
    for line, sentence in (
        (f"{toy} --grid none.yml", "none.yml: there is no such file."),
        (f"{toy} --grid empty.yml", "empty.yml is empty; a grid states at least one parameter."),
        ("none.ipynb --grid grid.yml", "none.ipynb: there is no such file."),
        ("grid.yml --grid grid.yml", "notebook = 'grid.yml' is no notebook."),
        (f"{toy} --grid grid.yml --output ftq://x", "output = 'ftq://x' is no folder or address that can be used"),
        (f"{toy} --grid grid.yml --output file", "cannot be read or written"),
        (f"{toy} --grid grid.yml --scheduler tcp://127.0.0.1:1", "scheduler = 'tcp://127.0.0.1:1' cannot be reached"),
    ):
        code, _, said = command(f"sweep {line}")
        assert code == 2
        assert said.startswith("assim_lib sweep: ")
        assert sentence in said
        assert said.count("\n") == 1


def test_the_library_does_without_dask():
    line = (
        "import assim_lib.__main__, sys; print([m for m in ('dask', 'distributed', 'fsspec.core') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout == "[]\n"


# ---- how many workers


def test_a_schedule_waits_for_the_last_point_and_for_the_scheduler():
    assert makespan([1.0] * 4, 2, dispatch=0.0) == 2.0
    assert makespan([1.0, 1.0, 3.0], 2, dispatch=0.0) == 4.0
    assert makespan([1.0] * 4, 4, dispatch=0.5) == 4 * 0.5 + 1.0
    assert makespan([1.0] * 4, 1000, dispatch=0.0, start=2.0) == 3.0


def test_none_among_numbers_is_a_coordinate_as_well(tmp_path):
    table = pd.DataFrame({"m": [None, 10], "rmse": [1.0, 2.0], "failed": "", "key": "k"}, dtype=object)
    dataset = on_grid(table.astype({"rmse": float}), ["m"])
    dataset.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    assert dataset.rmse.sel(m=["None", "10"]).values.tolist() == [1.0, 2.0]


def test_a_folder_may_have_brackets_in_its_name(tmp_path):
    folder = Folder(str(tmp_path / "a[1]"))
    folder.write_json("points/k.json", {})
    assert folder.stems("points", ".json") == {"k"}


def test_a_metric_called_as_a_column_of_the_sweep_is_kept_beside_it(tmp_path):
    folder = Folder(str(tmp_path))
    folder.write_json("sweep.json", {"points": [{"key": "k", "coordinates": {"m": 1}}], "axes": ["m"]})
    metrics = {"rmse": 0.5, "seconds": 7.0, "key": "mine"}
    folder.write_json("points/k.json", {"metrics": metrics, "seconds": 1.0, "overhead": 0.1})
    (row,) = sweep_table(folder).to_dict("records")
    assert row == {
        "m": 1, "rmse": 0.5, "metric_seconds": 7.0, "metric_key": "mine", "seconds": 1.0, "overhead": 0.1,
        "failed": "", "key": "k",
    }  # fmt: skip
