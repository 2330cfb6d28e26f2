"""A small reader of FAT16, which follows the format's description and not our writer."""

import struct


class Reader:
    """What is in an image of a FAT16 file system."""

    def __init__(self, image: bytes) -> None:
        self.image = image
        sector, self.per_cluster, reserved, tables, root_entries, small, _, table_sectors = struct.unpack_from(
            "<HBHBHHBH", image, 11
        )
        assert image[510:512] == b"\x55\xaa"
        assert sector == 512
        sectors = small or struct.unpack_from("<I", image, 32)[0]
        assert sectors * 512 == len(image)
        root = (reserved + tables * table_sectors) * 512
        self.root = image[root : root + root_entries * 32]
        self.data = root + root_entries * 32
        self.clusters = (len(image) - self.data) // 512 // self.per_cluster
        tables_at = reserved * 512
        first, second = (
            image[tables_at + copy * table_sectors * 512 : tables_at + (copy + 1) * table_sectors * 512]
            for copy in range(tables)
        )
        assert first == second
        assert len(first) // 2 >= self.clusters + 2
        self.table = struct.unpack(f"<{len(first) // 2}H", first)

    def chain(self, cluster: int) -> bytes:
        """The content of the clusters from this one on."""
        size_bytes = self.per_cluster * 512
        content = bytearray()
        while cluster < 0xFFF8:
            at = self.data + (cluster - 2) * size_bytes
            content += self.image[at : at + size_bytes]
            cluster = self.table[cluster]
        return bytes(content)

    def files(self, folder: bytes | None = None, path: str = "") -> dict[str, bytes]:
        """All files below a folder, or the root, by their paths."""
        found: dict[str, bytes] = {}
        long_name = ""
        for at in range(0, len(self.root if folder is None else folder), 32):
            entry = (self.root if folder is None else folder)[at : at + 32]
            attributes, (cluster,), (size_bytes,) = (
                entry[11],
                struct.unpack("<H", entry[26:28]),
                struct.unpack("<I", entry[28:]),
            )
            if entry[0] == 0:
                break
            if attributes == 0x0F:
                part = (entry[1:11] + entry[14:26] + entry[28:32]).decode("utf-16-le")
                long_name = part.split("\0")[0] + long_name
                continue
            short = entry[:8].decode().rstrip() + ("." + entry[8:11].decode().rstrip()).rstrip(".")
            name, long_name = long_name or short, ""
            if attributes & 0x08 or name in (".", ".."):
                continue
            if attributes & 0x10:
                found |= self.files(self.chain(cluster), f"{path}{name}/")
            else:
                found[path + name] = self.chain(cluster)[:size_bytes] if size_bytes else b""
        return found
