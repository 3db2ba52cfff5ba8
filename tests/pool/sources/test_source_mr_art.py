"""MR-ART reader: scores of two tables, scans of one subject together, and what a git checkout has instead of scans."""

from pathlib import Path

import nibabel
import numpy as np
import pytest

from medq_ray.images import Refused
from medq_ray.pool.sources import Options, _files, list_rows, mr_art

REALDATA = Path(__file__).parents[3].parent / "shared" / "realdata"
ACQUISITIONS = ("standard", "headmotion1", "headmotion2")


@pytest.fixture
def release(tmp_path) -> Path:
    """Two subjects, the second without its last scan, in the layout of the release."""
    scores = {}
    for subject, marks in {"sub-000103": "123", "sub-105822": "11"}.items():
        (tmp_path / subject / "anat").mkdir(parents=True)
        lines = []
        for i, (acquisition, mark) in enumerate(zip(ACQUISITIONS, marks, strict=False)):
            name = f"{subject}_acq-{acquisition}_T1w"
            values = np.zeros((12, 16, 14), np.int16)
            values[:, 8:] = 100 + i
            nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / subject / "anat" / f"{name}.nii.gz")
            (tmp_path / subject / "anat" / f"{name}.json").write_text("{}")
            scores[name] = mark
            lines.append(f"anat/{name}.nii.gz\t{mark}\n")
        (tmp_path / subject / f"{subject}_scans.tsv").write_text("filename\tscore\n" + "".join(lines))
    derivatives = tmp_path / "derivatives"
    (derivatives / "mriqc-0.16.1").mkdir(parents=True)
    table = "".join(f"{name}\t{mark}\n" for name, mark in scores.items())
    (derivatives / "scores.tsv").write_text("bids_name\tscore\n" + table)
    (derivatives / "mriqc-0.16.1" / "group_T1w.tsv").write_text("bids_name\tcjv\n")
    (tmp_path / "participants.tsv").write_text("participant_id\tsex\tage\n")
    return tmp_path


def test_scores_and_subjects(release):
    rows = list(list_rows("mr-art", release, Options(slices=2, plane="sagittal")))
    assert len(rows) == 10 and [row.key for row in rows[:2]] == ["sagittal 3", "sagittal 8"]
    assert {(row.patient, row.session, row.modality) for row in rows} == {
        ("sub-000103", "sub-000103", "mri"),
        ("sub-105822", "sub-105822", "mri"),
    }
    labels = {(row.patient, row.labels["acquisition"]): row.labels["score"] for row in rows}
    assert labels == {
        ("sub-000103", "standard"): "1",
        ("sub-000103", "headmotion1"): "2",
        ("sub-000103", "headmotion2"): "3",
        ("sub-105822", "standard"): "1",
        ("sub-105822", "headmotion1"): "1",
    }
    pixels = mr_art.decode(rows[0], 512)[..., 0]
    assert pixels.shape == (14, 16) and (pixels[:, :8] == 255).all() and (pixels[:, 8:] == 0).all()  # front on the left


def test_one_table_is_enough_and_two_must_agree(release):
    scans = release / "sub-000103" / "sub-000103_scans.tsv"
    text = scans.read_text()
    scans.write_text(text.replace("standard_T1w.nii.gz\t1", "standard_T1w.nii.gz\t2"))
    with pytest.raises(ValueError, match="sub-000103_scans.tsv, line 2: expected the score of the table before"):
        list(mr_art.find(release))
    scans.write_text(text)
    (release / "derivatives" / "scores.tsv").unlink()
    assert all(row.labels["score"] for row in mr_art.find(release))
    scans.unlink()
    assert {row.patient for row in mr_art.find(release) if "score" not in row.labels} == {"sub-000103"}


def test_tables_with_other_columns_or_scores(release):
    table = release / "derivatives" / "scores.tsv"
    for column, score in (("name", "1"), ("bids_name", "good")):
        table.write_text(f"{column}\tscore\nsub-000103_acq-standard_T1w\t{score}\n")
        with pytest.raises(ValueError, match="scores.tsv, line 2: expected columns bids_name and score"):
            list(mr_art.find(release))
    with pytest.raises(ValueError, match="expected sub-"):
        list(mr_art.find(release / "derivatives"))


def test_a_table_with_an_endless_field_or_too_large_is_told_in_one_line(release, monkeypatch):
    table = release / "derivatives" / "scores.tsv"
    table.write_text("bids_name\tscore\n" + "x" * 200_000 + "\t1\n")
    with pytest.raises(ValueError, match="scores.tsv: expected a tab-separated table") as caught:
        list(mr_art.find(release))
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(_files, "MAX_TABLE", 1000)
    with pytest.raises(ValueError, match="scores.tsv: expected a table of at most 1000 bytes"):
        list(mr_art.find(release))


def test_pointers_of_a_git_checkout_are_refused(release):
    folder = release / "sub-105822" / "anat"
    scans = sorted(folder.glob("*.nii.gz"))
    scans[0].write_text("/annex/objects/MD5E-s9000000--0123.nii.gz\n")
    scans[1].unlink()
    scans[1].symlink_to("../../.git/annex/objects/aa/bb/x.nii.gz")
    for row in [row for row in mr_art.find(release) if row.patient == "sub-105822"]:
        with pytest.raises(Refused, match="get the file through OpenNeuro") as caught:
            mr_art.expand(row, Options())
        assert "105822" not in str(caught.value)


@pytest.mark.skipif(not REALDATA.is_dir(), reason="shared/realdata is not beside this checkout")
def test_the_real_tables(tmp_path):
    prefix = REALDATA / "brain_mri" / "mrart_"
    for name in ("derivatives/scores.tsv", "sub-000103/sub-000103_scans.tsv"):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_bytes(Path(f"{prefix}{name.replace('/', '__')}").read_bytes())
    scores = mr_art.read_scores(tmp_path)
    counts = {(kind, mark): 0 for kind in ACQUISITIONS for mark in mr_art.SCORES}
    for name, mark in scores.items():
        counts[mr_art.SCAN.fullmatch(name)[2], mark] += 1
    assert list(counts.values()) == [119, 28, 1, 7, 59, 75, 3, 22, 122] and len(scores) == 436
