"""Write a recipe for a folder of images and a teacher, after looking at both."""

import re
from pathlib import Path

import numpy as np

from kdscale.atomic_write import write_output
from kdscale.commands.teacher_lines import SIDE, TeacherLines, below, lines_of_teacher, to_toml
from kdscale.config import parse_recipe
from kdscale.config.recipe import parse_toml
from kdscale.data.encoded_split import EncodedSplit
from kdscale.data.headers import Headers, read_headers
from kdscale.data.image_dataset import describe_split
from kdscale.data.source import SourceOptions, has_split, open_source
from kdscale.data.split_cut import SplitCut
from kdscale.errors import ConfigError, DataError, StorageError
from kdscale.experiment.cache_spec import check_recipe
from kdscale.formatting import number_of

_SMALL = 96
"""Largest side of images that are cropped with padding, and that a small student is chosen for."""
_TEST_SHARE = 0.1
_VIEWS, _STUDENT_EPOCHS = 10, 30


def write_recipe(
    folder: Path,
    *,
    teacher: str,
    weights: Path | None = None,
    student: str | None = None,
    out: Path | None = None,
    cache_root: Path,
) -> tuple[Path, str]:
    """Write a commented recipe that runs.

    Args:
        folder: images, one folder for each class, below `train` and `test`, or any other source
            that a recipe may name. Images without labels are for teachers without a classifier.
        teacher: name of a model, or a weights file that states its model or is recognised.
        weights: file of the teacher's weights, if `teacher` is a model.
        student: name of a model; None = chosen by the size of the images.
        out: the file; None = `NAME.toml` in the current folder.
        cache_root: folder of decoded images, which the check of the recipe needs.

    Returns:
        The file, and its text.

    Raises:
        ConfigError: the file exists, or a model is unknown.
        KdscaleError: the data or the weights cannot be used.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+|^[._-]+", "-", folder.resolve().name).strip("-") or "mine"
    path = out or Path(f"{name}.toml")
    if path.exists():
        raise ConfigError(f"{path} exists: name another file with --out, or remove it")
    train, problem = _open(str(folder))
    headers = read_headers(train)
    own = lines_of_teacher(
        teacher, weights, channels=headers.channels, num_classes=len(train.classes), recipe=path
    )
    if problem is not None and not own.headless:
        raise problem
    side = _side_of_views(headers, own.side)
    source = [f"source = {to_toml(below(folder, path))}", *(_WITHOUT_LABELS if problem else ())]
    text = _recipe_text(
        name, path, source, train, headers, side, own,
        student or ("resnet20" if side <= _SMALL else "torchvision/resnet18"),
    )  # fmt: skip
    table = parse_toml(text)
    table["data"]["source"] = str(folder)  # it may be relative to the recipe
    file = teacher if weights is None else str(weights)
    if "weights" in table["teacher"]:
        table["teacher"]["weights"] = file
    elif own.pretrained:
        table["teacher"]["train"]["pretrained"] = file
    check_recipe(parse_recipe(table, str(path)), cache_root)
    try:
        write_output(path, text.encode())
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror or error}") from error
    return path, text


# --------------------------------------------------------------------------- looking


def _open(folder: str) -> tuple[EncodedSplit, DataError | None]:
    """Return the training split, and what is wrong with it for a teacher with a classifier.

    A split that has no labels, without labelled test images beside it, is read with
    `data.unlabelled`.
    """
    options = SourceOptions()
    try:
        train = open_source(folder, split="train", require_labels=False, options=options)
        labelled = bool((train.labels >= 0).any())
        if labelled and not has_split(folder, "test", options):
            options = SourceOptions(cut=SplitCut(_TEST_SHARE, test=False, test_split="test"))
            return open_source(folder, split="train", require_labels=False, options=options), None
    except DataError as error:
        return _open_unlabelled(folder, error), error
    try:
        open_source(folder, split="test", require_labels=True, options=options)
    except DataError as error:
        if labelled:
            raise
        return _open_unlabelled(folder, error), error
    return train, None


def _open_unlabelled(folder: str, problem: DataError) -> EncodedSplit:
    """Return the training split without labels; raise `problem` if it cannot be read so, either."""
    options = SourceOptions(unlabelled=("train",))
    try:
        return open_source(folder, split="train", require_labels=False, options=options)
    except DataError:
        raise problem from None


def _side_of_views(headers: Headers, trained: int | None) -> int:
    """Return the side of views: that of small images, or of the teacher, if images are as large."""
    (low, high), (narrow, wide) = headers.sizes
    if headers.one_size and low == narrow <= _SMALL:
        return low
    usual = (min(low, narrow) + min(high, wide)) // 2
    return max(16, min(trained or SIDE, usual // 32 * 32 or usual))


# --------------------------------------------------------------------------- writing


def _recipe_text(
    name: str,
    path: Path,
    source: list[str],
    train: EncodedSplit,
    headers: Headers,
    side: int,
    teacher: TeacherLines,
    student: str,
) -> str:
    file = str(path) if re.fullmatch(r"[\w./-]+", str(path)) else to_toml(str(path))
    (low, high), (narrow, wide) = headers.sizes
    sizes = f"{low} x {narrow}" if headers.one_size else f"{low} to {high} x {narrow} to {wide}"
    labelled = bool((train.labels >= 0).all())
    batch = int(min(128, max(8, 2 ** int(np.log2(max(8, len(train.labels) // 8))))))
    as_stored = headers.one_size and (side, side) == (low, narrow)
    clean = (
        f"# All images are of {side} x {side} pixels, so evaluation needs no resizing."
        if as_stored
        else "# Done to each image for evaluation, and when the student is deployed.\n"
        f'clean = [{{ name = "resize", size = {round(side * 256 / 224)} }}, '
        f'{{ name = "center_crop", size = {side} }}]'
    )
    crop = (
        f'{{ name = "random_crop", padding = {max(1, side // 8)} }}'
        if as_stored
        else f'{{ name = "random_resized_crop", size = {side} }}'
    )
    training = [
        "",
        "[teacher.train]              # once, on the labels" if teacher.training else "",
        *teacher.training,
        f"global_batch_size = {batch}" if teacher.training else "",
    ]
    test = "share of the images that is tested on: there is no test split"
    return "\n".join(
        [
            f"# Written by kdscale init: {describe_split(train).removeprefix('data: ')};",
            f"# {sizes} pixels, {'colour' if headers.channels == 3 else 'grey'}.",
            "# Every field: kdscale recipes --reference. Look at the views and the plan first:",
            f"#   kdscale views {file} --out views.png",
            f"#   kdscale cache plan {file}",
            f"#   kdscale run {file}",
            f"name = {to_toml(name)}",
            "",
            "[data]",
            *source,
            clean,
            *([f"test = {_TEST_SHARE}                   # {test}"] if train.cut else []),
            "# validation = 0.1           # share of training images that chooses the best weights",
            "",
            "[views]                      # the same for teacher and student",
            "# Leave out the flip if left and right matter, as in texts and digits.",
            f'operations = [{crop}, "random_horizontal_flip"]',
            f"count = {_VIEWS}                   # per image; the teacher runs once on each view",
            "",
            "[teacher]",
            f"model = {to_toml(teacher.model)}",
            *teacher.lines,
            *_input_lines(teacher, side),
            '# precision = "bfloat16"     # faster on GPUs',
            *[line for number, line in enumerate(training) if line or not number],
            *([""] if teacher.training else []),
            *(_CACHE_OF_EMBEDDINGS if teacher.headless else ()),
            "[student]",
            f"model = {to_toml(student)}",
            *([_WITHOUT_CLASSIFIER] if teacher.headless else []),
            _input_line(teacher, None),
            "",
            "[student.train]",
            f"epochs = {_STUDENT_EPOCHS}                  # each view is trained on "
            f"{number_of(_STUDENT_EPOCHS // _VIEWS, 'time')}",
            f"global_batch_size = {batch}",
            'schedule = "one_cycle"',
            "learning_rate = 3e-3",
            '# precision = "bfloat16"',
            "",
            "[loss]",
            *(_LOSS_OF_EMBEDDINGS if teacher.headless else _loss_of_logits(labelled=labelled)),
            "",
        ]
    )


_WITHOUT_LABELS = (
    "unlabelled = true            # no folder is a class",
    'test_split = "none"          # later: kdscale evaluate RUN --data LABELLED',
)
_CACHE_OF_EMBEDDINGS = (
    "[cache]",
    'encoding = "none"            # the teacher has no logits',
    'features = ["output"]        # its embedding',
    "",
)
_WITHOUT_CLASSIFIER = "options = { num_classes = 0 }    # evaluated by k-NN and a linear probe"
_LOSS_OF_EMBEDDINGS = (
    "hard_weight = 0.0            # the student has no classifier",
    "soft_weight = 0.0            # the teacher has no logits",
    "feature_weight = 1.0",
    'features = [{ kind = "cosine", student = "output", teacher = "output", project = true }]',
)


def _loss_of_logits(*, labelled: bool) -> list[str]:
    hard, soft = (0.1, 0.9) if labelled else (0.0, 1.0)
    return [
        "temperature = 4.0",
        f"hard_weight = {hard}            # cross-entropy on the labels"
        + ("" if labelled else ": there are none"),
        f"soft_weight = {soft}            # T²·KL(teacher‖student)",
    ]


def _input_lines(teacher: TeacherLines, side: int) -> list[str]:
    """Return the lines of `[teacher]` about its input."""
    if teacher.states_input and any(line.startswith("weights") for line in teacher.lines):
        return ["# Mean, standard deviation, size and classes are stated by the weights."]
    if teacher.side is None or teacher.side <= side:
        return [_input_line(teacher, None)]
    note = f"# Its weights are of images of {teacher.side} pixels."
    return [note, _input_line(teacher, teacher.side)]


def _input_line(teacher: TeacherLines, size: int | None) -> str:
    resized = "" if size is None else f", size = {size}"
    return f"input = {{ mean = {list(teacher.mean)}, std = {list(teacher.std)}{resized} }}"
