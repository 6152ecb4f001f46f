"""A run's files: one JSON object a line, cut back on resume; a result only when finished."""

import json

import pytest

from kdscale.errors import RunError, StorageError
from kdscale.runs.folder import RunFolder
from kdscale.runs.log import MetricsLog, read_metrics


def test_log_holds_one_object_a_line_in_order(tmp_path):
    records = [{"step": 1, "loss": 0.5}, {"step": 2, "split": "test", "top1_accuracy": 1.0}]
    with MetricsLog(tmp_path / "run" / "metrics.jsonl") as log:
        for record in records:
            log.append(record)
    assert list(read_metrics(tmp_path / "run")) == records


def test_record_is_on_disk_at_once(tmp_path):
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        log.append({"step": 1})
        assert len(list(read_metrics(tmp_path))) == 1


def test_log_is_cut_back_to_the_size_of_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.append({"step": 1})
        size = log.size
        log.append({"step": 2})
    with path.open("a") as file:
        file.write('{"step": 3, "lo')  # torn by a kill
    with MetricsLog(path, size=size) as log:
        log.append({"step": 20})
        assert log.size == path.stat().st_size
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 20]


def test_log_that_starts_anew_drops_what_was_there(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 99}\n')
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        log.append({"step": 1})
    assert [record["step"] for record in read_metrics(tmp_path)] == [1]


def test_process_that_does_not_write_counts_alike(tmp_path):
    with (
        MetricsLog(tmp_path / "metrics.jsonl") as ours,
        MetricsLog(tmp_path / "other.jsonl", writes=False) as theirs,
    ):
        for log in (ours, theirs):
            log.append({"step": 1})
        assert ours.size == theirs.size
    assert not (tmp_path / "other.jsonl").exists()


def test_log_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        MetricsLog(tmp_path / "file" / "metrics.jsonl")


def test_result_is_read_back(tmp_path):
    result = {"top1_accuracy": 0.5, "role": "student", "targets": "none", "seed": 3}
    RunFolder(tmp_path).write_result(result)
    assert RunFolder(tmp_path).read_result() == result
    assert json.loads((tmp_path / "result.json").read_text())["seed"] == 3


@pytest.mark.parametrize("text", ["{}", "[]", "null", '{"top1_accuracy": 0.5', '{"rows": []}'])
def test_what_is_no_result_is_reported(tmp_path, text):
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(RunError, match=r"result\.json is damaged"):
        RunFolder(tmp_path).read_result()


def test_missing_result_tells_an_unfinished_run_from_none(tmp_path):
    with pytest.raises(RunError, match="no run at"):
        RunFolder(tmp_path).read_result()
    (tmp_path / "recipe.toml").write_text("")
    with pytest.raises(RunError, match="holds an unfinished run"):
        RunFolder(tmp_path).read_result()


def test_every_flipped_bit_of_a_recipe_with_its_checksum_is_found(tmp_path):
    run = RunFolder(tmp_path)
    run.write_recipe('name = "tiny"\n')
    written = run.recipe_file.read_bytes()
    for bit in range(8 * len(written.rstrip())):
        flipped = bytearray(written)
        flipped[bit // 8] ^= 1 << bit % 8
        run.recipe_file.write_bytes(flipped)
        with pytest.raises(RunError, match=r"recipe\.toml"):
            run.read_recipe_tables()
