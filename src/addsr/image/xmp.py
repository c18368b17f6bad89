"""XMP packets: what is wrong after enlarging corrected, what was done to the picture added.

ISO 16684-1 (XMP); digital source type: IPTC Photo Metadata Standard and its NewsCodes.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from xml.dom import minidom
from xml.parsers.expat import ExpatError

log = logging.getLogger(__name__)

OURS = "https://github.com/addsr/ns/1.0/"
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/algorithmicallyEnhanced"
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_TIFF = "http://ns.adobe.com/tiff/1.0/"
_EXIF = "http://ns.adobe.com/exif/1.0/"
_XMP = "http://ns.adobe.com/xap/1.0/"
_IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
_XMLNS = "http://www.w3.org/2000/xmlns/"
_STALE = {
    (_TIFF, "Orientation"), (_TIFF, "ImageWidth"), (_TIFF, "ImageLength"), (_TIFF, "Software"),
    (_TIFF, "BitsPerSample"), (_TIFF, "Compression"), (_TIFF, "PhotometricInterpretation"),
    (_TIFF, "SamplesPerPixel"), (_EXIF, "PixelXDimension"), (_EXIF, "PixelYDimension"),
    (_EXIF, "ColorSpace"), (_EXIF, "CompressedBitsPerPixel"), (_EXIF, "SubjectArea"),
    (_EXIF, "SubjectLocation"), (_EXIF, "FocalPlaneXResolution"), (_EXIF, "FocalPlaneYResolution"),
    (_EXIF, "FocalPlaneResolutionUnit"), (_XMP, "Thumbnails"), (_XMP, "CreatorTool"),
    (_IPTC, "DigitalSourceType"),
    ("http://ns.adobe.com/photoshop/1.0/", "ICCProfile"),
}  # fmt: skip
_BESIDE = frozenset({
    "http://ns.adobe.com/xmp/note/",  # more XMP, of which this packet is the first part
    "http://ns.adobe.com/hdr-gain-map/1.0/",
    "http://ns.google.com/photos/1.0/camera/",  # a film of the moment
    "http://ns.google.com/photos/1.0/container/",
    "http://ns.google.com/photos/1.0/container/item/",
    "http://ns.google.com/photos/1.0/image/",
    "http://ns.google.com/photos/1.0/depthmap/",
    "http://ns.google.com/photos/1.0/audio/",
})  # fmt: skip
"""What phones put behind a picture in its file, and results do not hold."""
_PANORAMA = "http://ns.google.com/photos/1.0/panorama/"
_PANORAMA_PIXELS = re.compile("(Cropped|Full|LargestValid).*")
_SIDES = ("Width", "Height")
_EMPTY = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{_RDF}"/></x:xmpmeta>'
_HEAD = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'


_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold in any way."""


def correct_xmp(
    packet: bytes | None, size: tuple[int, int], software: str, done: Mapping[str, str]
) -> bytes:
    """`packet` for the enlarged picture, or a new one.

    Args:
        size: width and height of the result.
        done: what was done, by property name; goes into the namespace `OURS` and takes the place
            of what an earlier enlargement left there.
    """
    document = _parse(packet)
    root = document.getElementsByTagNameNS(_RDF, "RDF")[0]
    _scale_panorama(root, size)
    for node in [root, *root.getElementsByTagName("*")]:
        _clean(node)
    own = document.createElementNS(_RDF, "rdf:Description")
    own.setAttributeNS(_XMLNS, "xmlns:rdf", _RDF)
    own.setAttributeNS(_RDF, "rdf:about", "")
    for prefix, space, values in (
        ("tiff", _TIFF, {"ImageWidth": str(size[0]), "ImageLength": str(size[1])}),
        ("exif", _EXIF, {"PixelXDimension": str(size[0]), "PixelYDimension": str(size[1])}),
        ("xmp", _XMP, {"CreatorTool": software}),
        ("Iptc4xmpExt", _IPTC, {"DigitalSourceType": SOURCE_TYPE}),
        ("addsr", OURS, done),
    ):
        own.setAttributeNS(_XMLNS, f"xmlns:{prefix}", space)
        for name, value in values.items():
            own.setAttributeNS(space, f"{prefix}:{name}", _NO_XML.sub("\ufffd", value))
    root.appendChild(own)
    body = document.documentElement
    assert body is not None
    return f'{_HEAD}{body.toxml()}<?xpacket end="w"?>'.encode()


def _parse(packet: bytes | None) -> minidom.Document:
    if packet:
        text = packet.strip(b"\0 \t\r\n")
        try:
            # a packet has no document type; one that brings entities is not expanded
            if b"<!" in text.replace(b"<![CDATA[", b"").replace(b"<!--", b""):
                raise ValueError("it declares a document type")
            document = minidom.parseString(text)
            if document.getElementsByTagNameNS(_RDF, "RDF"):
                return document
            raise ValueError("it holds no rdf:RDF")
        except (ExpatError, ValueError, LookupError) as error:
            log.warning("XMP block cannot be read (%s); it is left out", error)
    return minidom.parseString(_EMPTY)


def _clean(node: minidom.Element) -> None:
    """Takes out of an element what the enlargement made untrue, as attributes and as children."""
    for attribute in list(node.attributes.values()):
        if _is_stale(attribute.namespaceURI, attribute.localName):
            node.removeAttributeNode(attribute)
    for child in list(node.childNodes):
        if isinstance(child, minidom.Element) and _is_stale(child.namespaceURI, child.localName):
            node.removeChild(child)


def _is_stale(space: str | None, name: str | None) -> bool:
    return space == OURS or space in _BESIDE or (space, name) in _STALE


def _scale_panorama(root: minidom.Element, size: tuple[int, int]) -> None:
    """Has a panorama's place on the sphere in pixels of the result, or leaves it out.

    Source: the Photo Sphere XMP properties (GPano), which viewers turn a flat picture by.
    """
    found: dict[str, minidom.Attr | minidom.Text] = {}
    for node in [root, *root.getElementsByTagName("*")]:
        for attribute in node.attributes.values():
            if attribute.namespaceURI == _PANORAMA:
                found[str(attribute.localName)] = attribute
        text = node.firstChild
        if node.namespaceURI == _PANORAMA and isinstance(text, minidom.Text):
            found[str(node.localName)] = text
    try:
        old = [float(str(found[f"CroppedAreaImage{side}Pixels"].nodeValue)) for side in _SIDES]
        factors = [new / before for new, before in zip(size, old, strict=True)]
        is_whole = abs(factors[0] / factors[1] - 1) < 0.02
        values = {
            name: float(str(node.nodeValue))
            for name, node in found.items()
            if _PANORAMA_PIXELS.fullmatch(name)
        }
    except (KeyError, ValueError, ZeroDivisionError):  # told in part, or no numbers
        is_whole, factors, values = False, [], {}
    if not is_whole:  # cut out, or told in part: no longer to be wrapped around a sphere
        for node in found.values():
            if isinstance(node, minidom.Attr):
                node.ownerElement.removeAttributeNode(node)  # type: ignore[union-attr]
            elif node.parentNode is not None and node.parentNode.parentNode is not None:
                node.parentNode.parentNode.removeChild(node.parentNode)
        return
    for name, value in values.items():
        is_down = "Height" in name or "Top" in name
        scaled = value * factors[is_down]
        if math.isfinite(scaled):
            found[name].nodeValue = str(round(scaled))


def read_done(packet: bytes) -> dict[str, str]:
    """What addsr says it did, from the XMP packet of a result; empty where it says nothing."""
    found: dict[str, str] = {}
    for node in _parse(packet).getElementsByTagNameNS(_RDF, "Description"):
        for attribute in node.attributes.values():
            if attribute.namespaceURI == OURS:
                found[str(attribute.localName)] = str(attribute.value)
    return found
