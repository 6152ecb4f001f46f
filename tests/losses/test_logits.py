"""Losses from logits against the papers' equations in float64, and at the edges of numbers."""

import math

import pytest
import torch

from kdscale.errors import ConfigError
from kdscale.losses.logits import (
    bucket_kl_loss,
    bucket_wttm_loss,
    dist_loss,
    kl_loss,
    mse_loss,
    standardized,
    wttm_loss,
)
from kdscale.losses.target_class import dkd_loss, nkd_loss
from kdscale.targets import TopKTargets
from tests.losses import references

GRID = (1.0, 2.0, 4.0)


def drawn(samples, classes, *, seed=0, scale=3.0):
    """Logits of a student and a teacher in float64, and labels."""
    random = torch.Generator().manual_seed(seed)
    student, teacher = (
        scale * torch.randn(samples, classes, generator=random, dtype=torch.float64)
        for _ in range(2)
    )
    return student, teacher, torch.randint(classes, (samples,), generator=random)


def kept(teacher, top_k, temperatures=GRID):
    """Unrounded: what is tested is the loss."""
    best = teacher.topk(top_k, dim=1)
    rest = teacher.scatter(1, best.indices, -math.inf)
    tails = torch.stack([(rest / one).logsumexp(1) for one in temperatures], dim=1)
    return TopKTargets(best.indices.int(), best.values, tails, temperatures, teacher.shape[1])


def without_label(loss):
    return lambda student, teacher, _, *rest, **options: loss(student, teacher, *rest, **options)


LOSSES = {
    "kd": (without_label(kl_loss), None),
    "mse": (without_label(mse_loss), without_label(references.mse)),
    "dkd": (dkd_loss, references.dkd),
    "nkd": (nkd_loss, references.nkd),
    "dist": (without_label(dist_loss), without_label(references.dist)),
    "wttm": (without_label(wttm_loss), without_label(references.wttm)),
}
SOFTENED = [name for name in LOSSES if name not in ("kd", "mse")]
each_loss = pytest.mark.parametrize("name", LOSSES)


# --------------------------------------------------------------------------- the equations


@pytest.mark.parametrize("shape", [(9, 7), (2, 30), (40, 3), (3, 2)])
@pytest.mark.parametrize("name", [name for name in LOSSES if name != "kd"])
def test_loss_with_published_defaults_is_the_papers(name, shape):
    loss, reference = LOSSES[name]
    student, teacher, labels = drawn(*shape)
    expected = reference(student.tolist(), teacher.tolist(), labels.tolist())
    assert loss(student, teacher, labels).item() == pytest.approx(expected, rel=1e-10, abs=1e-12)
    found = loss(student.float(), teacher.float(), labels)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 10.0])
@pytest.mark.parametrize("name", SOFTENED)
def test_loss_at_a_temperature_is_the_papers(name, temperature):
    loss, reference = LOSSES[name]
    student, teacher, labels = drawn(9, 7)
    expected = reference(student.tolist(), teacher.tolist(), labels.tolist(), temperature)
    found = loss(student, teacher, labels, temperature)
    assert found.item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(
    ("name", "options", "theirs"),
    [
        ("dkd", {"target_weight": 0.3, "non_target_weight": 0.0}, {"alpha": 0.3, "beta": 0.0}),
        ("dkd", {"target_weight": 0.0, "non_target_weight": 2.0}, {"alpha": 0.0, "beta": 2.0}),
        ("nkd", {"non_target_weight": 0.5}, {"gamma": 0.5}),
        ("dist", {"inter_weight": 2.0, "intra_weight": 0.0}, {"beta": 2.0, "gamma": 0.0}),
        ("dist", {"inter_weight": 0.0, "intra_weight": 3.0}, {"beta": 0.0, "gamma": 3.0}),
    ],
)
def test_weights_of_parts_are_the_papers(name, options, theirs):
    loss, reference = LOSSES[name]
    student, teacher, labels = drawn(9, 7)
    expected = reference(student.tolist(), teacher.tolist(), labels.tolist(), **theirs)
    found = loss(student, teacher, labels, **options)
    assert found.item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd_is_dkd_whose_others_weigh_what_the_teacher_gives_them(temperature):
    """What decoupling means; sample by sample, as that weight is each sample's own."""
    for student, teacher, label in zip(*drawn(12, 6), strict=True):
        one = student.unsqueeze(0), teacher.unsqueeze(0)
        others = 1 - (teacher / temperature).softmax(0)[label].item()
        found = dkd_loss(*one, label.unsqueeze(0), temperature, non_target_weight=others)
        assert found.item() == pytest.approx(kl_loss(*one, temperature).item(), rel=1e-9)


def test_standardized_logits_are_the_papers():
    student, teacher, _ = drawn(9, 7)
    for logits in (student, teacher):
        expected = [references.standardize(row) for row in logits.tolist()]
        assert torch.allclose(standardized(logits), torch.tensor(expected).double(), atol=1e-12)
    found = standardized(student)
    assert found.mean(1).abs().max() < 1e-12
    assert (found.square().mean(1) - 1).abs().max() < 1e-12


def test_standardized_loss_does_not_see_shift_and_scale():
    student, teacher, _ = drawn(9, 7)
    expected = kl_loss(standardized(student), standardized(teacher), 2.0)
    found = kl_loss(standardized(7 * student - 100), standardized(teacher / 50), 2.0)
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)


# --------------------------------------------------------------------------- gradients


CHECKED = [(name, shape) for name in LOSSES for shape in ((5, 4), (1, 6), (4, 2))]
CHECKED.remove(("dist", (4, 2)))  # of two classes Pearson's is the sign of a difference


@pytest.mark.parametrize(("name", "shape"), CHECKED)
def test_gradient_is_that_of_finite_differences(name, shape):
    student, teacher, labels = drawn(*shape)
    loss = LOSSES[name][0]
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher, labels), student)
    assert torch.autograd.gradcheck(
        lambda s: loss(standardized(s), standardized(teacher), labels), student
    )


@each_loss
def test_student_that_agrees_has_no_gradient(name):
    """The label's term of NKD aside: it is a cross-entropy, which asks for more of the label."""
    _, teacher, labels = drawn(6, 5)
    if name == "nkd":
        teacher.scatter_(1, labels.unsqueeze(1), 500.0)  # as sure of it as the term asks for
    student = teacher.clone().requires_grad_()
    temperature = {"wttm": (1.0,)}.get(name, ())  # at another, the student is to be like no softmax
    loss = LOSSES[name][0](student, teacher, labels, *temperature)
    loss.backward()
    assert student.grad.abs().max() < 1e-9
    if name != "nkd":
        assert loss.item() == pytest.approx(0, abs=1e-9)


def test_wttm_is_met_by_a_student_like_the_softened_teacher():
    _, teacher, _ = drawn(6, 5)
    assert wttm_loss(teacher / 4, teacher, 4.0).item() == pytest.approx(0, abs=1e-12)
    assert wttm_loss(teacher, teacher, 4.0) > 0.1


# --------------------------------------------------------------------------- the largest alone


@pytest.mark.parametrize("temperature", GRID)
@pytest.mark.parametrize("top_k", [1, 3, 6])
def test_bucket_wttm_is_the_papers_over_top_k_and_the_rest(top_k, temperature):
    student, teacher, _ = drawn(9, 7)
    targets = kept(teacher, top_k)
    ids = targets.ids_BK.tolist()
    expected = references.bucket_wttm(student.tolist(), teacher.tolist(), ids, temperature)
    found = bucket_wttm_loss(student, targets, temperature)
    assert found.item() == pytest.approx(expected, rel=1e-9)


def test_bucket_wttm_of_all_but_one_class_is_that_of_all_classes():
    student, teacher, _ = drawn(9, 7)
    found = bucket_wttm_loss(student, kept(teacher, 6), 4.0)
    assert found.item() == pytest.approx(wttm_loss(student, teacher, 4.0).item(), rel=1e-9)


@pytest.mark.parametrize("loss", [bucket_kl_loss, bucket_wttm_loss])
def test_gradient_from_the_largest_alone_is_that_of_finite_differences(loss):
    student, teacher, _ = drawn(5, 8)
    targets = kept(teacher, 3)
    assert torch.autograd.gradcheck(lambda s: loss(s, targets, 4.0), student.requires_grad_())


@pytest.mark.parametrize("loss", [bucket_kl_loss, bucket_wttm_loss])
def test_tail_of_1e_12_keeps_its_digits(loss):
    """Twelve digits below the kept: one minus their sum would be 0 in float32."""
    student, teacher, _ = drawn(4, 30, scale=0.1)
    teacher[:, :5] += 27.6
    found, exact = (loss(s, kept(t, 5), 1.0) for s, t in
                    ((student.float(), teacher.float()), (student, teacher)))  # fmt: skip
    assert found.item() == pytest.approx(exact.item(), rel=1e-5)
    assert exact > 1


# --------------------------------------------------------------------------- edges


@pytest.mark.parametrize("size", [50.0, 1e4, -1e4])
@each_loss
def test_huge_logits_give_a_finite_loss_and_gradient(name, size):
    student = torch.tensor([[size, -size, 0.0], [0.0, size, 1.0]], requires_grad=True)
    teacher = torch.tensor([[-size, size, 0.0], [0.0, 1.0, size]])
    loss = LOSSES[name][0](student, teacher, torch.tensor([0, 1]))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


@each_loss
def test_teacher_that_is_certain_gives_a_finite_loss_of_the_right_size(name):
    student, teacher, labels = drawn(6, 5)
    teacher.scatter_add_(1, labels.unsqueeze(1), torch.full((6, 1), 27.6).double())
    found = LOSSES[name][0](student.float(), teacher.float(), labels)
    exact = LOSSES[name][0](student, teacher, labels)
    assert found.item() == pytest.approx(exact.item(), rel=1e-5)


@pytest.mark.parametrize("classes", [3, 7, 10, 100])
@each_loss
def test_equal_logits_of_a_student_that_knows_nothing_give_no_wild_gradient(name, classes):
    """A head of zeros: rounding must not look like a direction."""
    _, teacher, labels = drawn(6, classes)
    student = torch.zeros(6, classes, requires_grad=True)
    loss = LOSSES[name][0]
    for wrap in (torch.Tensor.float, standardized):
        (gradient,) = torch.autograd.grad(loss(wrap(student), wrap(teacher), labels), student)
        assert gradient.abs().max() < 20


@each_loss
def test_equal_logits_of_teacher_and_student_are_met(name):
    student = torch.full((3, 4), 2.5, requires_grad=True)
    loss = LOSSES[name][0](student, torch.zeros(3, 4), torch.tensor([0, 1, 2]))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


def test_dist_of_one_sample_has_no_relation_within_classes():
    student, teacher, _ = drawn(1, 6)
    probabilities = [references.softmax(logits.tolist()[0]) for logits in (student, teacher)]
    expected = 1 - references.pearson(*probabilities)
    found = dist_loss(student.requires_grad_(), teacher)
    assert found.item() == pytest.approx(expected + 1, rel=1e-10)
    found.backward()
    assert torch.isfinite(student.grad).all()


def test_dist_couples_the_samples_of_a_batch():
    student, teacher, _ = drawn(8, 5)
    halves = (dist_loss(student[half], teacher[half]) for half in (slice(4), slice(4, 8)))
    assert (sum(halves) / 2).item() != pytest.approx(dist_loss(student, teacher).item(), rel=1e-3)


@pytest.mark.parametrize("name", ["kd", "mse", "dkd", "nkd", "wttm"])
def test_all_other_losses_are_means_over_samples(name):
    student, teacher, labels = drawn(8, 5)
    whole = LOSSES[name][0](student, teacher, labels)
    parts = [LOSSES[name][0](student[i : i + 1], teacher[i : i + 1], labels[i : i + 1])
             for i in range(8)]  # fmt: skip
    assert (sum(parts) / 8).item() == pytest.approx(whole.item(), rel=1e-10)


@each_loss
def test_half_precision_logits_are_weighed_in_float32(name):
    student, teacher, labels = (x.bfloat16() if x.is_floating_point() else x for x in drawn(9, 7))
    found = LOSSES[name][0](student, teacher.float(), labels)
    exact = LOSSES[name][0](student.double(), teacher.double(), labels)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(exact.item(), rel=1e-4)


@pytest.mark.parametrize("name", ["dkd", "nkd"])
def test_samples_without_a_label_are_refused_by_name(name):
    student, teacher, labels = drawn(4, 5)
    labels[2] = -1
    with pytest.raises(ConfigError, match=rf"loss '{name}' .* 1 of 4 samples have no label"):
        LOSSES[name][0](student, teacher, labels)
