import pytest

from service.pacs.config import Pacs
from service.pacs.dimse import DimsePeer
from service.pacs.peer import open_peer
from service.pacs.web import DicomWeb


@pytest.mark.parametrize(
    ("pacs", "kind"),
    [
        ({"url": "http://127.0.0.1:9/dicom-web"}, DicomWeb),
        ({"dimse": {"host": "127.0.0.1", "port": 9, "aet": "OLD"}}, DimsePeer),
    ],
)
def test_each_pacs_is_spoken_to_in_its_own_way(pacs: dict[str, object], kind: type) -> None:
    """DICOMweb where there is an address, DIMSE otherwise; nothing is sent by opening."""
    with open_peer(Pacs.model_validate(pacs)) as peer:
        assert type(peer) is kind
