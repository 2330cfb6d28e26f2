"""Reading from an ELF file which shared libraries it asks for."""

import struct

_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_NULL, _DT_NEEDED, _DT_STRTAB = 0, 1, 5


def needed_libraries(binary: bytes) -> list[str]:
    """The names of the shared libraries that a 64-bit little-endian program or library asks the dynamic linker for.

    Raises: ValueError if it is no such file.
    """
    if binary[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a 64-bit little-endian ELF file")
    offset, size, count = (*struct.unpack_from("<Q", binary, 32), *struct.unpack_from("<HH", binary, 54))
    # p_type, p_flags, p_offset, p_vaddr, p_paddr, p_filesz, p_memsz
    headers = [struct.unpack_from("<IIQQQQQ", binary, offset + index * size) for index in range(count)]
    dynamic = [header for header in headers if header[0] == _PT_DYNAMIC]
    if not dynamic:
        return []
    entries: list[tuple[int, int]] = []
    for tag, value in struct.iter_unpack("<qQ", binary[dynamic[0][2] : dynamic[0][2] + dynamic[0][5]]):
        if tag == _DT_NULL:
            break
        entries.append((tag, value))
    needed = [value for tag, value in entries if tag == _DT_NEEDED]
    if not needed:
        return []
    table_address = next(value for tag, value in entries if tag == _DT_STRTAB)
    table = next(
        table_address - header[3] + header[2]
        for header in headers
        if header[0] == _PT_LOAD and header[3] <= table_address < header[3] + header[5]
    )
    return [binary[table + name : binary.index(b"\0", table + name)].decode() for name in needed]
