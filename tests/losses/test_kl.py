"""Losses against the textbook, and at the edges of what numbers hold."""

import math

import pytest
import torch
import torch.nn.functional as F

from kdscale.errors import ConfigError
from kdscale.losses.logits import bucket_kl_loss, kl_loss, label_loss
from kdscale.targets import DenseTargets, Mix, TopKTargets


def textbook_kl(student, teacher, temperature):
    """Sum over classes of p (log p - log q), with plain exponentials, sample by sample."""
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        q = [math.exp(x / temperature) for x in s]
        p = [math.exp(x / temperature) for x in t]
        q = [x / sum(q) for x in q]
        p = [x / sum(p) for x in p]
        total += sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))
    return temperature**2 * total / len(student)


@pytest.fixture
def logits():
    random = torch.Generator().manual_seed(0)
    return [3 * torch.randn(9, 7, generator=random) for _ in range(2)]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0, 20.0])
def test_kl_is_the_textbooks(logits, temperature):
    loss = kl_loss(*logits, temperature)
    assert loss.item() == pytest.approx(textbook_kl(*logits, temperature), rel=1e-5)


def test_kl_is_zero_with_zero_gradient_where_the_student_agrees(logits):
    teacher = logits[1]
    student = (teacher + 5.0).requires_grad_()  # softmax does not see the shift
    loss = kl_loss(student, teacher, 4.0)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert student.grad.abs().max() < 1e-6


def test_kl_is_positive_and_not_symmetric(logits):
    one, other = kl_loss(*logits, 2.0), kl_loss(*reversed(logits), 2.0)
    assert one > 0
    assert other > 0
    assert one.item() != pytest.approx(other.item(), rel=1e-3)


def test_kl_is_a_mean_over_samples(logits):
    student, teacher = logits
    doubled = kl_loss(torch.cat([student] * 2), torch.cat([teacher] * 2), 3.0)
    assert doubled.item() == pytest.approx(kl_loss(student, teacher, 3.0).item(), rel=1e-6)


def gradient_size(student, teacher, temperature):
    student = student.clone().requires_grad_()
    kl_loss(student, teacher, temperature).backward()
    return student.grad.norm().item()


def test_gradient_keeps_its_size_at_any_high_temperature(logits):
    """Hinton et al., equation 4: with T², it tends to a constant; without, it falls with T²."""
    sizes = [gradient_size(*logits, temperature) for temperature in (50.0, 100.0, 400.0)]
    assert sizes[1] == pytest.approx(sizes[2], rel=0.02)
    assert sizes[0] == pytest.approx(sizes[2], rel=0.05)


def test_gradient_is_the_closed_form(logits):
    student, teacher = logits[0].clone().requires_grad_(), logits[1]
    kl_loss(student, teacher, 4.0).backward()
    expected = 4.0 * ((student / 4).softmax(1) - (teacher / 4).softmax(1)) / len(student)
    assert torch.allclose(student.grad, expected, atol=1e-6)


def test_kl_formula_passes_a_numerical_gradient_check(logits):
    """In float64: the loss itself works in float32, too coarse for finite differences."""
    student, teacher = (x.double() for x in logits)
    student.requires_grad_()

    def kl(s):
        p, q = F.log_softmax(teacher / 4, 1), F.log_softmax(s / 4, 1)
        return (p.exp() * (p - q)).sum(1).mean() * 16

    assert torch.autograd.gradcheck(kl, student)
    expected = torch.autograd.grad(kl(student), student)[0]
    ours = logits[0].clone().requires_grad_()
    kl_loss(ours, logits[1], 4.0).backward()
    assert torch.allclose(ours.grad.double(), expected, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_logits_give_a_finite_loss_and_gradient(temperature, size):
    student = torch.tensor([[size, -size, 0.0]], requires_grad=True)
    teacher = torch.tensor([[-size, size, 0.0]])
    loss = kl_loss(student, teacher, temperature)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()
    assert loss.item() == pytest.approx(2e4 * temperature, rel=1e-4)


def test_half_precision_logits_are_weighed_in_float32(logits):
    student, teacher = (x.bfloat16() for x in logits)
    loss = kl_loss(student, teacher, 4.0)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(textbook_kl(student, teacher, 4.0), rel=1e-4)


def test_no_gradient_reaches_the_teacher(logits):
    student, teacher = logits
    loss = kl_loss(student.requires_grad_(), DenseTargets(teacher).logits_BC, 2.0)
    loss.backward()
    assert teacher.grad is None


@pytest.mark.parametrize("mixed", [False, True])
def test_smoothed_label_loss_is_the_cross_entropy_with_smoothed_targets(mixed):
    logits, labels = torch.randn(6, 5), torch.arange(6) % 5
    mix = (
        Mix(labels.roll(1), labels_B=labels.roll(1), weight_B=torch.linspace(0.1, 0.9, 6))
        if mixed
        else None
    )
    one_hot = torch.eye(5)[labels]
    if mix is not None:
        weight = mix.weight_B[:, None]
        one_hot = weight * one_hot + (1 - weight) * torch.eye(5)[mix.labels_B]
    target = 0.9 * one_hot + 0.1 / 5
    expected = -(target * logits.log_softmax(1)).sum(1).mean()
    assert label_loss(logits, labels, mix, smoothing=0.1).item() == pytest.approx(
        expected.item(), rel=1e-6
    )


def test_label_loss_is_the_mean_of_minus_log_probability():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    labels = torch.tensor([0, 0])
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1))) / 2
    assert label_loss(logits, labels).item() == pytest.approx(expected, rel=1e-6)


# ------------------------------------------------------------------ the largest classes alone


def textbook_bucket_kl(student, teacher, ids, temperature):
    """In float64, from all logits of both: kept classes, and one outcome for all others."""
    both = []
    for logits in (teacher, student):
        log_p = (logits.double() / temperature).log_softmax(1)
        rest = log_p.scatter(1, ids, -math.inf).logsumexp(1, keepdim=True)
        both.append(torch.cat([log_p.gather(1, ids), rest], dim=1))
    p, q = both
    return float(((p.exp() * (p - q)).sum(1).mean()) * temperature**2)


def top_k_of(teacher, top_k, temperatures):
    """Unrounded: what is tested here is the loss, not float16."""
    kept = teacher.double().topk(top_k, dim=1)
    rest = teacher.double().scatter(1, kept.indices, -math.inf)
    tails = torch.stack([(rest / t).logsumexp(1) for t in temperatures], dim=1)
    return TopKTargets(
        kept.indices.int(), kept.values.float(), tails.float(), temperatures, teacher.shape[1]
    )


TAILS = {"1e-12": 27.6, "1e-4": 9.2, "half": 0.0, "0.999": -6.9}


@pytest.mark.parametrize("gap", TAILS.values(), ids=TAILS)
@pytest.mark.parametrize("student_gap", TAILS.values(), ids=[f"student {name}" for name in TAILS])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_bucket_kl_is_the_textbooks_to_float32(gap, student_gap, temperature):
    random = torch.Generator().manual_seed(1)
    teacher, student = (torch.randn(16, 30, generator=random) / 100 for _ in range(2))
    # Five classes are kept; the others' weight beside them is e^-gap, at the loss's temperature.
    balance = math.log(25 / 5)
    teacher[:, :5] += (gap + balance) * temperature
    student[:, :5] += (student_gap + balance) * temperature
    if gap + balance < 1:  # or others would be among the largest
        teacher[:, :5] = teacher[:, :5].clamp(min=1.0)
        teacher[:, 5:] += max(0.0, -(gap + balance)) * temperature
        teacher[:, 5:] = teacher[:, 5:].clamp(max=float(teacher[:, :5].min()) - 1e-3)
    targets = top_k_of(teacher, 5, (1.0, 2.0, 4.0))
    found = bucket_kl_loss(student, targets, temperature).item()
    expected = textbook_bucket_kl(student, teacher, targets.ids_BK.long(), temperature)
    assert found == pytest.approx(expected, rel=2e-6, abs=2e-6)


def test_bucket_kl_where_the_student_agrees_on_the_rest_is_the_kl_of_all_classes(logits):
    teacher = logits[1]
    student = teacher.clone()
    top = teacher.topk(3, dim=1).indices
    student.scatter_add_(1, top, torch.randn(9, 3, generator=torch.Generator().manual_seed(2)))
    for temperature in (1.0, 2.0, 4.0):
        found = bucket_kl_loss(student, top_k_of(teacher, 3, (1.0, 2.0, 4.0)), temperature)
        expected = textbook_kl(student, teacher, temperature)
        assert found.item() == pytest.approx(expected, rel=1e-5)


def test_bucket_kl_is_at_most_the_kl_of_all_classes(logits):
    student, teacher = logits
    for top_k in range(1, 6):
        bucket = bucket_kl_loss(student, top_k_of(teacher, top_k, (2.0,)), 2.0)
        assert 0 < bucket < kl_loss(student, teacher, 2.0)


def test_bucket_kl_of_all_but_one_class_is_the_kl_of_all_classes(logits):
    student, teacher = logits
    found = bucket_kl_loss(student, top_k_of(teacher, 6, (2.0,)), 2.0)
    assert found.item() == pytest.approx(kl_loss(student, teacher, 2.0).item(), rel=1e-5)


def test_bucket_gradient_is_that_of_the_textbook(logits):
    student, teacher = logits[0].clone().requires_grad_(), logits[1]
    targets = top_k_of(teacher, 3, (1.0, 4.0))
    bucket_kl_loss(student, targets, 4.0).backward()
    reference = logits[0].double().requires_grad_()
    ids = targets.ids_BK.long()
    p, q = ((x.double() / 4).log_softmax(1) for x in (teacher, reference))
    rest = [x.scatter(1, ids, -math.inf).logsumexp(1, keepdim=True) for x in (p, q)]
    p, q = (torch.cat([x.gather(1, ids), r], 1) for x, r in zip((p, q), rest, strict=True))
    ((p.exp() * (p - q)).sum(1).mean() * 16).backward()
    assert torch.allclose(student.grad.double(), reference.grad, atol=1e-6)


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_bucket_kl_of_extreme_logits_is_finite(size):
    student = torch.tensor([[size, -size, 0.0, 1.0]], requires_grad=True)
    targets = top_k_of(torch.tensor([[-size, size, 0.0, 1.0]]), 2, (1.0, 4.0))
    loss = bucket_kl_loss(student, targets, 4.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


def test_temperature_beyond_the_grid_is_refused_not_guessed(logits):
    with pytest.raises(ConfigError, match="temperature 5 is beyond the cache's grid, 1 to 4"):
        bucket_kl_loss(logits[0], top_k_of(logits[1], 3, (1.0, 4.0)), 5.0)
