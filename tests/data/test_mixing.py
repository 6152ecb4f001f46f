"""Mixup and CutMix: part of the view, whoever computes it."""

from fractions import Fraction
from math import isqrt

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdscale.data.image_dataset import ImageDataset
from kdscale.data.loader import BatchLoader, DeviceImages
from kdscale.data.rng import bits_KB, integers
from kdscale.data.validation_split import split_validation
from kdscale.data.views import lookup_tables
from kdscale.data.views.functional.blending import blend, box_around, paste
from kdscale.data.views.mix_pairs import MixPairs
from kdscale.data.views.operations.mixing import Cutmix, Mixup, MixupOrCutmix
from kdscale.data.views.pipeline import Pipeline
from kdscale.data.views.schedule import ViewSchedule
from kdscale.errors import ConfigError
from tests.data import replay

CPU = torch.device("cpu")
FLIP = "random_horizontal_flip"
CROP = {"name": "random_crop", "padding": 2}
MIXTURES = ["mixup", "cutmix", "mixup_or_cutmix"]


def pipeline(*operations, num_samples=40, validation=0.0, seed=3):
    return Pipeline.parse(operations, seed, pairing=MixPairs(num_samples, validation))


def image_set(num_samples=40, shape=(3, 12, 10)):
    pixels = replay.sample_images(*shape, range(num_samples))
    labels = np.arange(num_samples) * 7 % num_samples
    return ImageDataset(
        pixels, labels, tuple(map(str, range(num_samples))), "", "synthetic", "train"
    )


def images(num_samples=40, shape=(3, 12, 10)):
    return DeviceImages(image_set(num_samples, shape), CPU)


def noise(count, seed, shape=(3, 12, 10)):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator)


# --------------------------------------------------------------------------- pairs


@settings(max_examples=60, deadline=None)
@given(
    num_samples=st.integers(1, 60),
    share=st.sampled_from([0.0, 0.1, 0.5]),
    seed=st.integers(0, 2**63 - 1),
    view=st.integers(0, 300),
)
def test_partners_are_pairs_within_the_trained_and_the_held_out_part(
    num_samples, share, seed, view
):
    partner = MixPairs(num_samples, share).partners(seed, view)
    assert partner[partner].equal(torch.arange(num_samples))
    groups = split_validation(num_samples, share)
    for group in groups:
        assert partner[group].sort().values.equal(group)
    alone = int((partner == torch.arange(num_samples)).sum())
    assert alone == sum(len(group) % 2 for group in groups)


def test_partners_differ_between_views_and_seeds_and_are_uniform():
    pairing = MixPairs(1000)
    first = pairing.partners(0, 0)
    for other in (pairing.partners(0, 1), pairing.partners(1, 0)):
        assert (first == other).double().mean() < 0.01
    distance = torch.cat([pairing.partners(0, v) - torch.arange(1000) for v in range(50)]) % 1000
    counts = torch.bincount(distance // 100, minlength=10).double()
    assert ((counts - 5000) ** 2 / 5000).sum() < 33.7  # chi-square, 9 degrees, 0.9999 quantile


# --------------------------------------------------------------------------- pixels


def test_blend_is_the_rounded_weighted_mean():
    own, other, weight = noise(256, 0), noise(256, 1), torch.arange(256) + 1
    exact = own.long() * weight.view(-1, 1, 1, 1) + other.long() * (256 - weight).view(-1, 1, 1, 1)
    assert blend(own, other, weight).long().equal((exact + 128) // 256)
    assert blend(own, other, torch.full((256,), 256)).equal(own)
    assert blend(own, other, torch.zeros(256, dtype=torch.int64)).equal(other)


def test_cut_changes_one_box_alike_in_every_channel():
    """The public CutMix that cut a slab of one channel is what this guards against."""
    own, other = (
        torch.zeros(500, 3, 12, 10, dtype=torch.uint8),
        torch.ones(500, 3, 12, 10, dtype=torch.uint8),
    )
    bits = bits_KB(0, [(0, draw) for draw in range(4)], 0, torch.arange(500))
    cut, share = Cutmix().mix(own, other, bits)
    for sample in range(500):
        assert (cut[sample] == cut[sample, 0]).all()
        rows = cut[sample, 0].any(1).nonzero().flatten()
        columns = cut[sample, 0].any(0).nonzero().flatten()
        if len(rows):
            box = cut[sample, 0, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            assert box.all()
            assert box.sum() == cut[sample, 0].sum()
        assert share[sample] == np.float32(1 - Fraction(int(cut[sample, 0].sum()), 120))
    assert cut.any(dim=(1, 2, 3)).double().mean() > 0.8


def test_paste_and_box_keep_within_the_image():
    box = box_around(
        torch.tensor([0, 11, 5]), torch.tensor([0, 9, 5]), torch.tensor([3, 3, 0]),
        torch.tensor([4, 4, 4]), torch.Size((12, 10)),
    )  # fmt: skip
    assert box.T.tolist() == [[0, 3, 0, 4], [8, 12, 5, 10], [5, 5, 1, 9]]
    own, other = noise(3, 0), noise(3, 1)
    pasted = paste(own, other, box)
    assert pasted[0, :, :3, :4].equal(other[0, :, :3, :4])
    assert pasted[0, :, 3:].equal(own[0, :, 3:])
    assert pasted[2].equal(own[2])  # no rows, no cut


def test_box_covers_the_share_that_was_drawn():
    bits = bits_KB(1, [(0, draw) for draw in range(4)], 0, torch.arange(2000))
    weight = torch.tensor(lookup_tables.beta(1.0))[integers(bits[1], 1024)]
    sides = [isqrt(int(256 - w) << 24) * 64 >> 17 for w in weight]
    own, other = noise(2000, 0, (1, 64, 64)), noise(2000, 1, (1, 64, 64))
    _, share = Cutmix().mix(own, other, bits)
    row, column = integers(bits[2], 64), integers(bits[3], 64)
    inside = [
        s
        for s, (r, c, h) in enumerate(zip(row.tolist(), column.tolist(), sides, strict=True))
        if h <= r <= 64 - h and h <= c <= 64 - h
    ]
    assert len(inside) > 100
    gap = (share[inside] - weight[inside] / 256).abs().max()
    assert gap <= 0.0625  # whole pixels: the box is at most two rows and columns short


@pytest.mark.parametrize("name", MIXTURES)
def test_probability_0_shows_the_sample_itself(name):
    rendered = images().render_views(pipeline({"name": name, "p": 0.0}), 1, torch.arange(40))
    assert rendered.pixels.equal(torch.from_numpy(image_set().pixels))
    assert (rendered.mix.weight_B == 1).all()


def test_switch_chooses_for_each_sample():
    own, other = noise(4000, 0, (1, 8, 8)), noise(4000, 1, (1, 8, 8))
    bits = bits_KB(9, [(0, draw) for draw in range(5)], 0, torch.arange(4000))
    mixed, share = MixupOrCutmix(switch_p=0.25).mix(own, other, bits)
    cut, outside = Cutmix(1.0).mix(own, other, bits)
    blended, share_of_first = Mixup(0.8).mix(own, other, bits)
    is_cut = (mixed == cut).flatten(1).all(1) & (share == outside)
    is_blended = (mixed == blended).flatten(1).all(1) & (share == share_of_first)
    assert (is_cut | is_blended).all()
    assert abs(is_cut.double().mean() - 0.25) < 0.04  # both where a weight is 1


# --------------------------------------------------------------------------- batches


@pytest.mark.parametrize("name", MIXTURES)
def test_mixed_view_does_not_depend_on_batch_order_or_company(name):
    views = pipeline(CROP, FLIP, name)
    whole = images().render_views(views, 2, torch.arange(40))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    for size in (1, 7, 40):
        for index in order.split(size):
            part = images().render_views(views, 2, index)
            assert part.pixels.equal(whole.pixels[index])
            assert part.mix.weight_B.equal(whole.mix.weight_B[index])
            assert part.mix.index_B.equal(whole.mix.index_B[index])
            assert part.mix.labels_B.equal(part.mix.index_B * 7 % 40)


def test_views_of_different_numbers_in_one_batch_are_those_of_each():
    views, index = pipeline(CROP, FLIP, "mixup"), torch.arange(40)
    number = index % 3
    mixed = images().render_views(views, number, index)
    for view in range(3):
        alone = images().render_views(views, view, index)
        assert mixed.pixels[number == view].equal(alone.pixels[number == view])
        assert mixed.mix.index_B[number == view].equal(alone.mix.index_B[number == view])


def test_partner_has_the_pixels_of_its_own_view():
    """What is mixed in went through the operations before the mixture under its own index."""
    views = pipeline(CROP, FLIP, {"name": "mixup", "alpha": 0.01})
    before = Pipeline.parse([CROP, FLIP], 3)
    pixels = torch.from_numpy(image_set().pixels)
    plain = before(pixels, 5, torch.arange(40))
    rendered = images().render_views(views, 5, torch.arange(40))
    whole = rendered.mix.weight_B == 1
    none = rendered.mix.weight_B == 0
    assert whole.any()
    assert none.any()
    assert rendered.pixels[whole].equal(plain[whole])
    assert rendered.pixels[none].equal(plain[rendered.mix.index_B[none]])


def test_operations_after_a_mixture_see_the_mixture():
    views = pipeline(CROP, "mixup", FLIP)
    mixed = images().render_views(pipeline(CROP, "mixup"), 0, torch.arange(40)).pixels
    flipped = images().render_views(views, 0, torch.arange(40)).pixels
    same = (flipped == mixed).flatten(1).all(1)
    mirrored = (flipped == mixed.flip(-1)).flatten(1).all(1)
    assert (same | mirrored).all()
    assert same.any()
    assert mirrored.any()


def loader(views, samples, **options):
    options = {"seed": 0, "global_batch_size": 8} | options
    return BatchLoader(images(), samples, views, ViewSchedule(3, 0), **options)


@pytest.mark.parametrize("count", [40, 39, 8])
def test_partners_share_a_batch_and_every_sample_is_used_once(count):
    """A set that is decoded as it goes then decodes each image once."""
    views = pipeline(CROP, "mixup", validation=(40 - count) / 40)
    samples, _ = split_validation(40, (40 - count) / 40)
    found = loader(views, samples)
    for epoch in range(3):
        steps = range(epoch * found.steps_per_epoch, (epoch + 1) * found.steps_per_epoch)
        rendered = [found.batch(step) for step in steps]
        assert sorted(torch.cat([b.index for b in rendered]).tolist()) == samples.tolist()
        strangers = sum(len(set(b.mix.index_B.tolist()) - set(b.index.tolist())) for b in rendered)
        assert strangers <= 2 * (count % 2) * len(rendered)  # an odd one out shifts the pairs


def test_held_out_samples_never_show_in_training():
    views = pipeline("mixup", validation=0.3)
    samples, held_out = split_validation(40, 0.3)
    found = loader(views, samples)
    partners = torch.cat([found.batch(s).mix.index_B for s in range(3 * found.steps_per_epoch)])
    assert not set(partners.tolist()) & set(held_out.tolist())


def test_order_of_pairs_differs_between_epochs():
    found = loader(pipeline("mixup"), torch.arange(40))
    first = found.index(0)
    assert not found.index(found.steps_per_epoch).equal(first)
    assert not found.index(3 * found.steps_per_epoch).equal(first)


def test_processes_together_show_what_one_shows():
    views = pipeline(CROP, FLIP, "mixup_or_cutmix")
    alone = loader(views, torch.arange(40))
    parts = [loader(views, torch.arange(40), process=(process, 2)) for process in range(2)]
    for step in range(alone.steps_per_epoch * 2):
        whole, halves = alone.batch(step), [part.batch(step) for part in parts]
        assert torch.cat([half.pixels for half in halves]).equal(whole.pixels)
        assert torch.cat([half.mix.weight_B for half in halves]).equal(whole.mix.weight_B)


def test_split_batch_keeps_partners():
    batch = loader(pipeline("mixup"), torch.arange(40)).batch(0)
    parts = list(batch.split(3))
    assert torch.cat([part.mix.index_B for part in parts]).equal(batch.mix.index_B)
    assert torch.cat([part.pixels for part in parts]).equal(batch.pixels)


# --------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("operations", "message"),
    [
        (["mixup", "cutmix"], "mixup and cutmix: only one operation may mix"),
        ([{"name": "mixup", "alpha": 0.0}], r"mixup: alpha is 0\.0, wanted 0\.01\.\.100"),
        ([{"name": "cutmix", "p": 1.5}], r"cutmix: p is 1\.5, wanted a probability"),
        ([{"name": "mixup_or_cutmix", "switch_p": -1}], "switch_p is -1"),
    ],
)
def test_wrong_mixture_is_refused(operations, message):
    with pytest.raises(ConfigError, match=message):
        pipeline(*operations)


def test_mixture_without_partners_is_refused():
    with pytest.raises(ConfigError, match="mixup needs to know its partners"):
        Pipeline.parse(["mixup"])
    with pytest.raises(ConfigError, match=r"needs too: use `DeviceImages\.render_views`"):
        pipeline("mixup")(noise(4, 0), 0, torch.arange(4))
