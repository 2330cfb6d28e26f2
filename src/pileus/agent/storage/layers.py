"""How the content of a volume is laid in layers, so that what it was at a moment is kept. Pure.

The lowest layer (`BASE`) is the volume's raw file. A snapshot freezes the layer that was written to until then, and a
new one is laid over it that takes what is written from now on. Whoever reads sees the topmost layer that has a block.
What no snapshot needs any more is merged down, one layer into the one below it, until the base is the volume again:

    base                            no snapshot
    base <- one                     snapshot `one` is what base holds; what is written goes to layer `one`
    base <- one <- two              snapshot `two` is base with layer `one`
    base <- one                     `two` was deleted: its layer was merged into layer `one`

A volume that is reverted to a snapshot gets a new layer over what that froze; the layers of what was written since stay
as long as another snapshot needs them.
"""

from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec.structs import replace

from pileus.kernel.errors import Conflict, NotFound

BASE: Final = ""
"""The layer that a volume begins with."""


class Layers(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The layers of one volume."""

    active: str = BASE
    """Which one is written to."""
    below: Mapping[str, str] = {}
    """Of each layer but the base, the one under it. A layer is called after the snapshot or revert that made it."""
    frozen: Mapping[str, str] = {}
    """Of each snapshot the layer that holds, with those below it, what the volume was."""
    unconfirmed: str = ""
    """A snapshot of which it is not known yet that whoever uses the volume writes to its layer."""
    merging: str = ""
    """A layer that is being merged into the one below it."""

    def chain(self, layer: str) -> list[str]:
        """A layer and all below it, from the top."""
        chain = [layer]
        while chain[-1] != BASE:
            chain.append(self.below[chain[-1]])
        return chain

    def above(self, layer: str) -> list[str]:
        """What is laid directly over a layer."""
        return [each for each, under in self.below.items() if under == layer]

    def of(self, snapshot: str) -> str:
        """The layer that a snapshot froze.

        Raises:
            NotFound: there is no such snapshot of this volume.
        """
        if snapshot not in self.frozen:
            raise NotFound(f"the volume has no snapshot {snapshot}")
        return self.frozen[snapshot]

    def taken(self, snapshot: str) -> "Layers":
        """With what is written to now frozen as this snapshot, under a new layer; not yet confirmed."""
        return replace(
            self,
            active=snapshot,
            below={**self.below, snapshot: self.active},
            frozen={**self.frozen, snapshot: self.active},
            unconfirmed=snapshot,
        )

    def confirmed(self) -> "Layers":
        return replace(self, unconfirmed="")

    def untaken(self) -> "Layers":
        """As it was before the snapshot that is not confirmed; only for one whose layer nobody has written to."""
        snapshot = self.unconfirmed
        return replace(
            self,
            active=self.below[snapshot],
            below=_without(self.below, snapshot),
            frozen=_without(self.frozen, snapshot),
            unconfirmed="",
        )

    def reverted(self, snapshot: str, to: str) -> "Layers":
        """With a new layer of this name over what a snapshot froze, in place of what is written to now."""
        if to in self.below:
            raise Conflict(f"the volume has a layer {to} already")
        return replace(self, active=to, below={**self.below, to: self.of(snapshot)}, unconfirmed="").trimmed()

    def without(self, snapshot: str) -> "Layers":
        """Without this snapshot; what it alone needed is still there, to be merged."""
        return replace(self, frozen=_without(self.frozen, snapshot)).trimmed()

    def trimmed(self) -> "Layers":
        """Without the layers that nobody can reach any more."""
        needed = {self.active, *self.frozen.values(), self.merging}
        reached = {each for layer in needed for each in self.chain(layer)}
        return replace(self, below={layer: under for layer, under in self.below.items() if layer in reached})

    def to_merge(self) -> str | None:
        """A layer to be merged into the one below it, which nobody else needs; None if all are needed."""
        if self.merging:
            return self.merging
        kept = set(self.frozen.values())
        for layer, under in self.below.items():
            if under not in kept and len(self.above(under)) == 1:
                return layer
        return None

    def begun(self, layer: str) -> "Layers":
        """While this layer is being merged into the one below it."""
        return replace(self, merging=layer)

    def merged(self) -> "Layers":
        """After the merge that was begun: what was in the layer is in the one below it, which takes its place."""
        layer, under = self.merging, self.below[self.merging]
        return replace(
            self,
            active=under if self.active == layer else self.active,
            below={each: under if lower == layer else lower for each, lower in self.below.items() if each != layer},
            frozen={each: under if held == layer else held for each, held in self.frozen.items()},
            merging="",
        )


def _without(mapping: Mapping[str, str], key: str) -> dict[str, str]:
    return {each: value for each, value in mapping.items() if each != key}
