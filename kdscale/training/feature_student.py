"""A student in training with feature losses: its features, and adapters that map them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdscale.data.rng import derive_seed
from kdscale.errors import ConfigError
from kdscale.losses.features import HintRegressor
from kdscale.losses.objective import FeatureTerm
from kdscale.models.feature_extraction import find_module, named

_ADAPTERS = derive_seed(0x61646170746572)  # "adapter"


class StudentWithFeatures(nn.Module):
    """A student that returns features beside its logits in training mode.

    Adapters are parts of it, so that they are trained, saved in checkpoints and shared by processes
    with the student. In evaluation mode it is the student.

    Args:
        student: gives logits.
        terms: the losses between features.
        adapters: what maps the student's features before each of them; None maps nothing.
        with_logits: whether the loss needs the logits too. Where it does not, they are returned
            without their gradient: processes that share gradients wait for all that could come.

    Raises:
        ConfigError: the student has no such module.
    """

    def __init__(
        self,
        student: nn.Module,
        terms: Sequence[FeatureTerm],
        adapters: Sequence[nn.Module | None],
        *,
        with_logits: bool = True,
    ) -> None:
        super().__init__()
        self.student, self.with_logits = student, with_logits
        self.adapters = nn.ModuleList(one or nn.Identity() for one in adapters)
        self._names = [term.student for term in terms]
        self._seen: dict[str, Tensor] | None = None  # None outside a forward pass
        modules = named(student)
        for name in dict.fromkeys(self._names):
            find_module(modules, name, "the student").register_forward_hook(self._noting(name))

    def forward(self, inputs: Tensor) -> Any:
        """Return logits [B, C]; in training mode with the features of each term."""
        if not self.training:
            return self.student(inputs)
        seen = self._seen = {}
        try:
            logits = self.student(inputs)
        finally:
            self._seen = None
        for name in self._names:
            if name not in seen:
                raise ConfigError(
                    f"module {name!r} takes no part in the student's forward pass: name another "
                    "one in loss.features"
                )
        pairs = zip(self.adapters, self._names, strict=True)
        features = tuple(adapter(seen[name]) for adapter, name in pairs)
        return (logits if self.with_logits else logits.detach()), features

    def _noting(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            if self._seen is None:
                return
            if not isinstance(output, Tensor) or name in self._seen:
                what = "gives no one tensor" if name not in self._seen else "is called twice"
                raise ConfigError(
                    f"module {name!r} of the student {what} in a forward pass: name another one in "
                    "loss.features"
                )
            self._seen[name] = output.clone()  # a layer after it may work in place

        return note


def with_features(
    student: nn.Module,
    terms: Sequence[FeatureTerm],
    inputs: Tensor,
    teacher_shapes: Mapping[str, Sequence[int]],
    seed: int,
    *,
    with_logits: bool = True,
) -> nn.Module:
    """Return the student with the features and adapters of its losses; itself without such losses.

    Args:
        student: on the CPU, not yet trained.
        terms: the losses between features.
        inputs: preprocessed images [B, C, H, W].
        teacher_shapes: of one sample's features, by module.
        seed: of the adapters' first weights; no other draw depends on them.
        with_logits: as of `StudentWithFeatures`.

    Raises:
        ConfigError: a module is unknown, or its features cannot be compared with the teacher's.
    """
    if not terms:
        return student
    probe = StudentWithFeatures(student, terms, [None] * len(terms), with_logits=with_logits)
    seen = _features_of(probe, inputs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, _ADAPTERS) >> 1)
        adapters = [
            _adapter(term, one.shape[1:], teacher_shapes[term.teacher])
            for term, one in zip(terms, seen, strict=True)
        ]
    probe.adapters = nn.ModuleList(one or nn.Identity() for one in adapters)
    for term, adapter, one in zip(terms, probe.adapters, seen, strict=True):
        _check_compared(term, adapter(one), teacher_shapes[term.teacher])
    return probe


def _check_compared(term: FeatureTerm, mapped: Tensor, teacher_shape: Sequence[int]) -> None:
    """Raise the error of a loss between such shapes before the first step."""
    try:
        term.compare(mapped, mapped.new_zeros(len(mapped), *teacher_shape))
    except ConfigError as error:
        raise _of(term, error) from None


def _of(term: FeatureTerm, error: ConfigError) -> ConfigError:
    """Return the error with the modules that it is about."""
    return ConfigError(
        f"loss.features with student = {term.student!r} and teacher = {term.teacher!r}: {error}"
    )


def unwrap_student(model: nn.Module) -> nn.Module:
    """Return the student alone, which is saved, exported and counted."""
    return model.student if isinstance(model, StudentWithFeatures) else model


def _adapter(term: FeatureTerm, student: Sequence[int], teacher: Sequence[int]) -> nn.Module | None:
    if term.kind != "hint" and not term.project:
        return None
    try:
        return HintRegressor(student, teacher, int(term.options.get("kernel_size", 1)))
    except ConfigError as error:
        raise _of(term, error) from None


@torch.no_grad()
def _features_of(model: StudentWithFeatures, inputs: Tensor) -> Sequence[Tensor]:
    """Return the features of a forward pass that changes no statistics, dropout or mode."""
    parts = [(part, part.training) for part in model.modules()]
    model.eval()
    model.training = True  # of itself alone
    features: Sequence[Tensor] = model(inputs)[1]
    for part, mode in parts:
        part.training = mode
    return features
