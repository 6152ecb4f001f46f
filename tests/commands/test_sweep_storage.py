"""A folder of a sweep may be a stranger's: no file in it names a database, looking changes none."""

import json
import os
import sqlite3
from contextlib import closing

import pytest

from kdscale.cache.lease import Leases
from kdscale.config import Variants, read_table
from kdscale.sweep.database import own_database, typed_database
from kdscale.sweep.search_space import planned
from kdscale.sweep.study import Study, read_places
from kdscale.sweep.sweep_folder import begin

NAMES = ["a?b", "a#b", "a%3Fb%", "a&b c", "ä::ü", "{x}{", "a?uri=true&mode=memory"]


@pytest.fixture
def begun(write_recipe, tmp_path):
    """Begins a sweep of two trials, of which none is trained; gives its folder."""

    def make(name="s"):
        recipe = write_recipe(
            data={"validation": 0.25}, sweep={"space": {"loss": {"temperature": [1.0, 4.0]}}}
        )
        variants = Variants(read_table(str(recipe), (), None), str(recipe))
        folder = tmp_path / name
        with Leases(folder) as claims:
            found = begin(folder, variants, None, claims)
            study = Study(found.database, found.study, variants.sweep)
            study.plan(planned(variants.sweep))
            study.close()
        return folder

    return make


def snapshot(folder):
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in folder.rglob("*")
    }


def contents(folder):
    return {path: content for path, (_, content) in snapshot(folder).items()}


def assert_refused(done, *parts):
    assert done.exit_code in (1, 2), done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.count("Error: ") == 1
    for part in parts:
        assert part in done.stderr


def both(kdscale, folder, *options):
    """What the two commands say that only look."""
    return [kdscale("sweep", command, folder, *options) for command in ("status", "best")]


# ------------------------------------------------------------------ names of folders


@pytest.mark.parametrize("name", NAMES)
def test_database_lies_in_the_folder_whatever_its_name(begun, kdscale, tmp_path, name):
    folder = begun(name)
    before = {path.name for path in tmp_path.iterdir()}
    assert before == {name, "tiny.toml"}
    assert (folder / "sweep.db").read_bytes().startswith(b"SQLite format 3")
    done = kdscale("sweep", "status", folder, "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["trials"]["waiting"] == 2
    assert {path.name for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", NAMES)
def test_database_that_is_named_is_the_file_that_the_url_means(tmp_path, name):
    file = tmp_path / name / "mine.db"
    quoted = str(file).replace("%", "%25").replace("?", "%3F").replace("#", "%23")
    assert typed_database(f"sqlite:///{quoted}").file == file
    assert typed_database(f"sqlite:///{quoted}").is_same(typed_database(f"sqlite:///{quoted}"))


# ------------------------------------------------------------------ looking


def test_status_and_best_change_nothing(begun, kdscale):
    folder = begun()
    before = snapshot(folder)
    status, best = both(kdscale, folder)
    assert status.exit_code == 0, status.stderr
    assert_refused(best, "no trial of")
    assert snapshot(folder) == before


def test_status_beside_a_worker_sees_what_it_wrote_and_changes_nothing(begun, kdscale):
    folder = begun()
    with closing(sqlite3.connect(folder / "sweep.db", isolation_level=None)) as worker:
        worker.execute("UPDATE trials SET state = 'FAIL' WHERE number = 0")  # in the log alone
        assert (folder / "sweep.db-wal").stat().st_size
        before = (folder / "sweep.db").read_bytes()
        done = kdscale("sweep", "status", folder, "--json")
        assert done.exit_code == 0, done.stderr
        states = [row["state"] for row in json.loads(done.stdout)["rows"]]
        assert states == ["waiting", "waiting"]  # a lost trial is queued again
        deaths = [row["taken_over"] for row in json.loads(done.stdout)["rows"]]
        assert deaths == [1, 0]
        assert (folder / "sweep.db").read_bytes() == before
        worker.execute("UPDATE trials SET state = 'WAITING' WHERE number = 0")  # not locked out


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes wherever it likes")
def test_status_of_a_folder_that_may_only_be_read(begun, kdscale):
    folder = begun()
    folder.chmod(0o555)
    try:
        assert kdscale("sweep", "status", folder).exit_code == 0
    finally:
        folder.chmod(0o755)


DATABASES = {
    "empty": lambda data: b"",
    "text": lambda data: b"no database" * 500,
    "cut": lambda data: data[: len(data) // 2],
    "header": lambda data: bytes([data[0] ^ 1]) + data[1:],
    "pages": lambda data: data[:4096] + bytes(len(data) - 4096),
    "schema": lambda data: data.replace(b"CREATE TABLE trials", b"CREATE TABLE trialz"),
}


@pytest.mark.parametrize("damage", DATABASES)
def test_damaged_database_is_one_line_and_stays_as_it_is(begun, kdscale, damage):
    folder = begun()
    database = folder / "sweep.db"
    database.write_bytes(DATABASES[damage](database.read_bytes()))
    before = snapshot(folder)
    for done in both(kdscale, folder):
        assert_refused(done, "sweep's database")
    assert snapshot(folder) == before


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("trial_user_attributes", "value_json", '"../../outside"'),
        ("trial_user_attributes", "value_json", "5"),
        ("trial_user_attributes", "value_json", "{cut off"),
        ("trial_user_attributes", "value_json", "[" * 100_000),
        ("trial_system_attributes", "value_json", "5"),
        ("trial_system_attributes", "value_json", '{"loss.temperature": "json:{cut off"}'),
        ("trials", "state", "NEVER"),
        ("trials", "number", "x"),
        ("studies", "study_name", "another"),
        ("version_info", "schema_version", 5),
        ("alembic_version", "version_num", "v0.0.1"),
    ],
)
def test_rows_that_optuna_has_not_written_are_one_line(begun, kdscale, table, column, value):
    folder = begun()
    with closing(sqlite3.connect(folder / "sweep.db")) as database, database:
        database.execute(f"UPDATE {table} SET {column} = ?", (value,))  # noqa: S608
    before = snapshot(folder)
    for done in both(kdscale, folder):
        if done.exit_code:
            assert_refused(done)
    assert snapshot(folder) == before
    assert not (folder.parent / "outside").exists()


# ------------------------------------------------------------------ what the folder's files say


STORAGES = ["sqlite:///{0}/other.db", "sqlite:///../other.db", "postgresql://127.0.0.1:1/x",
            "mysql+evil://127.0.0.1:1/x", "nonsense", "", "sweep.db\n", "../sweep.db"]  # fmt: skip


@pytest.mark.parametrize("storage", STORAGES)
def test_database_that_only_the_folder_names_is_not_opened(begun, kdscale, tmp_path, storage):
    folder = begun()
    told = json.loads((folder / "sweep.json").read_text())
    del told["checksum"]  # as earlier versions wrote it
    told["storage"] = storage.format(tmp_path)
    (folder / "sweep.json").write_text(json.dumps(told))
    before = contents(tmp_path)
    again = kdscale("sweep", tmp_path / "tiny.toml", "--run", folder)
    for done in (*both(kdscale, folder), again):
        assert_refused(done)
    assert contents(tmp_path) == before


DOCUMENTS = [
    "", "{", "[]", "null", "5", "[" * 100_000, '{"a":' * 50_000, "\x00", "9" * 10_000,
    *(
        json.dumps({"version": 1, "study": "s", "storage": "sweep.db", "recipe": {}} | change)
        for change in (
            {}, {"version": 2}, {"version": "1"}, {"version": None}, {"study": 5}, {"study": ""},
            {"study": "x" * 10_000}, {"study": "a\nb"}, {"storage": {}}, {"recipe": []},
            {"recipe": {"sweep": 5}}, {"recipe": {"sweep": {"space": 5}}}, {"recipe": None},
            {"checksum": "0" * 64}, {"checksum": 5},
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize("document", DOCUMENTS, ids=range(len(DOCUMENTS)))
def test_document_of_a_sweep_that_kdscale_has_not_written_is_one_line(begun, kdscale, document):
    folder = begun()
    (folder / "sweep.json").write_text(document)
    before = snapshot(folder)
    for done in both(kdscale, folder):
        assert_refused(done)
    assert snapshot(folder) == before


@pytest.mark.parametrize("file", ["sweep.json", "sweep.db", "sweep.db-wal", "trials", "claims"])
def test_link_or_pipe_in_the_folder_is_refused_by_name(begun, kdscale, tmp_path, file):
    folder = begun()
    outside = tmp_path / "outside"
    outside.mkdir()
    place = folder / file
    place.unlink(missing_ok=True)
    os.mkfifo(place) if file == "sweep.json" else place.symlink_to(outside / "new")
    for command in (["status", folder], [tmp_path / "tiny.toml", "--run", folder]):
        done = kdscale("sweep", *command)
        assert_refused(done, f"{place} is a ")
    assert list(outside.iterdir()) == []


def test_own_database_is_found_beside_the_folder_s_other_name(begun, tmp_path):
    folder = begun()
    (tmp_path / "link").symlink_to(folder)
    name = json.loads((folder / "sweep.json").read_text())["study"]
    assert len(read_places(own_database(tmp_path / "link"), name)) == 2
    assert own_database(folder).is_same(own_database(tmp_path / "link"))
