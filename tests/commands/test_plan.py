"""`kdscale cache plan`: what it says is what then comes true, and it writes nothing."""

import json
import re
import shutil
from dataclasses import replace

import pytest

from kdscale.cache.catalog import bytes_stored
from kdscale.cache.manifest import read_manifest, write_manifest
from kdscale.commands.timing import affordable_batch
from kdscale.formatting import duration_text
from kdscale.report.training_cost import break_even
from kdscale.tables.plan_table import plan_table

STUDENTS = ("supervised_student_seconds", "cached_student_seconds", "online_student_seconds")


@pytest.fixture
def plan(kdscale):
    """The JSON object of a plan of a tenth of a second."""

    def run(recipe, *args):
        done = kdscale("cache", "plan", recipe, "--seconds", 0.1, "--json", *args)
        assert done.exit_code == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.fixture
def taught(write_recipe, tiny_teacher):
    """A tiny recipe with a trained teacher, and changes."""

    def write(**changes):
        teacher = {"weights": tiny_teacher, **changes.pop("teacher", {})}
        return write_recipe(teacher=teacher, **changes)

    return write


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_json_has_the_documented_fields_and_they_agree(plan, taught):
    found = plan(taught())
    assert found["bytes"] == found["encodings"]["float32"]["bytes"]
    assert all(found[name] > 0 for name in ("build_seconds", *STUDENTS))
    assert found["build_seconds"] == found["whole_build_seconds"]
    build, cached, online = (found[name] for name in ("build_seconds", *STUDENTS[1:]))
    students = found["break_even_students"]
    if students is not None:  # of models this small, one may be as fast as the other
        assert build + students * cached <= students * online
        assert students == 1 or build + (students - 1) * cached > (students - 1) * online
    assert found["num_views"] == 3
    assert found["num_processes"] == 1


def test_files_and_bytes_are_those_of_the_cache_that_is_then_built(plan, kdscale, taught, tmp_path):
    recipe = taught(cache={"encoding": "int8"})
    found = plan(recipe)
    done = kdscale("cache", "build", recipe)
    assert done.exit_code == 0, done.stderr
    cache = tmp_path / "cache/tiny.zarr"
    assert found["path"] == "cache/tiny.zarr"
    assert found["files"] == len(files_below(cache))
    # What the build measures is added to the manifest; rows differ in how well they compress.
    assert found["bytes"] == pytest.approx(bytes_stored(cache), abs=1024)
    assert found["encoding"] == read_manifest(cache).encoding
    assert found["encodings"]["int8"]["bytes_per_target"] == read_manifest(cache).bytes_per_target


def test_nothing_is_written_but_decoded_images(plan, taught, tmp_path):
    recipe = taught()
    before = set(files_below(tmp_path))
    plan(recipe)
    new = {path for path in files_below(tmp_path) if path not in before}
    assert new
    assert all(path.startswith("cache/images/") for path in new)


def test_decoding_of_images_is_reported_and_only_then(kdscale, taught):
    recipe = taught()
    first, second = (kdscale("cache", "plan", recipe, "--seconds", 0.1).stderr for _ in range(2))
    assert "decoded images are stored in cache/images/" in first
    assert "decoded images" not in second


def test_finished_cache_costs_nothing_any_more(plan, kdscale, taught):
    recipe = taught()
    kdscale("cache", "build", recipe)
    found = plan(recipe)
    assert (found["share_built"], found["build_seconds"], found["needed_bytes"]) == (1.0, 0.0, 0)
    assert found["whole_build_seconds"] > 0
    assert found["break_even_students"] in (1, None)
    assert "is complete: nothing is to be built" in plan_table(found)


def test_accuracy_of_the_teacher_and_views_that_are_never_used_are_stated(plan, taught):
    text = plan_table(plan(taught()))
    assert re.search(r"top-1 about \d+\.\d % \(on 128 clean training images\)", text)
    assert "never used" not in text  # 3 views, 3 epochs
    found = plan(taught(), "--set", "views.count=5")
    assert found["unused_views"] == 2
    assert "2 of the 5 views of an image are never used. Set views.count = 3" in plan_table(found)
    assert "1 of the 5 views of an image is never used" in plan_table({**found, "unused_views": 1})


def test_larger_cache_serves_a_smaller_plan(plan, kdscale, taught):
    recipe = taught()
    kdscale("cache", "build", recipe)
    assert plan(recipe, "--set", "views.count=2")["share_built"] == 1.0


def test_what_an_unfinished_cache_still_lacks_is_what_is_left_to_pay(
    plan, kdscale, taught, tmp_path
):
    recipe = taught()
    kdscale("cache", "build", recipe, "--set", "views.count=2")
    found = plan(recipe)
    assert found["share_built"] == pytest.approx(2 / 3, abs=1e-4)
    assert found["build_seconds"] == pytest.approx(found["whole_build_seconds"] / 3, abs=2e-6)
    assert "67 % of it is built already" in plan_table(found)
    for shard in range(4):  # a build that was stopped has fewer records
        (tmp_path / f"cache/tiny.zarr/commits/c/1/{shard}/0").unlink()
    unfinished(tmp_path / "cache/tiny.zarr")
    assert plan(recipe)["share_built"] == pytest.approx(1 / 3, abs=1e-4)


def test_further_views_of_a_cache_with_more_features_are_counted_with_them(plan, kdscale, taught):
    """As they will be built: the cache's features are the cache's, whatever a recipe asks for."""
    recipe = taught(cache={"shard_samples": 32, "encoding": "int8"})
    features = ("--set", 'cache.features=["1"]')
    kdscale("cache", "build", recipe, *features, "--set", "views.count=2")
    assert plan(recipe)["needed_bytes"] == plan(recipe, *features)["needed_bytes"] > 0


def unfinished(path):
    write_manifest(path, replace(read_manifest(path), complete=False))


def test_cache_stopped_before_its_arrays_were_laid_out_counts_as_nothing(
    plan, taught, kdscale, tmp_path
):
    recipe = taught()
    kdscale("cache", "build", recipe)
    cache = tmp_path / "cache/tiny.zarr"
    unfinished(cache)
    for child in cache.iterdir():
        if child.is_dir():
            shutil.rmtree(child)
    assert plan(recipe)["share_built"] == 0.0


def test_cache_of_another_name_that_fits_is_found(plan, kdscale, taught):
    recipe = taught()
    kdscale("cache", "build", recipe, "--cache", "cache/other.zarr")
    assert plan(recipe)["path"] == "cache/other.zarr"


def test_named_cache_of_other_content_is_refused(kdscale, taught):
    recipe = taught()
    kdscale("cache", "build", recipe, "--cache", "cache/other.zarr")
    done = kdscale("cache", "plan", recipe, "--cache", "cache/other.zarr", "--set", "views.seed=5")
    assert done.exit_code == 1
    assert "views.seed: the cache has 0, the recipe asks for 5" in done.stderr


def test_untrained_teacher_is_timed_and_reported_as_untrained(kdscale, write_recipe):
    done = kdscale("cache", "plan", write_recipe(), "--seconds", 0.1)
    assert done.exit_code == 0, done.stderr
    assert "which is not trained yet" in done.stdout
    assert "before compression" in done.stdout


def test_bytes_of_an_untrained_teacher_are_those_before_compression(plan, write_recipe):
    found = plan(write_recipe())
    assert found["encodings"]["float32"]["bytes"] > 3 * 128 * (16 + 8)
    assert not found["teacher_is_trained"]


def test_auto_says_why(plan, kdscale, taught):
    recipe = taught(cache={"encoding": "auto", "budget_bytes": 8})
    found = plan(recipe)
    assert found["encoding"] == "float16"
    assert "cache.budget_bytes is 8" in found["reason"]
    assert f"<- {found['reason']}" in plan_table(found)


def test_top_k_of_all_classes_is_no_choice(plan, taught):
    found = plan(taught(), "--set", "cache.top_k=4")
    assert list(found["encodings"]) == ["float32", "float16", "int8", "int4", "embedding"]
    assert "topk" in plan(taught(), "--set", "cache.top_k=2")["encodings"]


def test_plan_of_an_embedding_with_features_comes_true(plan, taught, tmp_path, kdscale):
    changes = ["--set", "cache.encoding=embedding", "--set", 'cache.features=["2"]']
    found = plan(taught(), *changes)
    sizes = found["encodings"]
    assert found["encoding"] == "embedding"
    assert sizes["embedding"]["bytes_per_target"] == 2 * 32
    without = plan(taught())["encodings"]
    # Those of a hidden layer, of 32 values, whatever the encoding.
    features = 2 * 32 * found["num_views"] * found["num_samples"]
    assert sizes["float16"]["bytes"] - without["float16"]["bytes"] > features
    built = json.loads(
        kdscale("cache", "info", kdscale("cache", "build", taught(), *changes).stdout.strip(),
                "--json").stdout
    )  # fmt: skip
    assert found["bytes"] / 1.3 < built["bytes"] < found["bytes"] * 1.1


def test_without_labels_there_is_no_student_alone(plan, taught, make_dataset, tmp_path):
    make_dataset(tmp_path / "unlabelled", unlabelled=True)
    found = plan(taught(data={"source": "unlabelled"}, loss={"hard_weight": 0.0}))
    assert found["supervised_student_seconds"] is None
    assert found["online_student_seconds"] > 0
    assert "a student alone" not in plan_table(found)


def test_fixed_mode_has_no_online_run_to_compare_with(plan, taught):
    found = plan(taught(views={"mode": "fixed", "count": None}))
    assert found["online_student_seconds"] is None
    assert found["break_even_students"] is None
    assert "no online run" in plan_table(found)


def test_processes_share_the_teachers_work(plan, taught):
    whole = plan(taught(), "--processes", 4)
    assert whole["num_processes"] == 4
    done = plan_table(whole)
    assert "4 such processes" in done


def test_plan_for_a_cluster_adds_what_the_cache_takes_there(plan, taught):
    recipe = taught(cache={"shard_samples": 32})
    assert plan(recipe)["cluster"] is None
    found = plan(recipe, "--nodes", 2, "--gpus-per-node", 4, "--teacher-images-per-second", 12)
    cluster = found["cluster"]
    assert (cluster["nodes"], cluster["gpus_per_node"]) == (2, 4)
    assert cluster["build_seconds"] == 3 * 128 / 12 / 8
    assert cluster["bytes"] == 3 * 128 * (found["encodings"]["float32"]["bytes_per_target"] + 8)
    assert cluster["files"] == found["files"]
    assert cluster["node_read_bytes"] == 4 * cluster["epoch_bytes"] == 4 * cluster["bytes"] / 3
    assert "On 2 nodes of 4 GPUs, 12 images/s a GPU:" in plan_table(found)
    measured = plan(recipe, "--gpus-per-node", 2)["cluster"]
    assert measured["teacher_images_per_second"] > 0
    assert (measured["nodes"], measured["gpus_per_node"]) == (1, 2)


def test_batch_that_does_not_split_over_the_processes_is_refused(kdscale, taught):
    done = kdscale("cache", "plan", taught(), "--seconds", 0.1, "--processes", 5)
    assert done.exit_code == 1
    assert "global_batch_size 32 does not split over 5 processes" in done.stderr


def test_disk_that_is_too_small_is_reported_and_is_no_failure(plan, taught, monkeypatch):
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    found = plan(taught())
    assert found["free_bytes"] == 1000
    assert found["needed_bytes"] == 3 * 128 * (16 + 8)
    assert "IT DOES NOT FIT" in plan_table(found)


@pytest.mark.parametrize(
    ("student", "measured"), [("mlp", False), ("batch_norm", True), ("viewing", False)]
)
def test_channels_last_is_measured_where_the_student_can_take_it(plan, taught, student, measured):
    student = {"model": f"tiny_models:{student}", "options": {} if student == "mlp" else None}
    found = plan(taught(student=student))
    assert (found["channels_last_over_contiguous_time"] is not None) == measured
    changed = {**student, "train": {"epochs": 3, "memory_format": "channels_last"}}
    if measured:
        assert plan(taught(student=changed))["channels_last_over_contiguous_time"] is None


@pytest.mark.parametrize(("ratio", "suggested"), [(0.5, True), (0.97, False), (None, False)])
def test_channels_last_is_suggested_where_it_is_faster(plan, taught, ratio, suggested):
    from kdscale.tables.plan_table import plan_table

    text = plan_table({**plan(taught()), "channels_last_over_contiguous_time": ratio})
    line = (
        "student.train.memory_format = 'channels_last' makes the student's steps about 50 % shorter"
    )
    assert (line in text) == suggested


@pytest.mark.parametrize(
    ("build", "cached", "online", "expected"),
    [
        (10.0, 1.0, 3.0, 5),
        (10.0, 1.0, 3.5, 4),
        (10.0, 1.0, 100.0, 1),
        (0.0, 1.0, 2.0, 1),
        (0.0, 1.0, 1.0, 1),
        (10.0, 1.0, 1.0, None),
        (10.0, 2.0, 1.0, None),
        (10.0, 1.0, None, None),
        (0.3, 0.1, 0.2, 3),
        (1000.123, 4.0, 4.0 + 1e-12, None),
        (1e9, 1.0, 1.0 + 1e-6, 10**15),
    ],
)
def test_break_even_is_the_smallest_number_that_pays(build, cached, online, expected):
    found = break_even(build, cached, online)
    if expected is None or expected < 10**9:
        assert found == expected
    else:
        assert found == pytest.approx(expected, rel=1e-3)


def test_large_models_are_probed_in_smaller_batches():
    assert affordable_batch(512, 0.001, 4.0) == 512
    assert affordable_batch(512, 0.1, 4.0) == 8
    assert affordable_batch(512, 0.01, 4.0) == 96
    assert affordable_batch(4, 10.0, 4.0) == 4


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (38.66, "38.7 s"), (150, "2 min"), (11_100, "3 h 05 min"), (2e5, "2.3 days")],
)
def test_durations_read_well(seconds, text):
    assert duration_text(seconds) == text
