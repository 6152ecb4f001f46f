"""The model card of a student: README.md of its repository, with the Hub's YAML header.

What it states comes from the run's files. Paths of this machine are reduced to their last part.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w
from huggingface_hub import EvalResult, ModelCardData

from kdscale.experiment.trained_models import TrainedModel
from kdscale.formatting import number_of
from kdscale.local_paths import without_paths
from kdscale.models.untrusted import is_code
from kdscale.runs.folder import RunFolder, read_run_file

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_METRICS = {
    "top1_accuracy": "top-1 accuracy",
    "top5_accuracy": "top-5 accuracy",
    "macro_precision": "macro precision",
    "macro_recall": "macro recall",
    "calibration_error": "calibration error (ECE)",
    "agreement": "agreement with the teacher (top-1)",
    "knn_top1_accuracy": "k-NN top-1 accuracy",
    "probe_top1_accuracy": "linear probe top-1 accuracy",
}
"""Names of metrics 0..1 that a card states, by their keys in a run's files."""


def model_card(
    trained: TrainedModel, name: str, about: Mapping[str, Any], licence: str | None
) -> str:
    """Return README.md.

    Args:
        trained: the model of a finished run.
        name: USER/NAME of the repository.
        about: the metadata of its weights.
        licence: by the Hub's name, such as "apache-2.0"; None = not stated.
    """
    table = without_paths(trained.recipe.model_dump(exclude_none=True))
    metrics, model = _metrics(trained), table[trained.role]["model"]
    headless, tested = trained.section.headless, _tested_on(trained, table)
    gives = (
        "without a classifier: it gives embeddings"
        if headless
        else number_of(about["num_classes"], "class", "classes")
    )
    task = "image-feature-extraction" if headless else "image-classification"
    parts = [
        f"---\n{_header(table, tested, model, name, metrics, licence, task)}\n---",
        f"# {name.rpartition('/')[2]}",
        f"A {trained.role} that [kdscale](https://pypi.org/project/kdscale/) {about['kdscale']} "
        f"trained: `{model}`, {gives}.",
        _table(_origin(trained, table, about)),
        f"## Results\n\nOn split `{tested[1]}` of `{tested[0]}`, of these weights.\n\n"
        + _table({_METRICS[key]: f"{value:.4f}" for key, value in metrics.items()}),
        "## How to load\n\n" + _how_to_load(model, name, headless=headless),
        f"## Recipe\n\n```toml\n{tomli_w.dumps(table)}```",
        "## Trackers\n\n" + (_trackers(table[trained.role]) or "None."),
        "## Licence\n\n" + (licence or "Not stated: the owner of this repository states it. It "
        "depends on the teacher and the images."),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _header(
    table: Mapping[str, Any],
    tested: tuple[str, str],
    model: str,
    name: str,
    metrics: Mapping[str, float],
    licence: str | None,
    task: str,
) -> str:
    """Return the YAML that the Hub reads."""
    library = model.partition("/")[0]
    trained_on, (source, split) = table["data"]["source"], tested
    results = [
        EvalResult(
            task_type=task, dataset_type=source, dataset_name=source,
            dataset_split=split, metric_type="accuracy",
            metric_name=_METRICS[key], metric_value=round(value, 4),
        )
        for key, value in metrics.items() if key.endswith("top1_accuracy")
    ]  # fmt: skip
    data = ModelCardData(
        library_name=library if library in ("timm", "transformers") else "kdscale",
        license=licence,
        tags=[task, "knowledge-distillation", "kdscale"],
        pipeline_tag=task,
        datasets=trained_on if _HUB_NAME.fullmatch(trained_on) else None,
        model_name=name.rpartition("/")[2] if results else None,
        eval_results=results or None,
    )
    return str(data.to_yaml()).strip()


def _origin(
    trained: TrainedModel, table: Mapping[str, Any], about: Mapping[str, Any]
) -> dict[str, str]:
    """Return teacher, cache, data and input, by their names."""
    folder = RunFolder(Path(trained.name))
    content, result = folder.read_content(), folder.read_result()
    _, channels, height, width = about["pixels"]["shape"]
    teacher = f"`{table['teacher']['model']}`"
    if trained.taught_by is not None:
        teacher += f", weights `{trained.taught_by}` (SHA-256)"
    learned = {"none": "labels alone", "teacher": "the teacher at every step", "cache": "a cache"}
    return {
        "teacher": teacher if trained.targets != "none" else "none",
        "targets": learned[trained.targets],
        "cache": f"`{content.cache}`" if content is not None and content.cache else "none",
        "recipe": f"`{table['name']}`, seed {trained.seed}, {trained.weights} weights",
        "data set": f"`{table['data']['source']}`",
        "parameters": f"{result['num_parameters']:,}" if "num_parameters" in result else "",
        "input": f"uint8 pixels, {channels} x {height} x {width}, after `data.clean`",
    }


def _tested_on(trained: TrainedModel, table: Mapping[str, Any]) -> tuple[str, str]:
    """Return source and split of the images of the results; a run may have no test split."""
    if not trained.recipe.data.is_tested and trained.evaluation.is_file():
        found = without_paths(read_run_file(trained.evaluation))
        return found["test_source"], found["test_split"]
    data = table["data"]
    return data["source"], data["train_split"] if data.get("test") else data["test_split"]


def _metrics(trained: TrainedModel) -> dict[str, float]:
    """Return the metrics of the weights: of their evaluation, else of the training."""
    if trained.evaluation.is_file():
        found = read_run_file(trained.evaluation)
    else:
        found = RunFolder(Path(trained.name)).read_result()
        if trained.weights == "best":
            found = {"top1_accuracy": found.get("chosen_top1_accuracy")}
    if trained.section.headless:  # which the nearest neighbours classify
        nearest = found.get("knn_top1_accuracy", found.get("top1_accuracy"))
        probe = found.get("probe_top1_accuracy")
        found = {"knn_top1_accuracy": nearest, "probe_top1_accuracy": probe}
    return {key: found[key] for key in _METRICS if isinstance(found.get(key), int | float)}


def _table(rows: Mapping[str, str]) -> str:
    lines = [f"| {key} | {value} |" for key, value in rows.items() if value]
    return "\n".join(["| | |", "| --- | --- |", *(lines or ["| (none) | |"])])


def _trackers(section: Mapping[str, Any]) -> str:
    """Return the names of the trackers that logged the training."""
    return ", ".join((section.get("train") or {}).get("log_with") or ())


def _how_to_load(model: str, name: str, *, headless: bool) -> str:
    trust = ", trust_code=True" if is_code(model) else ""
    output = "embeddings" if headless else "logits"
    lines = [
        "```python",
        "from kdscale import load_student",
        f'student = load_student("hf://{name}"{trust})',
        f"{output} = student(pixels)  # torch.uint8 [B, C, H, W], after data.clean",
        *([] if headless else ["names = student.class_names"]),
        "```",
    ]
    if not headless:
        lines += [
            "",
            "```bash",
            f"kdscale predict hf://{name} IMAGE_OR_FOLDER{' --trust-code' if trust else ''}",
            "```",
        ]
    auto = "AutoModel" if headless else "AutoModelForImageClassification"
    library = {
        "timm": f'import timm\nmodel = timm.create_model("hf-hub:{name}", pretrained=True)',
        "transformers": f"from transformers import {auto}\n"
        f'model = {auto}.from_pretrained("{name}")',
    }.get(model.partition("/")[0])
    if library is not None:
        lines += ["", "The model without its preprocessing:", "", f"```python\n{library}\n```"]
    if trust:
        lines += ["", f"Its model is code, `{model}`: it has to be importable, and is run."]
    return "\n".join(lines)
