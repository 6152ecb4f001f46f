"""Codecs: what is stored of targets and what is refused."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdscale.encodings import ENCODINGS, Embedding, create_encoding
from kdscale.errors import CacheError, ConfigError
from kdscale.targets import (
    DenseTargets,
    Head,
    TopKTargets,
    all_classes,
    create_codec,
    encode_features,
    mixed_targets,
    tail_weights,
)

GRID = (1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 8.0)
FINITE = st.lists(st.floats(-6e4, 6e4, width=32), min_size=3, max_size=3)
ROWS = st.lists(FINITE, min_size=1, max_size=8)


def codec_of(name, num_classes, top_k=2, temperatures=GRID):
    encoding = create_encoding(
        name, num_classes, top_k=top_k, temperatures=temperatures, embedding_size=num_classes
    )
    # The head that gives back what enters it.
    return create_codec(encoding, Head(torch.eye(num_classes), torch.zeros(num_classes)))


def there_and_back(logits, name):
    codec = codec_of(name, logits.shape[1])
    return codec.decode(codec.encode(logits, logits))


# ------------------------------------------------------------------ round trips


@given(ROWS)
def test_float32_gives_back_every_bit(rows):
    logits = torch.tensor(rows, dtype=torch.float32)
    assert torch.equal(there_and_back(logits, "float32").logits_BC, logits)


@given(ROWS)
def test_float16_gives_back_the_nearest_half(rows):
    logits = torch.tensor(rows, dtype=torch.float32)
    assert torch.equal(there_and_back(logits, "float16").logits_BC, logits.half().float())


@pytest.mark.parametrize(("name", "steps"), [("int8", 255), ("int4", 15)])
@given(st.lists(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=3, max_size=3),
                min_size=1, max_size=8))  # fmt: skip
def test_integers_give_back_what_is_within_half_a_step(name, steps, rows):
    logits = torch.tensor(rows, dtype=torch.float32)
    found = there_and_back(logits, name).logits_BC.double()
    logits = logits.double()
    low, high = logits.aminmax(dim=1, keepdim=True)
    rounding = logits.abs().amax(1, keepdim=True) * 1e-6 + 1e-37  # of scale, product and sum
    assert ((found - logits).abs() <= (high - low) / steps / 2 + rounding).all()
    assert torch.equal(found.gather(1, logits.argmin(1, keepdim=True)), low)


@given(st.lists(st.lists(st.floats(-60, 60, width=32), min_size=6, max_size=6), min_size=1,
                max_size=8))  # fmt: skip
def test_top_k_gives_back_the_largest_and_the_weight_of_the_rest(rows):
    logits = torch.tensor(rows, dtype=torch.float32)
    found = there_and_back(logits, "topk")
    assert torch.equal(found.logits_BK, logits.sort(descending=True).values[:, :2].half().float())
    assert torch.equal(logits.gather(1, found.ids_BK.long()).half().float(), found.logits_BK)
    assert (found.ids_BK[:, 0] != found.ids_BK[:, 1]).all()
    rest = logits.double().sort(descending=True).values[:, 2:]
    for number, temperature in enumerate(GRID):
        exact = (rest / temperature).logsumexp(1)
        assert torch.allclose(found.tails_BG[:, number].double(), exact, atol=1e-5, rtol=1e-6)


def test_equal_logits_are_stored_in_the_order_of_their_classes():
    logits = torch.tensor([[1.0, 4.0, 4.0, 0.0], [4.0, 1.0, 0.0, 4.0]])
    assert there_and_back(logits, "topk").ids_BK.tolist() == [[1, 2], [0, 3]]


@pytest.mark.parametrize("name", ["float32", "float16"])
def test_encoding_twice_changes_nothing_more(name):
    once = there_and_back(torch.randn(16, 5) * 20, name).logits_BC
    assert torch.equal(there_and_back(once, name).logits_BC, once)


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_encoding_integers_twice_changes_no_code(name):
    codec = codec_of(name, 5)
    first = codec.encode(torch.randn(64, 5) * 20)
    second = codec.encode(codec.decode(first).logits_BC)
    np.testing.assert_array_equal(first["codes"], second["codes"])


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("num_classes", [3, 10, 255, 256, 300])
def test_stored_types_and_sizes_are_those_announced(name, num_classes):
    codec = codec_of(name, num_classes)
    logits = torch.randn(7, num_classes)
    stored = codec.encode(logits, logits)
    assert sum(values.nbytes for values in stored.values()) == 7 * codec.encoding.bytes_per_target
    assert all(len(values) == 7 for values in stored.values())


@pytest.mark.parametrize(("num_classes", "dtype"), [(255, "uint8"), (256, "uint16")])
def test_ids_leave_the_largest_of_their_type_for_absence(num_classes, dtype):
    logits = torch.arange(num_classes).float()[None]
    ids = codec_of("topk", num_classes).encode(logits)["ids"]
    assert ids.tolist() == [[num_classes - 1, num_classes - 2]]
    assert ids.dtype == dtype
    assert ids.max() < np.iinfo(dtype).max


@pytest.mark.parametrize("name", ["int8", "int4"])
@pytest.mark.parametrize("num_classes", [2, 3])
def test_no_row_of_codes_is_all_ones(name, num_classes):
    """Which is what absence reads as: the smallest logit of a row has code 0."""
    rows = list(itertools.product((-5.0, 0.0, 5.0), repeat=num_classes))
    codes = codec_of(name, num_classes).encode(torch.tensor(rows))["codes"]
    assert not (codes == 255).all(axis=1).any()


# ------------------------------------------------------------------ exact bytes


def test_bytes_of_small_examples():
    logits = torch.tensor([[3.0, -1.0, 0.0], [0.0, 5.1, 5.1]])
    stored = codec_of("int8", 3).encode(logits)
    assert stored["codes"].tolist() == [[255, 0, 64], [0, 255, 255]]
    assert stored["scale"].tolist() == [np.float32(4 / 255), np.float32(np.float32(5.1) / 255)]
    assert stored["offset"].tolist() == [-1, 0]
    stored = codec_of("int4", 3).encode(logits)
    assert stored["codes"].tolist() == [[0x0F, 0x04], [0xF0, 0x0F]]  # first class: low half
    stored = codec_of("topk", 3, 2, (1.0, 2.0)).encode(logits)
    assert stored["ids"].tolist()[0] == [0, 2]
    assert stored["logits"].tolist() == [[3.0, 0.0], [np.float16(5.1)] * 2]
    assert stored["tails"].tolist() == [[-1.0, -0.5], [0.0, 0.0]]


def test_equal_logits_have_codes_and_scales_of_zero():
    for name in ("int8", "int4"):
        stored = codec_of(name, 5).encode(torch.full((2, 5), 7.25))
        assert not stored["codes"].any()
        assert not stored["scale"].any()
        assert there_and_back(torch.full((2, 5), 7.25), name).logits_BC.unique().tolist() == [7.25]


def test_bfloat16_logits_of_a_teacher_are_stored():
    logits = torch.randn(4, 3).bfloat16()
    assert torch.equal(there_and_back(logits, "float32").logits_BC, logits.float())


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ENCODINGS)
def test_logits_that_are_not_finite_are_refused(value, name):
    logits = torch.zeros(2, 3)
    logits[1, 2] = value
    with pytest.raises(CacheError, match="not finite"):
        there_and_back(logits, name)


@pytest.mark.parametrize("name", ["float16", "topk"])
@pytest.mark.parametrize("value", [7e4, -7e4])
def test_logit_beyond_the_encoding_is_refused_and_a_larger_one_named(name, value):
    logits = torch.tensor([[0.0, value, value]])
    with pytest.raises(CacheError, match=r"float16's 65504: set cache\.encoding = 'float32'"):
        there_and_back(logits, name)
    assert torch.equal(there_and_back(logits, "float32").logits_BC, logits)


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_range_beyond_float32_is_refused(name):
    with pytest.raises(CacheError, match=f"beyond {name}'s"):
        there_and_back(torch.tensor([[-3e38, 3e38, 0.0]]), name)
    found = there_and_back(torch.tensor([[-7e4, 7e4, 0.0]]), name).logits_BC
    assert found[0, :2].tolist() == [-7e4, 7e4]


def test_tail_beyond_float32_is_refused():
    codec = codec_of("topk", 3, 2, (0.1, 1.0))
    with pytest.raises(CacheError, match=r"beyond float32 once divided by 0\.1"):
        codec.encode(torch.tensor([[1.0, 0.0, -3e38]]))


def test_what_needs_all_classes_refuses_top_k_by_name():
    targets = there_and_back(torch.randn(4, 5), "topk")
    with pytest.raises(ConfigError, match=r"logit_mse needs the logits of all 5 .* largest 2"):
        all_classes(targets, "logit_mse")
    with pytest.raises(ConfigError, match="mixing targets needs the logits"):
        mixed_targets(targets, targets, torch.ones(4))
    dense = DenseTargets(torch.randn(4, 5))
    assert all_classes(dense, "logit_mse") is dense.logits_BC


# ------------------------------------------------------------------ embeddings and features


def teacher(num_classes=40, size=16, samples=64, seed=0):
    """What enters a head, the head, and its logits in float64."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(samples, size, generator=generator).relu() * 3
    head = Head(*(torch.randn(*shape, generator=generator) for shape in
                  ((num_classes, size), (num_classes,))))  # fmt: skip
    exact = inputs.double() @ head.weight_CD.double().T + head.bias_C.double()
    return inputs, head, exact


def embedded(head):
    return create_codec(Embedding(len(head.weight_CD), head.inputs), head)


@pytest.mark.parametrize("seed", range(5))
def test_embedding_gives_back_the_logits_of_its_rounded_values(seed):
    inputs, head, exact = teacher(seed=seed)
    stored = embedded(head).encode(exact.float(), inputs)
    assert list(stored) == ["embedding"]
    found = embedded(head).decode(stored).logits_BC.double()
    rounded = inputs.half().double() @ head.weight_CD.double().T + head.bias_C.double()
    assert torch.allclose(found, rounded, rtol=0, atol=2e-5)  # float32's own, of sums of 16 terms
    bound = inputs.double() @ head.weight_CD.double().abs().T * 2**-11 + 2e-5
    assert ((found - exact).abs() <= bound).all()


def test_head_is_stored_and_read_back():
    _, head, _ = teacher()
    again = Head.parse(head.arrays())
    assert torch.equal(again.weight_CD, head.weight_CD)
    assert torch.equal(again.bias_C, head.bias_C)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 7e4])
def test_embedding_beyond_float16_is_refused(value):
    inputs, head, exact = teacher()
    inputs[3, 2] = value
    with pytest.raises(
        CacheError, match=r"beyond float16's 65504: set cache\.encoding = 'float16'"
    ):
        embedded(head).encode(exact.float(), inputs)


@pytest.mark.parametrize(
    "change",
    [
        lambda z: z.clamp(max=3),
        lambda z: z * 1.5,
        lambda z: z.log_softmax(1),
        lambda z: z.roll(1, 1),
    ],
)
def test_logits_that_the_head_does_not_make_are_refused(change):
    """As of a teacher that does what its probe did not show: one that clips large logits."""
    inputs, head, exact = teacher()
    with pytest.raises(CacheError, match="logits are not its last layer's input times its weight"):
        embedded(head).encode(change(exact).float(), inputs)


@pytest.mark.parametrize("seed", range(5))
def test_logits_that_were_computed_in_bfloat16_are_those_of_the_head(seed):
    inputs, head, _ = teacher(size=512, seed=seed)
    low = torch.nn.functional.linear(inputs.bfloat16(), *(
        part.bfloat16() for part in (head.weight_CD, head.bias_C)))  # fmt: skip
    embedded(head).encode(low.float(), inputs.bfloat16())


def test_features_are_stored_as_float16_and_named_where_they_do_not_fit():
    maps = torch.randn(4, 2, 3, 3)
    stored = encode_features({"layer1.0": maps})
    assert stored["features.layer1.0"].dtype == np.float16
    np.testing.assert_array_equal(stored["features.layer1.0"], maps.half().numpy())
    for value in (7e4, float("nan")):
        maps[1, 1, 1, 1] = value
        with pytest.raises(CacheError, match=r"module 'layer1\.0' of the teacher gave a value"):
            encode_features({"layer1.0": maps})


def test_features_of_two_images_are_not_mixed():
    targets = DenseTargets(torch.randn(4, 5), {"stem": torch.randn(4, 3)})
    with pytest.raises(ConfigError, match="are no mean of what a module gives of the two"):
        mixed_targets(targets, targets, torch.ones(4))


# ------------------------------------------------------------------ parts and answers


@pytest.mark.parametrize("name", ENCODINGS)
def test_rows_are_those_of_the_requested_samples(name):
    logits = torch.randn(9, 5)
    index = torch.tensor([7, 0, 0, 3])
    some = there_and_back(logits, name).rows(index).to(torch.device("cpu"))
    alone = there_and_back(logits[index], name)
    assert type(some) is type(alone)
    for field in some.__dataclass_fields__:
        one, other = getattr(some, field), getattr(alone, field)
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_targets_carry_their_features_with_them():
    features = {"features.stem": np.arange(36, dtype=np.float16).reshape(9, 2, 2)}
    index = torch.tensor([7, 0, 0, 3])
    for name in ENCODINGS:
        logits = torch.randn(9, 5)
        codec = codec_of(name, 5)
        found = codec.decode(codec.encode(logits, logits) | features)
        found = found.rows(index).to(torch.device("cpu")).features
        assert list(found) == ["stem"]
        assert found["stem"].dtype == torch.float32
        assert found["stem"].tolist() == features["features.stem"][index.numpy()].tolist()


@pytest.mark.parametrize("name", [name for name, one in ENCODINGS.items() if one.has_logits])
def test_most_probable_classes_are_those_of_the_largest_probabilities(name):
    logits = torch.tensor([[0.0, 6.0, 3.0, -2.0]])
    probabilities, classes = there_and_back(logits, name).most_probable(2)
    expected = logits.softmax(1).sort(descending=True)
    assert classes.tolist() == expected.indices[:, :2].tolist()
    assert torch.allclose(probabilities, expected.values[:, :2], atol=0.03)
    assert there_and_back(logits, name).most_probable(9)[0].shape[1] == (2 if name == "topk" else 4)


# ------------------------------------------------------------------ between temperatures


def test_on_the_grid_a_tail_is_the_stored_value_itself():
    targets = there_and_back(torch.randn(50, 30) * 9, "topk")
    for number, temperature in enumerate(GRID):
        assert torch.equal(targets.bucket_logits(temperature)[:, -1], targets.tails_BG[:, number])


@given(st.floats(1.0, 8.0))
def test_weights_are_exact_for_straight_lines(temperature):
    at_infinity, weights = tail_weights(temperature, GRID)
    assert math.isclose(at_infinity + sum(weights), 1, rel_tol=1e-12)
    line = sum(w * (3 / t) for w, t in zip(weights, GRID, strict=True))
    assert math.isclose(line, 3 / temperature, rel_tol=1e-9)


@settings(deadline=None)
@given(st.floats(1.0, 8.0), st.integers(20, 300), st.floats(0.5, 5.0), st.integers(0, 100))
def test_tail_between_temperatures_is_right_within_half_a_percent(temperature, classes, size, seed):
    logits = torch.randn(8, classes, generator=torch.Generator().manual_seed(seed)) * size
    codec = codec_of("topk", classes, 10)
    found = codec.decode(codec.encode(logits)).bucket_logits(temperature)[:, -1].double()
    rest = logits.double().sort(descending=True).values[:, 10:]
    exact = (rest / temperature).logsumexp(1)
    assert ((found - exact).expm1().abs() < 0.005).all()


@pytest.mark.parametrize("temperature", [0.99, 8.01, 20.0])
def test_temperature_beyond_the_grid_is_refused(temperature):
    with pytest.raises(ConfigError, match=r"beyond the cache's grid, 1 to 8: set loss\.temp"):
        there_and_back(torch.randn(2, 5), "topk").bucket_logits(temperature)


@pytest.mark.parametrize("grid", [(1.0,), (0.5, 1.0), (1.0, 4.0), (1.0, 2.0, 4.0)])
def test_short_grids_work(grid):
    codec = codec_of("topk", 30, 10, grid)
    targets = codec.decode(codec.encode(torch.randn(8, 30)))
    assert isinstance(targets, TopKTargets)
    for temperature in (grid[0], (grid[0] + grid[-1]) / 2, grid[-1]):
        assert torch.isfinite(targets.bucket_logits(temperature)).all()
