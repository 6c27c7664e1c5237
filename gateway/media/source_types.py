"""IPTC's digital source type, which says in a file's XMP that a model made the image.

https://cv.iptc.org/newscodes/digitalsourcetype
"""

from enum import StrEnum

_VOCABULARY = "http://cv.iptc.org/newscodes/digitalsourcetype/"


class SourceType(StrEnum):
    """The origin of an image: a model alone, or a model within another image."""

    MODEL = f"{_VOCABULARY}trainedAlgorithmicMedia"
    COMPOSITE = f"{_VOCABULARY}compositeWithTrainedAlgorithmicMedia"


def source_type_of(file: bytes) -> SourceType:
    """Return the source type that a model's file gives in its metadata, or else the model's own."""
    return SourceType.COMPOSITE if SourceType.COMPOSITE.encode() in file else SourceType.MODEL


def xmp_packet(source_type: SourceType) -> bytes:
    """Return the XMP packet with a source type and nothing else."""
    return (
        '<?xpacket begin="\N{ZERO WIDTH NO-BREAK SPACE}" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about=""'
        ' xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
        f' Iptc4xmpExt:DigitalSourceType="{source_type}"/>'
        '</rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
    ).encode()
