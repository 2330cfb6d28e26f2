"""A FAT16 file system made in memory: what firmware can read, without mkfs.vfat and mtools.

Layout and names as in Microsoft's "FAT: General Overview of On-Disk Format" 1.03: boot sector, two tables, root
folder, clusters. Times are fixed and names sorted: the same files give the same bytes.
"""

import struct
from collections.abc import Mapping

_SECTOR_BYTES = 512
_ROOT_ENTRIES = 512
_ENTRY_BYTES = 32
_CHARACTERS_PER_LONG_ENTRY = 13
# With fewer or more clusters a reader takes it for FAT12 or FAT32; 16 besides for those that miscount, as told there.
_CLUSTERS_AT_LEAST, _CLUSTERS_AT_MOST = 4085 + 16, 65524 - 16
_SECTORS_PER_CLUSTER_AT_MOST = 64
_FIRST_CLUSTER, _END_OF_CHAIN = 2, 0xFFFF
_FOLDER, _FILE, _VOLUME_LABEL, _LONG_NAME = 0x10, 0x20, 0x08, 0x0F
_DATE = (2024 - 1980) << 9 | 1 << 5 | 1
_SHORT_NAME_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-~")


def fat16(files: Mapping[str, bytes], *, label: str, size_bytes: int, hidden_sectors: int = 0) -> bytes:
    """A file system with these files, by their paths ("openstack/latest/meta_data.json").

    Args:
        files: content by path; folders are made as needed.
        label: the volume's name, at most 11 characters.
        size_bytes: of the whole file system, from about 2.2 MB up to 2 GB.
        hidden_sectors: where the partition begins on its disk, in sectors of 512 bytes.

    Raises: ValueError if the size is not one of FAT16 or the files do not fit.
    """
    volume = _Volume(label, size_bytes, hidden_sectors)
    root = volume.folder_entries(_tree(files), parent=0)
    return volume.image(_entry(label.ljust(11).encode(), _VOLUME_LABEL, 0, 0) + root)


class _Folder:
    def __init__(self) -> None:
        self.folders: dict[str, _Folder] = {}
        self.files: dict[str, bytes] = {}


def _tree(files: Mapping[str, bytes]) -> _Folder:
    root = _Folder()
    for path, content in files.items():
        *folders, name = path.split("/")
        folder = root
        for step in folders:
            folder = folder.folders.setdefault(step, _Folder())
        folder.files[name] = content
    return root


class _Volume:
    """Clusters handed out one after the other."""

    def __init__(self, label: str, size_bytes: int, hidden_sectors: int) -> None:
        self._label = label
        self._hidden_sectors = hidden_sectors
        self._sectors = size_bytes // _SECTOR_BYTES
        # As large as they may be: firmware and boot loaders read cluster by cluster, which an emulated guest waits for.
        self._sectors_per_cluster = _SECTORS_PER_CLUSTER_AT_MOST
        while self._clusters < _CLUSTERS_AT_LEAST and self._sectors_per_cluster > 1:
            self._sectors_per_cluster //= 2
        if self._clusters < _CLUSTERS_AT_LEAST:
            raise ValueError("too small for FAT16")
        if self._clusters > _CLUSTERS_AT_MOST:
            raise ValueError("too large for FAT16")
        self._table = [0xFFF8, 0xFFFF]
        self._data: dict[int, bytes] = {}

    @property
    def _table_sectors(self) -> int:
        # An entry of two bytes per cluster; counting the whole volume's clusters is at most a few sectors too many.
        return (self._sectors // self._sectors_per_cluster + 2) * 2 // _SECTOR_BYTES + 1

    @property
    def _data_sector(self) -> int:
        return 1 + 2 * self._table_sectors + _ROOT_ENTRIES * _ENTRY_BYTES // _SECTOR_BYTES

    @property
    def _clusters(self) -> int:
        return (self._sectors - self._data_sector) // self._sectors_per_cluster

    @property
    def _cluster_bytes(self) -> int:
        return self._sectors_per_cluster * _SECTOR_BYTES

    def folder_entries(self, folder: _Folder, *, parent: int) -> bytes:
        """The directory entries of a folder, after everything below it has got its clusters."""
        entries = b""
        taken: set[bytes] = set()
        for name, child in sorted(folder.folders.items()):
            start = self._folder(child, parent=parent)
            entries += _named_entries(name, _FOLDER, start, 0, taken)
        for name, content in sorted(folder.files.items()):
            start = self._store(content) if content else 0
            entries += _named_entries(name, _FILE, start, len(content), taken)
        return entries

    def _folder(self, folder: _Folder, *, parent: int) -> int:
        # Its own clusters come first, because the folders below refer to them.
        slots = 2 + sum(_slots(name) for name in (*folder.folders, *folder.files))
        start = self._store(bytes(slots * _ENTRY_BYTES))
        dots = _entry(b".".ljust(11), _FOLDER, start, 0) + _entry(b"..".ljust(11), _FOLDER, parent, 0)
        self._data[start] = dots + self.folder_entries(folder, parent=start)
        return start

    def _store(self, content: bytes) -> int:
        start = len(self._table)
        count = -(-len(content) // self._cluster_bytes)
        if start + count > self._clusters + _FIRST_CLUSTER:
            raise ValueError("the files do not fit")
        self._table += [*range(start + 1, start + count), _END_OF_CHAIN]
        self._data[start] = content
        return start

    def image(self, root: bytes) -> bytes:
        if len(root) > _ROOT_ENTRIES * _ENTRY_BYTES:
            raise ValueError("too many files in the root folder")
        image = bytearray(self._sectors * _SECTOR_BYTES)
        image[:_SECTOR_BYTES] = self._boot_sector()
        table = struct.pack(f"<{len(self._table)}H", *self._table)
        for copy in range(2):
            at = (1 + copy * self._table_sectors) * _SECTOR_BYTES
            image[at : at + len(table)] = table
        at = (1 + 2 * self._table_sectors) * _SECTOR_BYTES
        image[at : at + len(root)] = root
        for start, content in self._data.items():
            at = self._data_sector * _SECTOR_BYTES + (start - _FIRST_CLUSTER) * self._cluster_bytes
            image[at : at + len(content)] = content
        return bytes(image)

    def _boot_sector(self) -> bytes:
        small, large = (self._sectors, 0) if self._sectors < 0x10000 else (0, self._sectors)
        sector = struct.pack(
            "<3s8sHBHBHHBHHHIIBBBI11s8s",
            b"\xeb\x3c\x90",
            b"PILEUS  ",
            *(_SECTOR_BYTES, self._sectors_per_cluster, 1, 2, _ROOT_ENTRIES, small, 0xF8, self._table_sectors),
            *(63, 255, self._hidden_sectors, large),
            *(0x80, 0, 0x29, 0x50494C45),
            self._label.ljust(11).encode(),
            b"FAT16   ",
        )
        return sector.ljust(_SECTOR_BYTES - 2, b"\0") + b"\x55\xaa"


def _slots(name: str) -> int:
    return 1 if _is_short(name) else 1 + -(-len(name) // _CHARACTERS_PER_LONG_ENTRY)


def _is_short(name: str) -> bool:
    stem, dot, extension = name.partition(".")
    return (
        1 <= len(stem) <= 8
        and len(extension) <= 3
        and (not dot or bool(extension))
        and _SHORT_NAME_CHARACTERS.issuperset(stem + extension)
    )


def _named_entries(name: str, attributes: int, start: int, size_bytes: int, taken: set[bytes]) -> bytes:
    short = _short_name(name, taken)
    taken.add(short)
    last = _entry(short, attributes, start, size_bytes)
    return last if _is_short(name) else _long_name(name, short) + last


def _short_name(name: str, taken: set[bytes]) -> bytes:
    """The name in eight plus three characters, with a number if it had to be shortened or is already taken."""
    stem, _, extension = name.upper().rpartition(".") if "." in name else (name.upper(), "", "")
    fitting = ["".join(filter(_SHORT_NAME_CHARACTERS.__contains__, part)) for part in (stem, extension)]
    plain = (fitting[0].ljust(8) + fitting[1].ljust(3)).encode()
    if fitting == [stem, extension] and len(plain) == 11 and plain not in taken:
        return plain
    for number in range(1, 1000):
        tail = f"~{number}"
        short = ((fitting[0][: 8 - len(tail)] + tail).ljust(8) + fitting[1][:3].ljust(3)).encode()
        if short not in taken:
            return short
    raise ValueError(f"too many names like {name}")


def _long_name(name: str, short: bytes) -> bytes:
    checksum = 0
    for byte in short:
        checksum = ((checksum & 1) << 7 | checksum >> 1) + byte & 0xFF
    encoded = name.encode("utf-16-le")
    count = -(-len(encoded) // (2 * _CHARACTERS_PER_LONG_ENTRY))
    if len(encoded) < count * 2 * _CHARACTERS_PER_LONG_ENTRY:
        encoded = (encoded + b"\0\0").ljust(count * 2 * _CHARACTERS_PER_LONG_ENTRY, b"\xff")
    entries: list[bytes] = []
    for index in range(count):
        part = encoded[index * 26 : index * 26 + 26]
        order = index + 1 | (0x40 if index == count - 1 else 0)
        entries.append(
            struct.pack("<B10sBBB12sH4s", order, part[:10], _LONG_NAME, 0, checksum, part[10:22], 0, part[22:])
        )
    return b"".join(reversed(entries))


def _entry(short: bytes, attributes: int, start: int, size_bytes: int) -> bytes:
    return struct.pack("<11sBBBHHHHHHHI", short, attributes, 0, 0, 0, _DATE, _DATE, 0, 0, _DATE, start, size_bytes)
