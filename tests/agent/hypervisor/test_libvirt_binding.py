import sys
from pathlib import Path

import pytest

from pileus.agent.hypervisor.libvirt import binding
from pileus.kernel.errors import Unavailable


def test_without_a_binding_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "libvirt", None)
    with pytest.raises(Unavailable, match="python3-libvirt"):
        binding._module(tmp_path)  # pyright: ignore[reportPrivateUsage]


def test_a_binding_that_is_broken_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "libvirt", None)
    (tmp_path / "libvirt.py").touch()
    for suffix in binding.importlib.machinery.EXTENSION_SUFFIXES:
        (tmp_path / f"libvirtmod{suffix}").write_bytes(b"no library")
    with pytest.raises(Unavailable, match="cannot be loaded"):
        binding._module(tmp_path)  # pyright: ignore[reportPrivateUsage]
