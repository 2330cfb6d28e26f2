"""The records that an agent keeps: what whoever writes one may rely on."""

import asyncio
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pileus.agent import records
from pileus.agent.records import AgentRecords, Removed
from pileus.kernel.files import write_atomically
from pileus.kernel.ids import VolumeId, new_id


async def test_whoever_is_cancelled_while_a_record_is_written_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def slowly(file: Path, data: bytes) -> None:
        begun.set()
        assert may_end.wait(60)
        write_atomically(file, data)

    monkeypatch.setattr(records, "write_atomically", slowly)
    volumes = AgentRecords(tmp_path).volumes
    volumes.load()
    id, record = VolumeId(new_id()), Removed(generation=2, at=datetime(2026, 1, 1, tzinfo=UTC))
    writing = asyncio.create_task(volumes.put(id, record))
    assert await asyncio.to_thread(begun.wait, 60)
    writing.cancel()
    await asyncio.wait((writing,), timeout=0)
    assert not writing.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert volumes.get(id) == record
    again = AgentRecords(tmp_path)
    again.load()
    assert again.volumes.get(id) == record
