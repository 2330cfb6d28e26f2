"""Typed identifiers: a VolumeId is never accepted where a HostId is meant.

An id is the text of a UUID version 7 (RFC 9562, section 5.7): ordered by the time of making, so that a table sorted by
id is a table sorted by age. Text and not `uuid.UUID`, because a str keeps its hash and costs half the memory.
"""

import os
import re
import time
from datetime import UTC, datetime
from typing import NewType

from pileus.kernel.errors import Invalid

EventSequence = NewType("EventSequence", int)

BackupId = NewType("BackupId", str)
FloatingIpId = NewType("FloatingIpId", str)
FlavorId = NewType("FlavorId", str)
GroupId = NewType("GroupId", str)
GroupMappingId = NewType("GroupMappingId", str)
HostId = NewType("HostId", str)
IdentityProviderId = NewType("IdentityProviderId", str)
ImageExportId = NewType("ImageExportId", str)
ImageId = NewType("ImageId", str)
InstanceId = NewType("InstanceId", str)
KeypairId = NewType("KeypairId", str)
NetworkId = NewType("NetworkId", str)
PoolId = NewType("PoolId", str)
PortId = NewType("PortId", str)
ProjectId = NewType("ProjectId", str)
RoleId = NewType("RoleId", str)
RouterId = NewType("RouterId", str)
ScheduleId = NewType("ScheduleId", str)
SecurityGroupId = NewType("SecurityGroupId", str)
SecurityRuleId = NewType("SecurityRuleId", str)
ServerGroupId = NewType("ServerGroupId", str)
SnapshotId = NewType("SnapshotId", str)
StoragePoolId = NewType("StoragePoolId", str)
SubnetId = NewType("SubnetId", str)
TaskId = NewType("TaskId", str)
TokenId = NewType("TokenId", str)
UserId = NewType("UserId", str)
VolumeId = NewType("VolumeId", str)

_FORM = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_last = 0
_LAST_MS = 253_370_764_800_000
"""The last year but one that a datetime can be in: who is hostile gives an id of a later one."""


def new_id() -> str:
    """A fresh UUID version 7 as text; later ids of one process sort after earlier ones."""
    global _last  # noqa: PLW0603 - the monotonic counter of RFC 9562, section 6.2, belongs to the process
    # 48 bits of milliseconds and 12 of their fraction, as in method 3 of section 6.2.
    stamp = time.time_ns() * 4096 // 1_000_000
    _last = stamp = stamp if stamp > _last else _last + 1
    tail = int.from_bytes(os.urandom(8)) & 0x3FFF_FFFF_FFFF_FFFF | 0x8000_0000_0000_0000
    text = f"{stamp >> 12:012x}7{stamp & 0xFFF:03x}{tail:016x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def made_at(id: str) -> datetime:
    """When an id was made, if `new_id` has made it; else any time."""
    return datetime.fromtimestamp(min(int(id[:8] + id[9:13], 16), _LAST_MS) / 1000, UTC)


def is_id(text: str) -> bool:
    """Whether this has the form of an id: as a file's name it stays in its folder."""
    return _FORM.fullmatch(text) is not None


def check_id(text: str) -> None:
    """Refuse what is no id, before it names a file.

    Raises:
        Invalid: it has not the form of one.
    """
    if not is_id(text):
        raise Invalid("an id is a UUID in lower case", fields={"id": f"{text[:50]!r} is none"})
