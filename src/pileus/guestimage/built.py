"""What a build leaves: the image, and beside it a certificate that tells what it was made from."""

import hashlib
from pathlib import Path

import msgspec


class BuiltImage(msgspec.Struct, frozen=True, kw_only=True):
    """A disk image in qcow2."""

    path: Path
    sha256: str
    size_bytes: int
    """Of the file."""
    virtual_size_bytes: int
    """Of the disk that a guest sees: the smallest root disk it can be started from."""
    description: str


class _Certificate(msgspec.Struct, frozen=True, kw_only=True):
    recipe: str
    sha256: str
    size_bytes: int
    virtual_size_bytes: int
    description: str


def recipe(*ingredients: str) -> str:
    """A hash of everything an image is made of: the ingredients, in any order, and the files of this folder."""
    whole = hashlib.sha256()
    for ingredient in sorted(ingredients):
        whole.update(ingredient.encode() + b"\0")
    folder = Path(__file__).parent
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            whole.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return whole.hexdigest()


def find(output: Path, recipe: str) -> BuiltImage | None:
    """The image that is there already, if it was made by this recipe."""
    try:
        certificate = msgspec.json.decode(_beside(output).read_bytes(), type=_Certificate)
        size_bytes = output.stat().st_size
    except (FileNotFoundError, msgspec.MsgspecError):
        return None
    return _image(output, certificate) if (certificate.recipe, certificate.size_bytes) == (recipe, size_bytes) else None


def place(file: Path, output: Path, recipe: str, *, virtual_size_bytes: int, description: str) -> BuiltImage:
    """Move a complete image to where it belongs, on the same file system."""
    with file.open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    certificate = _Certificate(
        recipe=recipe,
        sha256=sha256,
        size_bytes=file.stat().st_size,
        virtual_size_bytes=virtual_size_bytes,
        description=description,
    )
    # The image moves last: whoever finds it finds its certificate too.
    _beside(file).write_bytes(msgspec.json.encode(certificate))
    _beside(file).replace(_beside(output))
    file.replace(output)
    return _image(output, certificate)


def _image(output: Path, certificate: _Certificate) -> BuiltImage:
    return BuiltImage(
        path=output,
        sha256=certificate.sha256,
        size_bytes=certificate.size_bytes,
        virtual_size_bytes=certificate.virtual_size_bytes,
        description=certificate.description,
    )


def _beside(output: Path) -> Path:
    return output.with_name(f"{output.name}.json")
