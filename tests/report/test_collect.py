"""Run folders as they are found: which runs are seeds of one another, and what is missing."""

import json
import os
import shutil

import pytest
import tomli_w
from synthetic_runs import (
    DIGITS,
    evaluation,
    recipe,
    write_json,
    write_run,
    write_sweep,
    write_whole_recipe,
)

from kdscale.errors import RunError
from kdscale.report.collect import collect
from kdscale.report.environment import subject
from kdscale.report.headlines import headlines
from kdscale.report.page_sections import sections_of
from kdscale.report.suggestions import missing
from kdscale.report.training_cost import cost_of, cost_of_sweep


@pytest.fixture
def study(tmp_path):
    """The one study that folders make."""

    def one(*folders):
        (found,) = collect(folders, tmp_path / "cache")
        return found

    return one


def labels(study):
    return [(entry.label, len(entry.runs)) for entry in study.entries]


def commands(study):
    return [note.command for note in missing(study, has_sheet=True) if note.command]


# --------------------------------------------------------------------------- entries


def test_seeds_are_one_entry_and_kinds_are_several(study, tmp_path):
    found = study(write_whole_recipe(tmp_path / "whole"))
    assert labels(found) == [
        ("teacher", 1),
        ("student alone", 3),
        ("student, online teacher", 3),
        ("student, cached teacher", 3),
    ]


def test_runs_of_other_settings_are_no_seeds_and_say_in_what_they_differ(study, tmp_path):
    for temperature in (2.0, 4.0):
        table = recipe(loss__temperature=temperature)
        write_run(tmp_path / f"t{temperature}", table=table)
    alone = write_run(tmp_path / "alone", "alone", table=recipe(loss__temperature=8.0))
    found = study(tmp_path / "t2.0", tmp_path / "t4.0", alone)
    assert labels(found) == [
        ("student alone", 1),
        ("student, cached teacher (loss.temperature 2)", 1),
        ("student, cached teacher (loss.temperature 4)", 1),
    ]
    for entry in found.of_kind("cache"):  # labels alone know no temperature
        assert found.peer(entry, "alone").runs[0].folder == alone


def test_another_student_is_not_compared_with(study, tmp_path):
    cached = write_run(tmp_path / "cached")
    other = write_run(tmp_path / "other", "alone", table=recipe(student__model="another"))
    found = study(cached, other)
    assert found.peer(found.of_kind("cache")[0], "alone") is None


def test_other_test_images_are_another_study(tmp_path):
    one, other = write_run(tmp_path / "one"), write_run(tmp_path / "other")
    write_json(other / "content.json", {"dataset": "d", "test": "another"})
    studies = collect([one, other], tmp_path)
    assert [len(study.runs) for study in studies] == [1, 1]


def tables(study):
    """Titles and rows of all tables of the page."""
    return [table for section in sections_of(study, None, "") for table in section.tables]


@pytest.mark.parametrize("file", ["evaluation.json", "evaluation-on-0123456789ab.json"])
def test_figures_on_other_images_are_in_no_line_with_those_of_the_own(study, tmp_path, file):
    run, twin = write_run(tmp_path / "run"), write_run(tmp_path / "twin", seed=1)
    other = evaluation(DIGITS, 0.3, test_fingerprint="0123456789abcdef", agreement=0.11,
                       test_source="elsewhere", test_split="test", samples=500)  # fmt: skip
    write_json(run / file, other | {"own_test_set": False})
    found = study(run, twin)
    (entry,) = found.entries
    assert 0.11 not in entry.values("agreement")
    assert all(value > 0.8 for value in entry.values("top1_accuracy"))
    assert sum(entry.classes.samples) % 2000 == 0
    *others, elsewhere = tables(found)
    assert elsewhere.rows[0][:4] == [
        str(run), entry.label, "500 of elsewhere, split test (0123456789ab)",
        f"{100 * other['top1_accuracy']:.2f}",
    ]  # fmt: skip
    shown = [cell for table in others for row in table.rows for cell in row]
    assert f"{100 * other['top1_accuracy']:.2f}" not in shown


def test_evaluation_of_an_older_kdscale_on_other_images_is_found_by_its_fingerprint(
    study, tmp_path
):
    whole = write_whole_recipe(tmp_path / "whole", seeds=1)
    shutil.rmtree(whole / "teacher")
    other = evaluation(DIGITS, 0.3, test_fingerprint="another")
    for place in ("cache-seed0/evaluation.json", "teacher-evaluation.json"):
        write_json(whole / place, other)
    row = {"label": "teacher", "results": [{"top1_accuracy": 0.95}]}
    write_json(whole / "result.json", {"rows": [row]})
    found = study(whole)
    assert found.of_kind("cache")[0].evaluations == []
    assert found.of_kind("teacher")[0].values("macro_recall") == []
    assert len(tables(found)[-1].rows) == 2
    said = [note.text for note in missing(found, has_sheet=True)]
    assert sum("is of other images than the run's own test split" in text for text in said) == 2


def test_runs_that_learned_from_other_images_or_another_teacher_are_no_seeds(study, tmp_path):
    for number, (dataset, teacher) in enumerate((("d", "a"), ("d", "b"), ("e", "a"))):
        run = write_run(tmp_path / f"{number}", seed=number)
        content = {"dataset": dataset, "test": "t", "teacher": teacher}
        write_json(run / "content.json", content)
    found = study(*(tmp_path / f"{number}" for number in range(3)))
    assert [label for label, _ in labels(found)] == [
        f"student, cached teacher (teacher weights {teacher}, training images {dataset})"
        for dataset, teacher in (("d", "a"), ("d", "b"), ("e", "a"))
    ]


def test_student_alone_of_other_images_is_not_compared_with(study, tmp_path):
    cached, alone = write_run(tmp_path / "cached"), write_run(tmp_path / "alone", "alone")
    write_json(alone / "content.json", {"dataset": "another", "test": "t"})
    found = study(cached, alone)
    assert found.peer(found.of_kind("cache")[0], "alone") is None


def test_teachers_of_other_views_are_no_seeds(study, tmp_path):
    for number, operations in enumerate(([], ["random_horizontal_flip"])):
        table = recipe(views__operations=operations, teacher__train={"epochs": 3})
        write_run(tmp_path / f"{number}", "teacher", number, table=table)
    assert len(study(tmp_path / "0", tmp_path / "1").of_kind("teacher")) == 2


def test_no_two_settings_have_one_label(study, tmp_path):
    for number in range(4):
        table = recipe(
            loss__temperature=1.0 + number % 2, loss__a=number % 2, loss__b=number % 2,
            student__model=f"model-{number}",
        )  # fmt: skip
        write_run(tmp_path / f"{number}", table=table)
    found = study(*(tmp_path / f"{number}" for number in range(4)))
    assert len({entry.label for entry in found.entries}) == len(found.entries) == 4


def test_gains_say_of_which_seeds_they_are(study, tmp_path):
    for seed in range(3):
        write_run(tmp_path / f"cache{seed}", "cache", seed)
    write_run(tmp_path / "alone", "alone", 1)
    folders = [tmp_path / f"cache{seed}" for seed in range(3)]
    assert "(of 1 shared seed)." in headlines(study(*folders, tmp_path / "alone"))[0]
    folders = [tmp_path / "cache0", tmp_path / "cache2"]
    assert "(of other seeds)." in headlines(study(*folders, tmp_path / "alone"))[0]


def test_gain_over_an_unknown_accuracy_is_not_stated(study, tmp_path):
    cached = write_run(tmp_path / "cached", evaluated=False)
    alone = write_run(tmp_path / "alone", "alone", evaluated=False, top1_accuracy=None)
    found = study(cached, alone)
    assert "points" not in headlines(found)[0]


def test_seed_that_was_trained_twice_counts_once_and_is_reported(study, tmp_path):
    folders = [write_run(tmp_path / name) for name in ("one", "other")]
    found = study(*folders)
    (entry,) = found.entries
    assert sum(entry.classes.samples) == 2000
    assert tables(found)[0].rows[0][1] == "2 (1 seed)"
    said = [note.text for note in missing(found, has_sheet=True)]
    assert any(text.startswith("Seed 0") and "in 2 folders" in text for text in said)


def test_answers_that_are_not_finite_are_in_the_table_and_in_recall(study, tmp_path):
    run = write_run(tmp_path / "run", evaluated=False, non_finite_samples=20)
    found = evaluation(DIGITS, 1.0, non_finite_samples=20)
    for label in range(10):
        found["per_class"][label]["samples"] += 2
    write_json(run / "evaluation.json", found)
    assert study(run).entries[0].classes.samples == [202] * 10
    table = tables(study(run))[0]
    assert table.rows[0][table.header.index("images with NaN logits")] == "20"


def test_folder_named_twice_counts_once(study, tmp_path):
    run = write_run(tmp_path / "run")
    assert len(study(run, tmp_path / "." / "run").runs) == 1


def test_teacher_that_came_with_weights_is_read_from_the_folder(study, tmp_path):
    whole = write_whole_recipe(tmp_path / "whole")
    shutil.rmtree(whole / "teacher")
    row = {"label": "teacher", "results": [{"top1_accuracy": 0.95, "num_parameters": 9}]}
    first = json.loads((whole / "cache-seed0" / "result.json").read_text())
    result = {**first, "rows": [row], "cache_path": "nowhere.zarr"}
    write_json(whole / "result.json", result)
    write_json(whole / "teacher-evaluation.json", evaluation(list("abcdefghij"), 0.95))
    (teacher,) = study(whole).of_kind("teacher")
    assert teacher.values("top1_accuracy") == [0.95]
    assert teacher.values("num_parameters") == [9]
    assert len(teacher.evaluations) == 1


def test_sweep_varies_what_its_trials_differ_in(study, tmp_path):
    (sweep,) = study(write_sweep(tmp_path / "sweep")).sweeps
    names = ["loss.kind", "loss.temperature", "student.train.learning_rate"]
    assert list(sweep.trials[0].parameters) == names
    assert sweep.best.run.trial == "00002"
    assert [trial.run.trial for trial in sweep.ranked][-1] == "00011", "the unfinished one"


def test_best_trial_is_compared_like_other_students_with_the_teacher(study, tmp_path):
    folder = write_sweep(tmp_path / "sweep")
    write_run(folder / "teacher", "teacher", evaluated=False)
    found = study(folder)
    assert labels(found) == [("teacher", 1), ("student, cached teacher (trial 00002)", 1)]
    assert len(found.runs) == 13
    assert f"kdscale evaluate {folder}/teacher {folder}/trials/00002" in commands(found)
    against_teacher, of_trials = headlines(found)
    assert "of the teacher's top-1 at 4.4 times fewer parameters" in against_teacher
    assert of_trials.startswith("12 trials of made-up, 11 of them to the end")


def test_sweep_names_its_own_fields_and_what_it_says_of_its_trials(study, tmp_path):
    folder = write_sweep(tmp_path / "sweep", trials=4)
    table = recipe() | {"sweep": {"space": {"loss.kind": ["kd", "dkd"]}}}
    (folder / "recipe.toml").write_text(tomli_w.dumps(table))
    rows = [
        {"trial": "00003", "state": "failed"},
        {"trial": "00001", "value": 0.99, "state": "finished"},
    ]
    write_json(folder / "trials.json", {"rows": rows, "seconds": 77.0})
    (sweep,) = study(folder).sweeps
    assert [list(trial.parameters) for trial in sweep.trials] == [["loss.kind"]] * 4
    assert sweep.best.run.trial == "00001"
    assert sweep.ranked[-1].state == "failed, 6 epochs"
    assert "within 77.0 s" in headlines(study(folder))[0]
    (folder / "trials" / "00003" / "pruned.txt").write_text("it fell behind")
    assert study(folder).sweeps[0].ranked[-1].state == "ended early, 6 epochs"


def test_trial_gone_on_with_after_it_was_ended_early_counts_as_it_ended(study, tmp_path):
    folder = write_sweep(tmp_path / "sweep", trials=4)
    rows = [{"trial": "00001", "state": "pruned", "value": 0.999}]
    write_json(folder / "trials.json", {"rows": rows, "seconds": 77.0})
    (sweep,) = study(folder).sweeps
    assert sweep.best.run.trial == "00002"
    assert max(trial.score for trial in sweep.trials) < 0.95


def test_sweep_that_goes_on_counts_the_trials_that_are_still_to_come(study, tmp_path):
    folder = write_sweep(tmp_path / "sweep", trials=4)  # of which the last one is under way
    space = {"loss.kind": ["kd", "dkd"], "loss.temperature": [1.0, 2.0, 4.0, 8.0]}
    (folder / "recipe.toml").write_text(tomli_w.dumps(recipe() | {"sweep": {"space": space}}))
    (folder / "trials" / "00000" / "result.json").unlink()
    (folder / "trials" / "00000" / "pruned.txt").write_text("it fell behind\n")
    found = study(folder)
    assert headlines(found)[0].startswith("8 trials of made-up, 2 of them to the end")
    told = [note for note in missing(found, has_sheet=True) if str(folder) in note.text]
    assert [note.text.split(" of ")[0] for note in told] == ["1 trial", "5 trials"]
    assert told[1].command == f"kdscale sweep {folder}/recipe.toml --run {folder}"


@pytest.mark.parametrize("told", [[], {"rows": None}, {"rows": [1]}, {"rows": {}}])
def test_damaged_table_of_a_sweep_leaves_its_runs_to_be_reported(study, tmp_path, told):
    folder = write_sweep(tmp_path / "sweep", trials=4)
    write_json(folder / "trials.json", told)
    assert len(study(folder).sweeps[0].trials) == 4


def test_several_sweeps_are_distinguished_wherever_they_are(study, tmp_path):
    folders = [write_sweep(tmp_path / name, trials=4) for name in ("one", "other")]
    found = study(*folders)
    assert len(set(labels(found))) == len(found.entries) == 2
    assert all(str(f) in words for f, words in zip(folders, headlines(found), strict=True))
    titles = [chart.title for section in sections_of(found, None, "") for chart in section.charts]
    of_sweeps = [title for title in titles if any(str(f) in title for f in folders)]
    assert len(of_sweeps) == len(set(of_sweeps)) == 8  # and what more there is of each
    assert len(titles) == len(set(titles))


def test_one_seed_in_several_folders_is_one_seed(study, tmp_path):
    folders = [write_whole_recipe(tmp_path / name, seeds=1) for name in ("one", "other")]
    (tmp_path / "other" / "teacher" / "evaluation.json").unlink()
    table = json.loads((tmp_path / "other" / "teacher" / "result.json").read_text())
    write_json(tmp_path / "other" / "teacher" / "result.json", table | {"train_seconds": 1e6})
    found = study(*folders)
    teacher = found.of_kind("teacher")[0]
    assert len(teacher.runs) == 2
    assert len(teacher.values("train_seconds")) == 1
    assert any(note.text.startswith("One seed") for note in missing(found, has_sheet=True))


def test_teacher_of_a_sweep_that_came_with_weights_is_reported(study, tmp_path):
    folder = write_sweep(tmp_path / "sweep", trials=4)
    write_json(folder / "teacher-evaluation.json", evaluation(list("abcdefghij"), 0.95))
    (teacher,) = study(folder).of_kind("teacher")
    assert teacher.values("top1_accuracy") == [pytest.approx(0.95, abs=0.01)]


def test_sweep_with_a_baseline_keeps_its_teacher_that_came_with_weights(study, tmp_path):
    folder = write_sweep(tmp_path / "sweep", trials=4)
    write_run(folder / "alone", "alone")
    write_json(folder / "teacher-evaluation.json", evaluation(list("abcdefghij"), 0.95))
    kinds = [entry.kind for entry in study(folder).entries]
    assert kinds == ["teacher", "alone", "cache"]


def test_sweep_without_a_validation_split_has_no_best_trial(study, tmp_path):
    for number in range(3):
        table = recipe(loss__temperature=1.0 + number)
        write_run(tmp_path / "sweep" / "trials" / f"{number:05}", table=table)
    (sweep,) = study(tmp_path / "sweep").sweeps
    assert sweep.best is None


# --------------------------------------------------------------------------- cost


def test_build_is_paid_for_when_students_have_saved_it(study, tmp_path):
    found = study(write_whole_recipe(tmp_path / "whole", seeds=1))
    cost = cost_of(found, found.of_kind("cache")[0])
    assert (cost.build_seconds, cost.cached_seconds, cost.online_seconds) == (12.5, 10.4, 41.0)
    assert cost.break_even == 1
    for folder in (tmp_path / "whole").glob("cache-*"):
        result = json.loads((folder / "result.json").read_text())
        write_json(folder / "result.json", result | {"build_seconds": 62.0})
    found = study(tmp_path / "whole")
    assert cost_of(found, found.of_kind("cache")[0]).break_even == 3  # 62 / 30.6 = 2.03
    assert "pays off from the third student on" in " ".join(headlines(found))


def test_online_time_is_estimated_from_a_bench_and_marked_so(study, tmp_path):
    whole = write_whole_recipe(tmp_path / "whole", online=False)
    found = study(whole)
    assert cost_of(found, found.of_kind("cache")[0]).online_seconds is None
    assert any("--online" in command for command in commands(found))
    write_json(whole / "bench.json", {"online_over_cached_time": 5.0})
    found = study(whole)
    cost = cost_of(found, found.of_kind("cache")[0])
    assert cost.online_seconds == pytest.approx(5 * 10.5)
    assert not cost.measured
    assert "estimated" in " ".join(headlines(found))


def test_sweep_with_an_online_teacher_is_estimated_from_what_the_teacher_adds_to_a_step(
    study, tmp_path
):
    train = {"student__train": {"global_batch_size": 50}}
    sweep = tmp_path / "sweep"
    for number in range(2):
        table = recipe(loss__temperature=1.0 + number, **train)
        write_run(sweep / "trials" / f"{number}", table=table, seconds=10.0, steps=100)
    rates = {"online_images_per_second": 100, "cached_images_per_second": 500}
    write_json(sweep / "bench.json", {"online_over_cached_time": 5.0} | rates)
    found = study(sweep)
    cost = cost_of_sweep(found, found.sweeps[0])
    assert cost.train_seconds == 20
    assert cost.online_seconds == pytest.approx(20 + 2 * 100 * 50 * (1 / 100 - 1 / 500))


# --------------------------------------------------------------------------- headlines


def test_first_sentence_says_what_a_decision_needs(study, tmp_path):
    whole = write_whole_recipe(tmp_path / "whole", seeds=1)
    for name, top1, parameters, flops, seconds in (
        ("teacher", 0.9, 41_000, 8_000, 0.78), ("cache-seed0", 0.8874, 10_000, 1_000, 0.01)
    ):  # fmt: skip
        result = json.loads((whole / name / "result.json").read_text())
        changed = result | {"top1_accuracy": top1, "num_parameters": parameters}
        write_json(whole / name / "result.json", changed)
        found = json.loads((whole / name / "evaluation.json").read_text())
        latency = {"64": {"median_seconds": seconds, "p95_seconds": seconds}}
        write_json(whole / name / "evaluation.json", found | {"latency": latency, "flops": flops})
    assert headlines(study(whole))[0] == (
        "The student with the cached teacher keeps 98.6 % of the teacher's top-1 at 4.1 times "
        "fewer parameters, 8.0 times fewer FLOPs, 78 times lower latency at batch 64."
    )


def test_subject_of_a_report_is_data_models_date_and_machine(study, tmp_path):
    run = write_run(tmp_path / "run")
    for name in ("result.json", "metrics.jsonl"):
        os.utime(run / name, (1_800_000_000, 1_800_000_000))
    assert subject(study(run)) == [
        ("Data set", "somewhere/images"), ("Teacher", "large"), ("Student", "small"),
        ("Date", "2027-01-15"), ("Machine", "Imagined(R) Processor"),
    ]  # fmt: skip


def headline(study, tmp_path, ours, theirs, other="alone"):
    for kind, values in (("cache", ours), (other, theirs)):
        for seed, value in enumerate(values):
            run = write_run(tmp_path / f"{kind}-seed{seed}", kind, seed)
            result = json.loads((run / "result.json").read_text())
            write_json(run / "result.json", result | {"top1_accuracy": value})
    return headlines(study(*tmp_path.glob("*-seed*")))[0]


def test_headline_says_more(study, tmp_path):
    said = headline(study, tmp_path, [0.90, 0.92], [0.88, 0.91])
    assert "reaches 91.00 ± 1.41 % top-1, 1.50 ± 0.71 points more than the 89.50" in said


def test_headline_says_less(study, tmp_path):
    assert "2.00 points less than the 90.00 %" in headline(study, tmp_path, [0.88], [0.90])


def test_headline_does_not_call_chance_a_gain(study, tmp_path):
    said = headline(study, tmp_path, [0.90, 0.92], [0.91, 0.905])
    assert "within the spread of seeds" in said
    assert "points more" not in said


def test_headline_of_one_seed_each_does_not_speak_of_a_spread(study, tmp_path):
    said = headline(study, tmp_path, [0.9], [0.9])
    assert "reaches 90.00 % top-1, as much as the 90.00 % of the student alone." in said


def test_headline_calls_equal_students_equal(study, tmp_path):
    said = headline(study, tmp_path, [0.9], [0.9], other="online")
    assert "With an online teacher it reaches 90.00 %, as much." in said


# --------------------------------------------------------------------------- what is missing


def test_whole_recipe_with_evaluations_lacks_its_cache_alone(study, tmp_path):
    notes = missing(study(write_whole_recipe(tmp_path / "whole")), has_sheet=True)
    assert [note.text.split(":")[0] for note in notes] == [
        "The cache is not where the runs read it"
    ]


def test_commands_find_out_what_is_missing(study, tmp_path):
    run = write_run(tmp_path / "a run", evaluated=False)
    found = commands(study(run))
    assert found[0] == f"kdscale evaluate '{run}'"
    assert found[1] == f"kdscale run '{run}/recipe.toml' --run '{run}-compared'"
    assert found[2].endswith("--online")
    assert found[3].endswith("--seeds 3")


def test_finished_runs_of_an_unfinished_recipe_are_evaluated_one_by_one(study, tmp_path):
    whole = write_whole_recipe(tmp_path / "whole", seeds=1)
    (whole / "result.json").unlink(missing_ok=True)
    for run in ("alone-seed0", "cache-seed0"):
        (whole / run / "evaluation.json").unlink()
    found = commands(study(whole))
    assert f"kdscale evaluate {whole}/alone-seed0 {whole}/cache-seed0" in found


def test_unfinished_run_is_gone_on_with(study, tmp_path):
    run = write_run(tmp_path / "run", seed=2, finished=False, evaluated=False)
    expected = f"kdscale train {run}/recipe.toml --targets cache --seed 2 --run {run} --resume"
    assert commands(study(run)) == [expected]
    found = study(run)
    assert headlines(found) == ["No run is finished yet."]
    (entry,) = found.entries
    assert entry.values("top1_accuracy") == []


def test_unfinished_student_of_a_whole_recipe_is_gone_on_with_as_such(study, tmp_path):
    whole = write_whole_recipe(tmp_path / "whole")
    (whole / "cache-seed2" / "result.json").unlink()
    assert f"kdscale run {whole}/recipe.toml --run {whole}" in commands(study(whole))


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 1}', '{"version": 2}', "\xff\xfe"])
def test_damaged_evaluation_is_named_and_the_rest_is_reported(study, tmp_path, text):
    run = write_run(tmp_path / "run")
    (run / "evaluation.json").write_bytes(text.encode("latin-1"))
    found = study(run)
    assert found.entries[0].values("top1_accuracy")
    notes = [note.text for note in missing(found, has_sheet=True)]
    assert any("evaluation.json" in note for note in notes)


def test_torn_log_is_read_as_far_as_it_goes(study, tmp_path):
    run = write_run(tmp_path / "run")
    log = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(log[:-30])
    (found,) = study(run).runs
    assert len(found.curves["loss"]) == 6
    assert len(found.curves["test"]) == 5


# --------------------------------------------------------------------------- what is refused


def test_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(RunError, match="no run at"):
        collect([tmp_path], tmp_path)


def test_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(RunError, match="no folder"):
        collect([tmp_path / "nowhere"], tmp_path)


def test_run_without_a_recipe_is_refused(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "recipe.toml").unlink()
    with pytest.raises(RunError, match="is left out"):
        collect([run], tmp_path)


def test_recipe_of_another_version_is_read_all_the_same(study, tmp_path):
    table = recipe() | {"a_table_of_the_future": {"field": 1}}
    run = write_run(tmp_path / "run", table=table)
    assert tomli_w.dumps(table) in study(run).recipes.values()
