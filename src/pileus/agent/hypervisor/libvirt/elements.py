"""Elements of libvirt's XML. They are built as a tree, never as text: names come from tenants."""

import re
from xml.etree import ElementTree as ET

# What XML 1.0 cannot say, not even escaped.
_UNSAYABLE = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def add(parent: ET.Element, tag: str, *, text: str | None = None, **attributes: str) -> ET.Element:
    """A new element at the end of another; what XML cannot say is replaced."""
    element = ET.SubElement(parent, tag, {name: _sayable(value) for name, value in attributes.items()})
    if text is not None:
        element.text = _sayable(text)
    return element


def _sayable(text: str) -> str:
    return _UNSAYABLE.sub("\ufffd", text)
