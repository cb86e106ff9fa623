import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.client.result import Result
from service.errors import ClientError
from service.schemas import Job, Summary


@pytest.fixture
def result(make_job: Callable[..., dict[str, Any]]) -> Result:
    """Return a result with only a mask."""
    return Result(Job.model_validate(make_job("succeeded")), {"mask": b"MASK"})


def test_what_is_there_is_saved_under_the_name_that_is_given(result: Result, tmp_path: Path) -> None:
    """The folder is created and gets a file for every kept output, under the given name."""
    files = result.save(tmp_path / "new", "sub-1")

    assert files.mask.read_bytes() == b"MASK"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["sub-1_dseg.nii.gz"]


def test_without_a_name_the_job_s_id_is_taken(result: Result, tmp_path: Path) -> None:
    """The default name is the job's id, so that two jobs do not overwrite each other."""
    assert result.save(tmp_path).mask.name == "7f_dseg.nii.gz"


def test_the_summary_is_typed_and_saved(result: Result, tmp_path: Path, summary: dict[str, Any]) -> None:
    """The JSON becomes a Summary again, from memory and from the file."""
    whole = Result(result.job, {"summary": json.dumps(summary).encode(), "confidence": b"C"})
    files = whole.save(tmp_path)

    assert whole.summary.model == "tiny@0"
    assert Summary.model_validate_json(files.summary.read_bytes()) == whole.summary
    assert files.confidence.read_bytes() == b"C"


@pytest.mark.parametrize("name", ["confidence", "summary"])
def test_what_was_not_kept_says_so(result: Result, name: str) -> None:
    """The error names the output and what to do, instead of a KeyError."""
    with pytest.raises(ClientError, match=f"did not keep the {name}"):
        getattr(result, name)
