import pytest

from service.pacs.config import Pacs
from service.pacs.dimse import DimsePeer
from service.pacs.peer import open_peer
from service.pacs.web import DicomWeb


@pytest.mark.parametrize(
    ("pacs", "peer_type"),
    [
        ({"url": "http://127.0.0.1:9/dicom-web"}, DicomWeb),
        ({"dimse": {"host": "127.0.0.1", "port": 9, "aet": "OLD"}}, DimsePeer),
    ],
)
def test_the_configuration_chooses_the_protocol(pacs: dict[str, object], peer_type: type) -> None:
    """A PACS with a URL is used over DICOMweb, any other over DIMSE; opening sends nothing."""
    with open_peer(Pacs.model_validate(pacs)) as peer:
        assert type(peer) is peer_type
