"""The fidelity report against examples and against the losses' own gradients."""

import pytest
import torch

from kdscale.building.fidelity import _gradient_cosine, _pull, fidelity
from kdscale.encodings import create_encoding
from kdscale.losses.objective import Objective
from kdscale.targets import DenseTargets, create_codec

GRID = (1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 8.0)
CLASSES = 40
ENCODINGS = {
    name: create_codec(create_encoding(name, CLASSES, top_k=8, temperatures=GRID))
    for name in ("float32", "float16", "int8", "int4", "topk")
}
KEYS = {
    "kl_t1", "kl_t2", "kl_t4", "max_probability_error", "top1_agreement", "gradient_cosine",
    "gradient_cosine_t2", "gradient_cosine_t4",
}  # fmt: skip


@pytest.fixture
def logits():
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(300, CLASSES, generator=random) * 3
    logits[torch.arange(300), torch.arange(300) % CLASSES] += 9
    return logits


def stored(logits, name):
    return ENCODINGS[name].decode(ENCODINGS[name].encode(logits))


def test_exact_storage_is_perfect(logits):
    report = fidelity(logits, stored(logits, "float32"))
    assert report["kl_t1"] == report["kl_t2"] == report["kl_t4"] == 0
    assert report["max_probability_error"] == 0
    assert report["top1_agreement"] == 1
    assert report["gradient_cosine"] == pytest.approx(1)
    assert report.keys() == KEYS


def test_half_precision_is_close_but_seen(logits):
    report = fidelity(logits, stored(logits, "float16"))
    assert 0 < report["kl_t1"] < 1e-4
    assert 0 < report["max_probability_error"] < 1e-2
    assert report["gradient_cosine"] > 0.9999


def test_fewer_bits_cost_more(logits):
    reports = [fidelity(logits, stored(logits, name)) for name in ("float16", "int8", "int4")]
    for key in ("kl_t1", "kl_t2", "kl_t4", "max_probability_error"):
        assert reports[0][key] < reports[1][key] < reports[2][key]
    for key in ("gradient_cosine", "gradient_cosine_t2", "gradient_cosine_t4"):
        assert reports[0][key] > reports[1][key] > reports[2][key] > 0.9


def test_other_logits_are_distinguished():
    full = torch.tensor([[4.0, 0.0]]).repeat(100, 1)
    report = fidelity(full, DenseTargets(full.flip(1)))
    p, q = full.double().softmax(1)[0]
    assert report["top1_agreement"] == 0
    assert report["max_probability_error"] == pytest.approx(float(p - q))
    assert report["kl_t1"] == pytest.approx(float((p - q) * 4))
    assert report["gradient_cosine"] < 0


def test_divergence_of_top_k_reads_the_rest_as_evenly_spread(logits):
    targets = stored(logits, "topk")
    for temperature in (1, 2, 4):
        p = (logits.double() / temperature).softmax(1)
        q = torch.zeros_like(p).scatter(
            1, targets.ids_BK.long(), p.gather(1, targets.ids_BK.long())
        )
        q = torch.where(q > 0, q, (1 - q.sum(1, keepdim=True)) / (CLASSES - 8))
        expected = (p * (p / q).log()).sum(1).mean() * temperature**2
        found = fidelity(logits, targets)[f"kl_t{temperature}"]
        assert found == pytest.approx(float(expected), rel=1e-2)


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.5])
def test_gradients_compared_are_those_of_the_objective(logits, name, temperature):
    targets = stored(logits, name)
    student = torch.randn(logits.shape, generator=torch.Generator().manual_seed(5)).requires_grad_()
    losses = Objective(0.0, 1.0, temperature)(student, targets, torch.zeros(300, dtype=torch.int64))
    (found,) = torch.autograd.grad(losses.total(), student)
    q = (student.detach().double() / temperature).softmax(1)
    expected = temperature * (q - _pull(targets, q, temperature)) / len(q)
    assert torch.allclose(found.double(), expected, atol=1e-7)


def test_measuring_leaves_the_global_generator_alone(logits):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = _gradient_cosine(logits.double(), stored(logits, "int4"), 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert _gradient_cosine(logits.double(), stored(logits, "int4"), 2) == first


@pytest.mark.parametrize("name", ENCODINGS)
def test_calibration_of_full_and_stored_where_there_are_labels(logits, name):
    report = fidelity(logits, stored(logits, name), logits.argmax(1))
    limit = 0.1 if name == "int4" else 0.01
    assert report["calibration_error_stored"] == pytest.approx(
        report["calibration_error"], abs=limit
    )


def test_tails_are_reported_at_each_temperature(logits):
    report = fidelity(logits, stored(logits, "topk"))
    assert report.keys() == KEYS | {"tail_mass", "tail_interpolation_error"}
    for temperature, found in zip(GRID, report["tail_mass"], strict=True):
        p = (logits.double() / temperature).softmax(1).sort(descending=True).values
        assert found == pytest.approx(float(p[:, 8:].sum(1).mean()), rel=1e-2)
    assert report["tail_mass"] == sorted(report["tail_mass"])
    assert 0 < report["tail_interpolation_error"] < 0.005


def test_coarser_grid_is_reported_as_such_and_one_temperature_has_nothing_between(logits):
    def error(grid):
        codec = create_codec(create_encoding("topk", CLASSES, top_k=8, temperatures=grid))
        return fidelity(logits, codec.decode(codec.encode(logits)))

    assert error((1.0, 8.0))["tail_interpolation_error"] > 0.005
    alone = error((1.0,))
    assert alone["tail_interpolation_error"] == 0
    assert alone["kl_t2"] is None
    assert alone["gradient_cosine_t4"] is None
