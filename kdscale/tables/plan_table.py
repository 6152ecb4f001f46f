"""The output of `kdscale cache plan` as tables: size, time, break-even."""

from collections.abc import Mapping
from typing import Any

from kdscale.formatting import bytes_text, duration_text, number_of
from kdscale.report.table import Table

_STUDENTS = {
    "supervised": "a student alone",
    "cached": "a student from the cache",
    "online": "a student with an online teacher",
}

_WORTH_A_CHANGE = 0.95
"""Share of a step's time below which a faster setting is suggested."""


def plan_table(found: Mapping[str, Any]) -> str:
    """Return sizes by encoding, disk space, times, and when the cache pays off."""
    views = number_of(found["num_views"], "view")
    samples = number_of(found["num_samples"], "sample")
    classes = number_of(found["num_classes"], "class", "classes")
    title = f"{found['recipe']}: {views} of {samples}, {classes}, {_teacher_text(found)}"
    parts = [title, _encodings_table(found), _place_line(found), _times_table(found)]
    cluster = found["cluster"]
    if cluster is not None:
        parts += [_cluster_line(cluster), Table(["figure", "value"], cluster_rows(cluster)).text()]
    return "\n\n".join([*parts, *_suggestions(found), _verdict(found)])


def _teacher_text(found: Mapping[str, Any]) -> str:
    """Return the teacher with its accuracy, if it is known."""
    name, accuracy = f"teacher {found['teacher']}", found["teacher_top1_accuracy"]
    if not found["teacher_is_trained"]:
        return f"{name}, which is not trained yet"
    if accuracy is None:
        return name
    images = number_of(found["teacher_inspected_samples"], "clean training image")
    return f"{name}, top-1 about {100 * accuracy:.1f} % (on {images})"


def _suggestions(found: Mapping[str, Any]) -> list[str]:
    """Return sentences about views that are not used, and settings with which steps are faster."""
    ratio, unused = found["channels_last_over_contiguous_time"], found["unused_views"]
    sentences = []
    if unused:
        views, epochs = found["num_views"], number_of(found["epochs"], "epoch")
        sentences.append(
            f"The student trains for {epochs}, each on one view of each image: {unused} of the "
            f"{views} views of an image {'is' if unused == 1 else 'are'} never used. "
            f"Set views.count = {found['epochs']}, or train longer."
        )
    if ratio is None or ratio > _WORTH_A_CHANGE:
        return sentences
    return [
        *sentences,
        "student.train.memory_format = 'channels_last' makes the student's steps "
        f"about {100 * (1 - ratio):.0f} % shorter here, and moves logits by rounding alone.",
    ]


def _cluster_line(cluster: Mapping[str, Any]) -> str:
    gpus, nodes = number_of(cluster["gpus_per_node"], "GPU"), number_of(cluster["nodes"], "node")
    return f"On {nodes} of {gpus}, {cluster['teacher_images_per_second']:,.0f} images/s a GPU:"


def cluster_rows(cluster: Mapping[str, Any]) -> list[list[str]]:
    """Return name and value of each figure of a cache on a cluster."""
    memory = bytes_text(cluster["process_memory_bytes"])
    windows = cluster["windows"]
    return [
        ["cache, before compression", bytes_text(cluster["bytes"])],
        ["files in a folder", f"{cluster['files']:,}"],
        ["objects in an object store", f"{cluster['objects']:,}"],
        ["build, one builder a GPU", duration_text(cluster["build_seconds"])],
        ["objects' shards a builder", f"{cluster['shards_per_builder']:,}"],
        ["requests of all builders", f"{cluster['build_requests']:,}"],
        ["targets of an epoch", bytes_text(cluster["epoch_bytes"])],
        ["a node reads from its disk or memory, an epoch", bytes_text(cluster["node_read_bytes"])],
        ["a node fetches from an object store, an epoch", bytes_text(cluster["node_fetch_bytes"])],
        ["in requests", f"{cluster['node_requests']:,}"],
        [
            "targets in memory, a process",
            memory if windows == 1 else f"{memory}, {windows} windows",
        ],
        ["collectives a step", str(cluster["collectives_per_step"])],
        ["gradients a step", bytes_text(cluster["gradient_bytes_per_step"])],
    ]


def _encodings_table(found: Mapping[str, Any]) -> str:
    about = "cache" if found["teacher_is_trained"] else "cache, before compression"
    rows = [
        [name, str(size["bytes_per_target"]), bytes_text(size["bytes"]),
         f"<- {found['reason']}" if name == found["encoding"] else ""]
        for name, size in found["encodings"].items()
    ]  # fmt: skip
    return Table(["encoding", "bytes per target", about, ""], rows).text()


def _place_line(found: Mapping[str, Any]) -> str:
    share, path = found["share_built"], found["path"]
    if share == 1:
        return f"{path} is complete: nothing is to be built."
    needed, free = bytes_text(found["needed_bytes"]), found["free_bytes"]
    line = f"{path}: {number_of(found['files'], 'file')}; at most {needed} to write"
    if free is None:  # a remote store does not say
        line += "."
    else:
        line += f", {bytes_text(free)} are free."
    if free is not None and found["needed_bytes"] > free:
        line += " IT DOES NOT FIT: choose another --cache-root or cache.encoding, or fewer views."
    return line + (f" {100 * share:.0f} % of it is built already." if share else "")


def _times_table(found: Mapping[str, Any]) -> str:
    build = [["the build, once for all students", duration_text(found["build_seconds"])]]
    epochs = number_of(found["epochs"], "epoch")
    if found["may_end_early"]:
        epochs = f"up to {epochs}"
    students = [
        [f"{name}, {epochs}", duration_text(seconds)]
        for kind, name in _STUDENTS.items()
        if (seconds := found[f"{kind}_student_seconds"]) is not None
    ]
    processes = found["num_processes"]
    where = f"{processes} such processes" if processes > 1 else "this machine"
    return Table(["what", f"estimated time, {where}"], build + students).text()


def _verdict(found: Mapping[str, Any]) -> str:
    students, epochs = found["break_even_students"], found["break_even_epochs"]
    if found["online_student_seconds"] is None:
        return "views.mode = 'fixed' has no online run to compare with."
    if students is None:
        return "By these estimates the cache does not pay off: an online teacher takes no longer."
    if not found["build_seconds"]:
        return "The cache is built already: every student saves the difference."
    saved = number_of(epochs, "epoch")
    if students == 1:
        return f"By these estimates the cache pays off with the first student, after {saved}."
    return (
        f"By these estimates the cache pays off with student {students}, or after {saved} of one "
        "student."
    )
