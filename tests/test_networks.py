"""The network is a convolution on a ring, silent at the start, random only when asked to be."""

import pytest
import torch
from small import built, generator, shaken
from torch.nn import functional as F

from assim_lib import networks
from assim_lib.networks import (
    NETWORKS,
    FeedForwardBank,
    FeedForwardTrunk,
    RingConv,
    RingConvTrunk,
    Sizes,
    register_network,
)

BATCHES = [(), (64,)]


def features(batch, sites=10, inputs=3):
    return torch.randn((*batch, sites, inputs), generator=generator(), dtype=torch.float64)


def trunk(dropout=0.0, blocks=2, kind=RingConvTrunk):
    return shaken(built(kind, 3, 4, Sizes(sites=10, operators=2, hidden=8, blocks=blocks, kernel=5, dropout=dropout)))


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_it_is_torchs_circular_convolution(batch, kernel):
    layer = shaken(built(RingConv, 3, 4, kernel))
    x = features(batch)
    weight = layer.linear.weight.unflatten(1, (kernel, 3)).transpose(1, 2)  # output, input, position in the window
    channels_first = x.reshape(-1, 10, 3).transpose(1, 2)
    padded = F.pad(channels_first, (kernel // 2, kernel // 2), mode="circular")
    expected = F.conv1d(padded, weight, layer.linear.bias).transpose(1, 2).reshape(*batch, 10, 4)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel", [2, 4])
def test_a_window_without_centre_is_refused(kernel):
    with pytest.raises(ValueError, match=rf"^kernel = {kernel} must be odd, so that the window has a centre\.$"):
        RingConv(3, 4, kernel)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("blocks", [0, 2])
def test_turning_the_ring_turns_the_output(batch, blocks):
    network, x = trunk(blocks=blocks), features(batch)
    out = network(x)
    assert out.shape == (*batch, 10, 4)
    assert out.std() > 0.1
    torch.testing.assert_close(network(x.roll(3, -2)), out.roll(3, -2), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_it_is_the_formula_of_its_module(blocks):
    network, x = trunk(blocks=blocks), features((2,))
    h = network.embed(x)
    for block in network.blocks:
        h = h + block(F.silu(h))
    torch.testing.assert_close(network(x), F.silu(h) @ network.head.weight.T + network.head.bias)


def test_a_site_sees_as_far_as_the_windows_reach():
    network, x = trunk(blocks=1), features((), sites=20)
    changed = x.clone()
    changed[10] += 1
    touched = (network(changed) != network(x)).any(-1)
    assert touched.nonzero().flatten().tolist() == list(range(6, 15))  # two windows of five: four to each side


@pytest.mark.parametrize("batch", BATCHES)
def test_a_feed_forward_network_is_the_formula_on_the_whole_ring(batch):
    network, x = trunk(kind=FeedForwardTrunk), features(batch)
    h = network.embed(x.reshape(*batch, 30))
    for block in network.blocks:
        h = h + block(F.silu(h))
    out = network(x)
    assert out.shape == (*batch, 10, 4)
    torch.testing.assert_close(out.reshape(*batch, 40), F.silu(h) @ network.head.weight.T + network.head.bias)
    changed = x.clone()
    changed[..., 5, :] += 1
    assert ((network(changed) - out).abs() > 1e-6).any(-1).all()  # every site sees every other


@pytest.mark.parametrize("batch", BATCHES)
def test_a_bank_uses_the_network_of_each_operator(batch):
    bank, x = trunk(kind=FeedForwardBank), features((*batch, 3))
    phase = torch.randint(2, batch, generator=generator(5))
    out = bank(x, phase)
    assert out.shape == (*batch, 3, 10, 4)
    for place in [()] if batch == () else [(0,), (17,), (63,)]:
        mine, other = (bank.trunks[int(p)](x[place]) for p in (phase[place], 1 - phase[place]))
        torch.testing.assert_close(out[place], mine)
        assert not torch.allclose(out[place], other)


def test_a_bank_whose_operators_are_not_all_there():
    bank, x = trunk(kind=FeedForwardBank), features((4, 1))
    torch.testing.assert_close(bank(x, torch.ones(4, dtype=torch.long)), bank.trunks[1](x))


PHASE = torch.zeros(64, dtype=torch.long)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("name", NETWORKS)
def test_an_untrained_network_changes_nothing(name, dropout):
    network = built(NETWORKS[name], 3, 4, Sizes(sites=10, operators=2, hidden=8, blocks=2, kernel=5, dropout=dropout))
    assert (network(features((64, 1)), PHASE, generator()) == 0).all()
    network(features((64, 1)), PHASE).sum().backward()
    heads = [p for key, p in network.named_parameters() if key.endswith("head.weight")]
    assert heads[0].grad.abs().max() > 0  # but it can learn


@pytest.mark.parametrize("name", NETWORKS)
def test_dropout_happens_only_with_a_generator_and_is_its_function(name):
    x = features((64, 1))
    silent, network = trunk(kind=NETWORKS[name]), trunk(dropout=0.4, kind=NETWORKS[name])
    assert torch.equal(network(x, PHASE), silent(x, PHASE))
    assert torch.equal(silent(x, PHASE, generator()), silent(x, PHASE))
    assert torch.equal(network(x, PHASE, generator(3)), network(x, PHASE, generator(3)))
    assert not torch.equal(network(x, PHASE, generator(3)), network(x, PHASE, generator(4)))
    assert not torch.equal(network(x, PHASE, generator(3)), network(x, PHASE))


def test_dropout_drops_whole_channels_and_keeps_the_mean():
    network = trunk(dropout=0.25)
    dropped = network._drop(torch.ones(500, 10, 8), generator())
    assert (dropped == dropped[:, :1]).all()
    assert float((dropped == 0).float().mean()) == pytest.approx(0.25, abs=0.03)
    assert dropped.unique().tolist() == [0.0, pytest.approx(1 / 0.75)]


def test_a_feed_forward_network_drops_each_number_of_its_own():
    network = trunk(dropout=0.25, kind=FeedForwardTrunk)
    dropped = network._drop(torch.ones(500, 8), generator())
    assert float((dropped == 0).float().mean()) == pytest.approx(0.25, abs=0.03)
    assert (dropped.std(0) > 0).all()
    assert (dropped.std(1) > 0).any()


def test_a_bank_has_a_network_for_each_operator():
    sizes = Sizes(sites=10, operators=5, hidden=8, blocks=2)
    bank, one = (built(kind, 3, 4, sizes) for kind in (FeedForwardBank, FeedForwardTrunk))
    assert len(bank.trunks) == 5
    numbers = [sum(p.numel() for p in network.parameters()) for network in (bank, one)]
    assert numbers[0] == 5 * numbers[1]
    firsts = [t.embed.weight for t in bank.trunks]
    assert not any(torch.equal(firsts[0], other) for other in firsts[1:])


# ---- the registry


def test_a_readers_network_may_be_defined_again():
    try:
        for factor in (1.0, 2.0):

            @register_network("mine")
            class Mine(torch.nn.Module):
                def __init__(self, inputs, outputs, sizes, factor=factor):
                    super().__init__()
                    self.factor = factor

            assert NETWORKS.find("mine")(3, 4, Sizes(10)).factor == factor
    finally:
        del NETWORKS["mine"]


def test_tests_leave_no_network_behind():
    assert {network.__module__ for network in NETWORKS.values()} == {networks.__name__}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_librarys_names_are_taken(name):
    before = NETWORKS[name]
    with pytest.raises(ValueError, match=rf"^network = '{name}' is the library's own already; choose another name\.$"):
        register_network(name)(type("Mine", (torch.nn.Module,), {"__module__": "notebook"}))
    assert NETWORKS[name] is before
