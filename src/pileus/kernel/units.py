"""Sizes. A name says its unit (`memory_mib`, `size_bytes`); these turn one into another."""

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB


def size_text(size_bytes: int) -> str:
    """A size as a person writes it, in binary units: `1.5 GiB`."""
    amount = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(amount) < KIB:
            return f"{amount:.0f} {unit}" if amount == int(amount) else f"{amount:.1f} {unit}"
        amount /= KIB
    return f"{amount:.1f} TiB"
