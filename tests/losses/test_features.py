"""Losses between features against the papers' equations in float64, and at their edges."""

import pytest
import torch

from kdscale.errors import ConfigError
from kdscale.losses.features import HintRegressor, attention_loss, cosine_loss, hint_loss, rkd_loss
from tests.losses import references


def drawn(*shapes, seed=0):
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=random, dtype=torch.float64) for shape in shapes]


VECTORS = ((6, 5), (6, 5))
OTHER_WIDTH = ((6, 5), (6, 8))
MAPS = ((4, 3, 5, 5), (4, 2, 5, 5))
ONE = ((1, 5), (1, 5))
LOSSES = {
    "cosine": (cosine_loss, references.cosine, (VECTORS, ONE)),
    "attention": (attention_loss, references.attention, (MAPS, ((1, 1, 2, 3), (1, 4, 2, 3)))),
    "rkd": (rkd_loss, references.rkd, (VECTORS, OTHER_WIDTH, ((2, 3), (2, 3)))),
}
CASES = [(name, *case) for name, (_, _, cases) in LOSSES.items() for case in cases]


@pytest.mark.parametrize(("name", "student", "teacher"), CASES)
def test_loss_is_the_papers(name, student, teacher):
    loss, reference, _ = LOSSES[name]
    student, teacher = drawn(student, teacher)
    expected = reference(student.tolist(), teacher.tolist())
    assert loss(student, teacher).item() == pytest.approx(expected, rel=1e-10)
    found = loss(student.float(), teacher.float())
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("name", "student", "teacher"), CASES)
def test_gradient_is_that_of_finite_differences(name, student, teacher):
    student, teacher = drawn(student, teacher)
    loss = LOSSES[name][0]
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), student.requires_grad_())


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (2.0, 3.0)])
def test_weights_of_distances_and_angles(weights):
    student, teacher = drawn(*OTHER_WIDTH)
    expected = references.rkd(student.tolist(), teacher.tolist(), *weights)
    found = rkd_loss(student, teacher, distance_weight=weights[0], angle_weight=weights[1])
    assert found.item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("name", LOSSES)
def test_features_that_agree_cost_nothing_at_any_scale(name):
    loss, _, ((shape, _), *_) = LOSSES[name]
    (teacher,) = drawn(shape)
    assert loss(3 * teacher, teacher).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_dead_features_have_a_finite_loss_and_gradient(name):
    """All zeros, and samples that are all the same: directions and distances of nothing."""
    loss, _, ((shape, teacher_shape), *_) = LOSSES[name]
    (teacher,) = drawn(teacher_shape)
    for value in (0.0, 2.0):
        student = torch.full(shape, value, requires_grad=True)
        for answers in (teacher.float(), torch.zeros(teacher_shape)):
            found = loss(student, answers)
            (gradient,) = torch.autograd.grad(found, student)
            assert torch.isfinite(found)
            assert torch.isfinite(gradient).all()
            assert gradient.abs().max() < 100


@pytest.mark.parametrize("size", [1e-8, 1e8])
@pytest.mark.parametrize("name", LOSSES)
def test_scale_of_float32_features_does_not_matter(name, size):
    loss, _, ((shape, teacher_shape), *_) = LOSSES[name]
    student, teacher = (one.float() for one in drawn(shape, teacher_shape))
    expected = loss(student, teacher).item()
    assert loss(size * student, teacher / size).item() == pytest.approx(expected, rel=1e-4)


def test_relations_of_one_sample_are_none():
    student, teacher = drawn(*ONE)
    loss = rkd_loss(student.requires_grad_(), teacher)
    loss.backward()
    assert loss.item() == 0
    assert (student.grad == 0).all()


def test_equal_samples_of_a_teacher_are_at_distance_zero():
    student, teacher = (one.clone() for one in drawn(*VECTORS))
    teacher[3] = teacher[1]
    student[4] = student[2]
    loss = rkd_loss(student.requires_grad_(), teacher)
    loss.backward()
    assert torch.isfinite(student.grad).all()


def test_cosine_averages_neighbours_of_a_wider_teacher():
    """As the tutorial does with the 2,048 features of its teacher and its student's 1,024."""
    student, teacher = drawn((4, 3, 2, 2), (4, 6, 2, 2))
    pooled = torch.nn.functional.avg_pool1d(teacher.flatten(1), 2)
    expected = 1 - torch.cosine_similarity(student.flatten(1), pooled, dim=1).mean()
    assert cosine_loss(student, teacher).item() == pytest.approx(expected.item(), rel=1e-12)


def test_cosine_of_other_widths_names_both():
    with pytest.raises(ConfigError, match="6 features of the student with 8 of the teacher"):
        cosine_loss(torch.zeros(2, 6), torch.zeros(2, 8))


@pytest.mark.parametrize(
    "shapes", [((2, 6), (2, 6)), ((2, 7, 6), (2, 7, 6)), ((2, 6), (2, 3, 4, 4))]
)
def test_attention_of_what_is_no_map_is_refused(shapes):
    """Of tokens it would be where features are active, not positions."""
    with pytest.raises(ConfigError, match=r"a map \[C, H, W\] is active, got features \[.*6\] of"):
        attention_loss(*(torch.zeros(shape) for shape in shapes))


def test_attention_averages_the_larger_map():
    student, teacher = drawn((3, 4, 8, 8), (3, 2, 4, 4))
    pooled = torch.nn.functional.avg_pool2d(student, 2)
    expected = references.attention(pooled.tolist(), teacher.tolist())
    assert attention_loss(student, teacher).item() == pytest.approx(expected, rel=1e-10)
    assert attention_loss(teacher, student).item() == pytest.approx(expected, rel=1e-10)


# --------------------------------------------------------------------------- hints


def test_tutorials_regressor_has_4640_parameters():
    regressor = HintRegressor((16, 8, 8), (32, 8, 8), kernel_size=3)
    assert sum(one.numel() for one in regressor.parameters()) == 4640


@pytest.mark.parametrize(
    ("student_shape", "teacher_shape", "kernel"),
    [
        ((5,), (7,), 1),
        ((3, 6, 6), (4, 6, 6), 3),
        ((3, 8, 8), (4, 4, 4), 1),
        ((3, 4, 4), (2, 8, 8), 1),
    ],
)
def test_regressor_can_learn_the_hint(student_shape, teacher_shape, kernel):
    torch.manual_seed(0)
    regressor = HintRegressor(student_shape, teacher_shape, kernel).double()
    known = HintRegressor(student_shape, teacher_shape, kernel).double().requires_grad_(False)
    (student,) = drawn((64, *student_shape))
    teacher = known(student)
    before = hint_loss(regressor(student), teacher)
    optimizer = torch.optim.LBFGS(regressor.parameters(), max_iter=60)

    def closure():
        optimizer.zero_grad()
        loss = hint_loss(regressor(student), teacher)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert hint_loss(regressor(student), teacher) < before / 1000


@pytest.mark.parametrize(("teacher", "size"), [((7, 4, 2), (4, 2)), ((7, 16, 4), (8, 4))])
def test_larger_map_of_the_student_is_averaged_to_the_teachers_size_and_then_mapped(teacher, size):
    regressor = HintRegressor((3, 8, 8), teacher).double()
    (student,) = drawn((5, 3, 8, 8))
    mapped = regressor(student)
    assert mapped.shape == (5, 7, *size)
    weight, bias = regressor.map.weight[:, :, 0, 0], regressor.map.bias
    high, wide = 8 // size[0], 8 // size[1]
    averaged = student[0, :, high : 2 * high, wide : 2 * wide].mean((1, 2))
    torch.testing.assert_close(mapped[0, :, 1, 1], weight @ averaged + bias)


def test_hint_is_the_mean_square_of_what_differs():
    mapped, teacher = drawn((3, 2, 2, 2), (3, 2, 2, 2))
    expected = references.mse(mapped.flatten(1).tolist(), teacher.flatten(1).tolist())
    assert hint_loss(mapped, teacher).item() == pytest.approx(expected, rel=1e-12)
    assert torch.autograd.gradcheck(lambda m: hint_loss(m, teacher), mapped.requires_grad_())


@pytest.mark.parametrize(
    ("shapes", "kernel", "message"),
    [
        (((5,), (4, 2, 2)), 1, r"got \[5\] of the student and \[4, 2, 2\] of the teacher"),
        (((5, 2), (5, 2)), 1, "wanted two vectors or two maps"),
        (((3, 4, 4), (3, 4, 4)), 2, "kernel_size is 2: wanted an odd one"),
    ],
)
def test_regressor_that_cannot_be_is_refused(shapes, kernel, message):
    with pytest.raises(ConfigError, match=message):
        HintRegressor(*shapes, kernel)
