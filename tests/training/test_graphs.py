"""An update as one CUDA graph: what a machine without a GPU can tell, and on one that it is the same update."""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from small import PARTIAL
from small_runs import advance, ring_data, ring_experiment, ring_filter, ring_pool, tiny

from assim_lib.training.experiment import ParameterError
from assim_lib.training.graphs import GraphedUnroll, check_ways
from assim_lib.training.trainer import Trainer

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("loss", ["ss_forecast", "clean_analysis"])
def test_a_window_is_made_of_its_tensors(loss):
    pool = ring_pool("hybrid", 4, 1, loss=loss)
    window = pool.window(torch.arange(2))
    again = window.with_tensors([part.clone() for part in window.tensors()])
    assert again.carry.tensors().keys() == window.carry.tensors().keys()
    assert (again.truth is None) == (loss == "ss_forecast")
    for ours, theirs in zip(again.tensors(), window.tensors(), strict=True):
        assert ours is not theirs
        torch.testing.assert_close(ours, theirs, equal_nan=True)


def test_a_window_draws_dropout_from_the_generator_it_is_given():
    pool = ring_pool("gated", 4, dropout=0.5)
    window = pool.window(torch.arange(2))
    losses = [float(pool.unroll(window, torch.Generator().manual_seed(seed))[0].detach()) for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


def test_there_is_no_graph_without_a_gpu():
    with pytest.raises(ParameterError, match="graphed = True is for a GPU"):
        check_ways(tiny(device="cpu"), graphed=True, recompute=False)
    with pytest.raises(ParameterError, match="graphed = True is for a GPU"):
        Trainer(tiny(device="cpu"), ring_filter(ring_experiment()), graphed=True)


def test_nor_of_a_network_that_sorts_its_batch(monkeypatch):
    chosen = tiny(network="ff_per_operator", obs_conf=PARTIAL, kernel=5)
    monkeypatch.setattr(type(chosen), "torch_device", torch.device("cuda"))
    with pytest.raises(ParameterError, match="network = 'ff_per_operator'"):
        check_ways(chosen, graphed=True, recompute=False)


def _fake_cuda(monkeypatch, weight):
    """Graphs as far as this test needs them: a replay writes into the memory of the capture."""

    @contextmanager
    def capture(graph):
        yield
        memory, gradient = weight.grad, weight.grad.clone()
        graph.replay = lambda: memory.copy_(gradient)

    for name in ("Stream", "current_stream", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, MagicMock)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", capture)


def test_each_graph_leaves_its_own_gradients(monkeypatch, unchecked_shapes):
    weight = torch.ones(1, requires_grad=True)
    _fake_cuda(monkeypatch, weight)
    window = SimpleNamespace(tensors=lambda: [], with_tensors=lambda _: window)
    first, second = (
        GraphedUnroll(lambda _, slope=slope: (slope * weight.sum(), None), [weight], window, None)
        for slope in (3.0, 5.0)
    )
    gradients = []
    for graph in (first, second, first):
        graph(window)
        gradients.append(weight.grad.item())
    assert gradients == [3.0, 5.0, 3.0]


@needs_gpu
def test_graphs_of_two_pools_are_the_same_updates():
    def losses(graphed):
        chosen = ring_experiment(m=1, device="cuda", lr=1e-3, adamw_lr=1e-3).changed(n_settings=2)
        data = [ring_data(chosen).to("cuda") for _ in range(2)]
        trainer = Trainer(chosen, ring_filter(chosen).cuda(), *data, graphed=graphed)
        return [metrics["loss"] for metrics in advance(trainer, 6)]

    assert losses(True) == pytest.approx(losses(False), rel=1e-4)


@needs_gpu
def test_an_update_as_a_graph_is_the_same_update():
    def losses(graphed):
        chosen = ring_experiment(m=1, device="cuda", lr=1e-3, adamw_lr=1e-3)
        trainer = Trainer(chosen, ring_filter(chosen).cuda(), ring_data(chosen).to("cuda"), graphed=graphed)
        return [metrics["loss"] for metrics in advance(trainer, 4)]

    assert losses(True) == pytest.approx(losses(False), rel=1e-4)
