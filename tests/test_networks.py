"""Networks on a ring: the formulas they claim, silent at the start or as published, random only when asked to be."""

import pytest
import torch
from small import built, generator, shaken
from torch.nn import functional as F

from assim_lib.networks import (
    NETWORKS,
    FeedForwardBank,
    FeedForwardTrunk,
    GatedConvTrunk,
    OriginalEarlyTrunk,
    OriginalFeedForwardTrunk,
    OriginalTrunk,
    RingConv,
    RingConvTrunk,
    TrunkSizes,
    drop_channels,
)

BATCHES = [(), (64,)]
PHASE = torch.zeros(64, dtype=torch.long)
ORIGINALS = [name for name in NETWORKS if "original" in name]


def features(batch, sites=10, inputs=3):
    return torch.randn((*batch, sites, inputs), generator=generator(), dtype=torch.float64)


def untrained(kind, dropout=0.0, blocks=2, operators=2):
    return built(kind, 3, 4, TrunkSizes(10, operators, hidden=8, blocks=blocks, kernel=5, dropout=dropout))


def trunk(kind=RingConvTrunk, **sizes):
    return shaken(untrained(kind, **sizes))


# ---- windows


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
    with pytest.raises(ValueError, match=rf"^kernel = {kernel + 1} must be odd, so that the window has a centre\.$"):
        RingConv(3, 4, kernel + 1)


def test_a_large_ring_is_convolved_one_stretch_after_the_other(monkeypatch):
    layer, x = shaken(built(RingConv, 3, 4, 5)), features((2,), sites=40)
    whole = layer(x)
    monkeypatch.setattr(RingConv, "shortest", 7)
    monkeypatch.setattr(RingConv, "at_once", 1)
    calls = []
    layer.linear.register_forward_hook(lambda _, inputs, __: calls.append(inputs[0].shape[-2]))
    torch.testing.assert_close(layer(x), whole)
    assert calls == [7, 7, 7, 7, 7, 5]


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("blocks", [0, 2])
@pytest.mark.parametrize("kind", [RingConvTrunk, GatedConvTrunk, OriginalTrunk])
def test_turning_the_ring_turns_the_output(kind, batch, blocks):
    network, x = trunk(kind, blocks=blocks), features(batch)
    out = network(x)
    assert out.shape == (*batch, 10, 4)
    assert out.std() > 0.1
    torch.testing.assert_close(network(x.roll(3, -2)), out.roll(3, -2), rtol=1e-12, atol=1e-12)


def test_a_site_sees_as_far_as_the_windows_reach():
    network, x = trunk(blocks=1), features((), sites=20)
    changed = x.clone()
    changed[10] += 1
    touched = (network(changed) != network(x)).any(-1)
    assert touched.nonzero().flatten().tolist() == list(range(6, 15))  # two windows of five: four to each side


# ---- formulas


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("blocks", [0, 1, 3])
@pytest.mark.parametrize("kind", [RingConvTrunk, GatedConvTrunk, FeedForwardTrunk])
def test_a_residual_network_is_the_formula_of_its_module(kind, blocks, batch):
    network, x = trunk(kind, blocks=blocks), features(batch)
    h = network.embed(x.flatten(-2) if kind is FeedForwardTrunk else x)
    for block in network.blocks:
        h = h + block(F.silu(h))
    expected = F.silu(h) @ network.head.weight.T + network.head.bias
    out = network(x)
    torch.testing.assert_close(out, expected.view(*batch, 10, 4))
    if kind is FeedForwardTrunk:  # every site sees every other
        changed = x.clone()
        changed[..., 5, :] += 1
        assert ((network(changed) - out).abs() > 1e-6).any(-1).all()


def test_a_gated_convolution_multiplies_one_by_the_sigmoid_of_another():
    (layer, *_), x = trunk(GatedConvTrunk).blocks, features((), inputs=8)
    values, gates = RingConv.forward(layer, x).split(8, -1)
    torch.testing.assert_close(layer(x), values * gates.sigmoid())


def normalized(h):
    """Over channels and sites jointly, with no weight of its own."""
    return (h - h.mean((-2, -1), keepdim=True)) / (h.var((-2, -1), keepdim=True, correction=0) + 1e-5).sqrt()


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("blocks", [2, 3, 4])
def test_the_original_networks_are_the_published_formulas(batch, blocks):
    x = features(batch)
    for kind in (OriginalTrunk, OriginalEarlyTrunk):
        network = trunk(kind, blocks=blocks)
        layers = [lambda h, w=w: F.leaky_relu(normalized(w(h))) for w in network.layers]
        h = normalized(network.embed(x))
        if kind is OriginalTrunk:
            for first in range(0, blocks, 2):
                change = layers[first](h)
                h = h + (layers[first + 1](change) if first + 1 < blocks else change)
        else:
            h = change = F.leaky_relu(h)
            for layer in layers[:-1]:
                change = layer(change)
            h = layers[-1](h + change)
        torch.testing.assert_close(network(x), network.head(h))
        assert sum(p.numel() for p in network.parameters()) == 15 * 8 + 8 + blocks * (40 * 8 + 8) + 40 * 4 + 4


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("blocks", [1, 2])
def test_the_original_feed_forward_network_is_two_one_for_the_change_and_one_for_the_gates(batch, blocks):
    network, x = trunk(OriginalFeedForwardTrunk, blocks=blocks), features(batch)
    expected = []
    for layers, head in zip(network.layers, network.heads, strict=True):
        h = x.flatten(-2)
        for layer in layers:
            h = layer(h)
            h = (h - h.mean(-1, keepdim=True)) / (h.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
            h = F.leaky_relu(h)
        expected.append(head(h).view(*batch, 10, 2))
    torch.testing.assert_close(network(x), torch.cat(expected, -1))
    assert sum(p.numel() for p in network.parameters()) == 2 * (30 * 8 + 8 + (blocks - 1) * 72 + 20 * 8 + 20)


@pytest.mark.parametrize("batch", BATCHES)
def test_a_bank_uses_the_network_of_each_operator(batch):
    bank, x = trunk(FeedForwardBank), features((*batch, 3))
    phase = torch.randint(2, batch, generator=generator(5))
    out = bank(x, phase)
    assert out.shape == (*batch, 3, 10, 4)
    for place in [()] if batch == () else [(0,), (17,), (63,)]:
        mine, other = (bank.trunks[int(p)](x[place]) for p in (phase[place], 1 - phase[place]))
        torch.testing.assert_close(out[place], mine)
        assert not torch.allclose(out[place], other)
    torch.testing.assert_close(bank(x, torch.ones_like(phase)), bank.trunks[1](x))  # not all operators are there
    firsts = [t.embed.weight for t in untrained(FeedForwardBank, operators=5).trunks]
    assert len(firsts) == 5
    assert not any(torch.equal(firsts[0], other) for other in firsts[1:])


# ---- untrained, and dropped


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("name", NETWORKS)
def test_an_untrained_network_changes_nothing_unless_it_is_the_originals(name, dropout):
    network = untrained(NETWORKS[name], dropout)
    assert (network(features((64, 1)), PHASE, generator()) == 0).all() == (name not in ORIGINALS)
    network(features((64, 1)), PHASE).sum().backward()
    (head, *_) = [p for key, p in network.named_parameters() if "head" in key and key.endswith("weight")]
    assert head.grad.abs().max() > 0  # but it can learn


@pytest.mark.parametrize("name", NETWORKS)
def test_dropout_happens_only_with_a_generator_and_is_its_function(name):
    x = features((64, 1))
    silent, network = trunk(NETWORKS[name]), trunk(NETWORKS[name], dropout=0.4)
    assert torch.equal(network(x, PHASE), silent(x, PHASE))
    assert torch.equal(silent(x, PHASE, generator()), silent(x, PHASE))
    assert torch.equal(network(x, PHASE, generator(3)), network(x, PHASE, generator(3)))
    assert not torch.equal(network(x, PHASE, generator(3)), network(x, PHASE, generator(4)))
    assert not torch.equal(network(x, PHASE, generator(3)), network(x, PHASE))


def test_dropout_drops_whole_channels_and_keeps_the_mean():
    dropped = drop_channels(torch.ones(500, 10, 8), 0.25, generator())
    assert (dropped == dropped[:, :1]).all()
    assert float((dropped == 0).float().mean()) == pytest.approx(0.25, abs=0.03)
    assert dropped.unique().tolist() == [0.0, pytest.approx(1 / 0.75)]
    own = trunk(FeedForwardTrunk, dropout=0.25)._drop(torch.ones(500, 8), generator())  # each number of its own
    assert float((own == 0).float().mean()) == pytest.approx(0.25, abs=0.03)
    assert (own.std(0) > 0).all()
    assert (own.std(1) > 0).any()


def test_two_networks_share_an_odd_number_of_outputs():
    trunk = NETWORKS["ff_original"](3, 5, TrunkSizes(sites=4, operators=1, hidden=6, blocks=1, kernel=3, dropout=0.0))
    assert trunk(torch.zeros(2, 4, 3), torch.zeros(2, dtype=torch.long)).shape == (2, 4, 5)
