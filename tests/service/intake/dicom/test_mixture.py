from service.errors import MultipleSeries
from service.intake.dicom.mixture import LISTED, SeriesInArchive, several_series


def test_each_series_is_named_the_largest_first() -> None:
    """UID, modality, number and count of images stand in the message, and how to choose."""
    error = several_series([SeriesInArchive("1.2.3", "MR", "4", 5), SeriesInArchive("1.2.4", "CT", "", 90)])

    assert type(error) is MultipleSeries
    assert error.detail == (
        "2 series were found; one is expected: 1.2.4 (CT, 90 images); 1.2.3 (MR, series 4, 5 images). Choose one by its "
        "UID (`series=UID`, `--series UID`), or send the files of one series only."
    )


def test_text_in_place_of_a_value_is_not_repeated() -> None:
    """A file may hold a name anywhere."""
    detail = several_series(
        [SeriesInArchive("DOE^JANE", "DOE", "DOE", 1), SeriesInArchive("1.2", "MR", "1\n", 2)]
    ).detail

    assert "DOE" not in detail
    assert "a UID that is not valid (1 image)" in detail


def test_a_long_list_is_cut() -> None:
    """The message stays short."""
    detail = several_series([SeriesInArchive(f"1.{n}", "MR", str(n), 1) for n in range(50)]).detail

    assert f"and {50 - LISTED} more" in detail
    assert len(detail) < 1500
