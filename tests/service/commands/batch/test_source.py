from pathlib import Path, PurePosixPath

import pytest

from service.commands.batch.source import find_cases
from service.errors import SourceError


def touch(root: Path, *names: str, content: str = "") -> None:
    """Create files below a folder."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)


def reasons(source: Path, pattern: str = "*") -> dict[str, str]:
    """Return why each file was left out, by name."""
    return {skipped.path.name: skipped.reason for skipped in find_cases(source, source / "out", pattern).skipped}


def ids(source: Path, pattern: str = "*") -> list[str]:
    """Return the ids of the cases."""
    return [case.id for case in find_cases(source, source / "out", pattern).cases]


def test_every_format_is_found_in_every_folder(tmp_path: Path) -> None:
    """Ids are sorted paths of plain characters; hidden files and the batch's own results are ignored."""
    touch(tmp_path, "b.nii", "a.NII.gz", "person 1/c.nrrd", "person 1/visit/d.mha", "e.zip")
    touch(tmp_path, "out/b/b_seg-x_dseg.nii.gz", ".hidden.nii", ".git/f.nii")

    assert ids(tmp_path) == ["a", "b", "e", "person-1_c", "person-1_visit_d"]
    assert reasons(tmp_path) == {}


def test_what_is_left_out_has_a_reason(tmp_path: Path) -> None:
    """Other files, masks and maps, and names that do not match the pattern are left out with reasons."""
    touch(tmp_path, "notes.txt", "a_dseg.nii.gz", "a_T1w.nii", "a_T2w.nii")

    assert ids(tmp_path, "*_T1w*") == ["a_T1w"]
    assert reasons(tmp_path, "*_T1w*") == {
        "notes.txt": "not a scan: expected .nii.gz, .nii, .nrrd, .mha, .mgz, .mgh, .zip or DICOM",
        "a_dseg.nii.gz": "by its name a mask or map, not a scan",
        "a_T2w.nii": "its name does not match *_T1w*",
    }


@pytest.mark.parametrize("names", [("a.nii", "a.nii.gz"), ("x/y.nii", "x_y.nii"), ("a b.nii", "a-b.nii")])
def test_two_scans_of_one_id_are_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    """The message names both paths, because one would overwrite the other."""
    touch(tmp_path, *names)
    with pytest.raises(SourceError) as caught:
        find_cases(tmp_path, tmp_path / "out")

    assert all(str(tmp_path / name) in caught.value.detail for name in names)


def test_a_bids_data_set_keeps_its_tree(tmp_path: Path) -> None:
    """Results lie where the raw image lies, with its entities; time series and derivatives are left out."""
    touch(tmp_path, "dataset_description.json", "sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_T1w.json")
    touch(tmp_path, "sub-02/ses-a/anat/sub-02_ses-a_acq-x_T1w.nii", "sub-02/ses-a/func/sub-02_ses-a_task-r_bold.nii")
    touch(tmp_path, "derivatives/x/sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/odd.nii")
    first, second = find_cases(tmp_path, tmp_path / "out").cases

    assert (first.id, first.folder) == ("sub-01_T1w", PurePosixPath("sub-01/anat"))
    assert second.results(Path("o"), "m").mask == Path(
        "o/sub-02/ses-a/anat/sub-02_ses-a_acq-x_space-orig_seg-m_dseg.nii.gz"
    )
    assert reasons(tmp_path) == {
        "sub-02_ses-a_task-r_bold.nii": "in func: only anat, ct, pet hold 3-D images",
        "odd.nii": "not named as a raw image of BIDS",
    }


def test_two_contrasts_of_one_bids_session_need_a_choice(tmp_path: Path) -> None:
    """Two images with equal result names are refused unless the pattern selects one."""
    touch(tmp_path, "dataset_description.json", "sub-1/anat/sub-1_T1w.nii", "sub-1/anat/sub-1_T2w.nii")
    with pytest.raises(SourceError, match=r"sub-1_T1w\.nii and .*sub-1_T2w\.nii .*--pattern"):
        find_cases(tmp_path, tmp_path / "out")

    assert ids(tmp_path, "*_T1w.*") == ["sub-1_T1w"]


def test_a_manifest_names_scans_and_references(tmp_path: Path) -> None:
    """Paths are relative to the manifest, further columns are ignored, a missing file is left out with its line."""
    touch(tmp_path, "scans/a.nii", "scans/b.nii")
    manifest = tmp_path / "cases.csv"
    manifest.write_text("\ufeffid,path,reference,age\nlast,scans/a.nii,r.nii,9\nfirst,scans/b.nii,,\ngone,c.nii,,\n")
    first, last = find_cases(manifest, tmp_path / "out").cases

    assert (first.id, first.files, first.reference) == ("first", (tmp_path / "scans/b.nii",), None)
    assert (last.id, last.reference) == ("last", tmp_path / "r.nii")
    assert reasons(manifest) == {"c.nii": "line 4: there is no such file"}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("name,path\na,b.nii\n", "has the columns name, path"),
        ("", "has the columns none"),
        ("id,path\n../a,a.nii\n", "line 2: the id '../a'"),
        ("id,path\n=1+1,a.nii\n", "line 2: the id '=1\\+1'"),
        ("id,path\na,a.nii\na,b.nii\n", "would have the same name"),
        ("id,path\na,a.nii\na,a.nii\n", "would have the same name"),
    ],
)
def test_a_manifest_with_a_slip_is_refused(tmp_path: Path, text: str, fault: str) -> None:
    """A missing column, an unsafe id and a repeated id are refused."""
    touch(tmp_path, "a.nii", "b.nii")
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(SourceError, match=fault):
        find_cases(tmp_path / "m.csv", tmp_path / "out")


def test_one_scan_is_a_batch_of_one(tmp_path: Path) -> None:
    """A single file is a valid source."""
    touch(tmp_path, "a.nii.gz")

    assert ids(tmp_path / "a.nii.gz") == ["a"]


def test_nothing_is_said_to_be_nothing(tmp_path: Path) -> None:
    """A path that does not exist is named, with what is expected."""
    with pytest.raises(SourceError, match=r"was not found\. Give a folder, a CSV file"):
        find_cases(tmp_path / "gone", tmp_path / "out")
