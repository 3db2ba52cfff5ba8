"""A step is done if and only if its manifest is there and matches."""

import pyarrow as pa
import pytest

from medq_ray.artifacts import Run, difference, digest_folder, read_json, read_table, write_table

SCHEMA = pa.schema([("a", pa.int32())])


def counting(calls: list):
    def work(folder):
        calls.append(folder.name)
        write_table(folder / "rows.parquet", [{"a": 1}], SCHEMA)
        return {"rows": 1}

    return work


def test_a_finished_step_is_not_done_again(tmp_path):
    run, calls = Run(tmp_path), []
    first = run.step("iter-00/x", counting(calls), settings={"s": {"k": 1}}, inputs={"up": "f"})
    again = run.step("iter-00/x", counting(calls), settings={"s": {"k": 1}}, inputs={"up": "f"})
    assert calls == ["x"]
    assert again == first and again.table("rows").to_pylist() == [{"a": 1}]


def test_a_step_without_manifest_is_done_again(tmp_path):
    run, calls = Run(tmp_path), []

    def dies(folder):
        counting(calls)(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.step("x", dies, settings={}, inputs={})
    assert run.finished("x") is None
    run.step("x", counting(calls), settings={}, inputs={})
    assert calls == ["x", "x"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"settings": {"s": {"k": 2}}}, "settings.s.k=1, not 2"),
        ({"inputs": {"up": "g"}}, "inputs.up='f', not 'g'"),
        ({"version": 2}, "version=1, not 2"),
    ],
)
def test_a_mismatch_names_the_field(tmp_path, change, named):
    run = Run(tmp_path)
    same = {"settings": {"s": {"k": 1}}, "inputs": {"up": "f"}}
    run.step("x", counting([]), **same)
    with pytest.raises(ValueError, match="was made with") as error:
        run.step("x", counting([]), **(same | change))
    assert named in str(error.value)


def test_the_scratch_folder_is_there_until_the_manifest_is(tmp_path, monkeypatch):
    """What was computed there is not computed again after a kill while the step's files are being digested."""
    from medq_ray import artifacts

    def work(folder):
        seen.append((folder / "scratch").exists())
        (folder / "scratch").mkdir(exist_ok=True)

    def dies(*_):
        raise KeyboardInterrupt

    run, seen = Run(tmp_path), []
    with monkeypatch.context() as patched:
        patched.setattr(artifacts, "write_json", dies)
        with pytest.raises(KeyboardInterrupt):
            run.step("x", work, settings={}, inputs={})
    run.step("x", work, settings={}, inputs={})
    assert seen == [False, True] and not (tmp_path / "x" / "scratch").exists()
    (tmp_path / "x" / "scratch").mkdir()  # killed between manifest and removal
    run.step("x", work, settings={}, inputs={})
    assert len(seen) == 2 and not (tmp_path / "x" / "scratch").exists()


def test_the_fingerprint_covers_the_files_but_not_the_scratch_folder(tmp_path):
    def work(value, scratch):
        def write(folder):
            write_table(folder / "rows.parquet", [{"a": value}], SCHEMA)
            (folder / "scratch").mkdir()
            (folder / "scratch" / "s").write_text(scratch)

        return write

    prints = [
        Run(tmp_path / str(i)).step("x", work(*case), settings={}, inputs={}).fingerprint
        for i, case in enumerate([(1, "u"), (1, "v"), (2, "u")])
    ]
    assert prints[0] == prints[1] != prints[2]


def test_equal_rows_give_equal_bytes(tmp_path):
    for name in ("a", "b"):
        write_table(tmp_path / name / "t.parquet", [{"a": i} for i in range(1000)], SCHEMA)
    assert digest_folder(tmp_path / "a") == digest_folder(tmp_path / "b")


def test_a_damaged_table_is_named(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ValueError, match="t.parquet"):
        read_table(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="missing.parquet"):
        read_table(tmp_path / "missing.parquet")


def test_difference_goes_to_the_first_leaf():
    assert difference({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}) == "a.c=2, not 3"
    assert difference({"a": 1}, {}) == "a=1, not None"


def test_manifest_counts_and_files(tmp_path):
    Run(tmp_path).step("x", counting([]), settings={}, inputs={})
    manifest = read_json(tmp_path / "x" / "MANIFEST.json")
    assert manifest["counts"] == {"rows": 1} and set(manifest["files"]) == {"rows.parquet"}
