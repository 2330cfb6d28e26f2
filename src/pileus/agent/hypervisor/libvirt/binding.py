"""The way to libvirt's C library: its Python binding, found, typed and with its event loop running.

The binding is compiled against the libvirt that is installed, so distributions ship it (`python3-libvirt`) and an
environment of its own rarely has it. What is typed here is what Pileus calls, no more.
"""
# ruff: noqa: N802, N803 - the names are libvirt's

import importlib
import importlib.machinery
import importlib.util
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Protocol, cast

import structlog

from pileus.kernel.errors import Unavailable

log = structlog.get_logger()

_DEBIAN = Path("/usr/lib/python3/dist-packages")


class VirDomain(Protocol):
    """`libvirt.virDomain`: a guest, running or not."""

    def name(self) -> str: ...
    def UUIDString(self) -> str: ...
    def state(self, flags: int = 0) -> Sequence[int]: ...
    def info(self) -> Sequence[int]: ...
    def setVcpusFlags(self, nvcpus: int, flags: int = 0) -> int: ...
    def setMemoryFlags(self, memory: int, flags: int = 0) -> int: ...
    def maxVcpus(self) -> int: ...
    def isActive(self) -> int: ...
    def isPersistent(self) -> int: ...
    def metadata(self, type: int, uri: str, flags: int = 0) -> str: ...
    def XMLDesc(self, flags: int = 0) -> str: ...
    def createWithFlags(self, flags: int = 0) -> int: ...
    def shutdownFlags(self, flags: int = 0) -> int: ...
    def destroyFlags(self, flags: int = 0) -> int: ...
    def reboot(self, flags: int = 0) -> int: ...
    def reset(self, flags: int = 0) -> int: ...
    def resume(self) -> int: ...
    def suspend(self) -> int: ...
    def managedSave(self, flags: int = 0) -> int: ...
    def managedSaveRemove(self, flags: int = 0) -> int: ...
    def hasManagedSaveImage(self, flags: int = 0) -> int: ...
    def attachDeviceFlags(self, xml: str, flags: int = 0) -> int: ...
    def detachDeviceAlias(self, alias: str, flags: int = 0) -> int: ...
    def updateDeviceFlags(self, xml: str, flags: int = 0) -> int: ...
    def setSchedulerParametersFlags(self, params: Mapping[str, int], flags: int = 0) -> int: ...
    def setBlockIoTune(self, disk: str, params: Mapping[str, int], flags: int = 0) -> int: ...
    def blockInfo(self, path: str, flags: int = 0) -> Sequence[int]: ...
    def blockResize(self, disk: str, size: int, flags: int = 0) -> int: ...
    def undefineFlags(self, flags: int = 0) -> int: ...
    def openGraphicsFD(self, idx: int, flags: int = 0) -> int: ...
    def setUserPassword(self, user: str, password: str, flags: int = 0) -> int: ...
    def screenshot(self, stream: "VirStream", screen: int, flags: int = 0) -> str: ...


class VirStream(Protocol):
    """`libvirt.virStream`: bytes from libvirtd."""

    def recvAll(self, handler: Callable[["VirStream", bytes, None], int], opaque: None) -> None: ...
    def finish(self) -> int: ...
    def abort(self) -> int: ...


class VirConnect(Protocol):
    """`libvirt.virConnect`: a connection to libvirtd. Every call blocks."""

    def close(self) -> int: ...
    def isAlive(self) -> int: ...
    def setKeepAlive(self, interval: int, count: int) -> int: ...
    def registerCloseCallback(self, cb: Callable[["VirConnect", int, None], None], opaque: None) -> int: ...
    def unregisterCloseCallback(self) -> int: ...
    def domainEventRegisterAny(
        self, dom: None, eventID: int, cb: Callable[["VirConnect", VirDomain, int, int, None], None], opaque: None
    ) -> int: ...
    def domainEventDeregisterAny(self, callbackID: int) -> int: ...
    def getLibVersion(self) -> int: ...
    def getVersion(self) -> int: ...
    def getInfo(self) -> Sequence[str | int]: ...
    def lookupByUUIDString(self, uuidstr: str) -> VirDomain: ...
    def listAllDomains(self, flags: int = 0) -> Sequence[VirDomain]: ...
    def defineXML(self, xml: str) -> VirDomain: ...
    def newStream(self, flags: int = 0) -> VirStream: ...


class Library(Protocol):
    """The module `libvirt`."""

    libvirtError: type[Exception]  # noqa: N815
    VIR_DOMAIN_AFFECT_CONFIG: int
    VIR_DOMAIN_AFFECT_LIVE: int
    VIR_DOMAIN_BLOCK_RESIZE_BYTES: int
    VIR_DOMAIN_DEVICE_MODIFY_FORCE: int
    VIR_DOMAIN_EVENT_ID_LIFECYCLE: int
    VIR_DOMAIN_METADATA_ELEMENT: int
    VIR_DOMAIN_REBOOT_ACPI_POWER_BTN: int
    VIR_DOMAIN_SAVE_RUNNING: int
    VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN: int
    VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA: int
    VIR_DOMAIN_UNDEFINE_MANAGED_SAVE: int
    VIR_DOMAIN_UNDEFINE_NVRAM: int
    VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA: int
    VIR_ERR_AGENT_UNRESPONSIVE: int
    VIR_ERR_ARGUMENT_UNSUPPORTED: int
    VIR_ERR_INTERNAL_ERROR: int
    VIR_ERR_NO_DOMAIN: int
    VIR_ERR_NO_DOMAIN_METADATA: int
    VIR_ERR_OPERATION_INVALID: int
    VIR_ERR_OPERATION_TIMEOUT: int

    def open(self, name: str) -> VirConnect: ...
    def registerErrorHandler(self, f: Callable[[None, object], None], ctx: None) -> int: ...
    def virEventRegisterDefaultImpl(self) -> int: ...
    def virEventRunDefaultImpl(self) -> int: ...


@cache
def load() -> Library:
    """The binding, ready for use: its event loop, of which a process has one, runs in a thread.

    Raises:
        Unavailable: there is no binding for this Python; it says what to install.
    """
    library = cast("Library", _module(_DEBIAN))  # an extension module without types; Library names what we rely on
    # It prints every error to stderr by itself; they arrive as exceptions too.
    library.registerErrorHandler(lambda _, __: None, None)
    library.virEventRegisterDefaultImpl()
    threading.Thread(target=_run_events, args=(library,), name="libvirt events", daemon=True).start()
    return library


def error_code(error: Exception) -> int:
    """The virErrorNumber of a libvirtError."""
    return cast("_Coded", error).get_error_code()


class _Coded(Protocol):
    def get_error_code(self) -> int: ...


def _module(distribution: Path) -> ModuleType:
    if importlib.util.find_spec("libvirt") is not None:
        return importlib.import_module("libvirt")
    # Only these two files: the whole folder on sys.path would put the distribution's packages beside ours.
    extension = distribution / f"libvirtmod{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    source = distribution / "libvirt.py"
    if not (extension.exists() and source.exists()):
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise Unavailable(
            f"libvirt's binding for Python {version} is not installed: install Debian's python3-libvirt if {version} is"
            " Debian's own Python, else libvirt-python into this environment"
        )
    _execute("libvirtmod", extension)
    return _execute("libvirt", source)


def _execute(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    try:
        # libvirt.py imports libvirtmod by its name.
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as broken:
        sys.modules.pop(name, None)
        raise Unavailable(f"libvirt's Python binding cannot be loaded: {broken}") from broken
    return module


def _run_events(library: Library) -> None:
    while True:
        try:
            library.virEventRunDefaultImpl()
        except library.libvirtError:
            log.exception("libvirt's event loop stumbled")
