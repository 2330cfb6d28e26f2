"""Layers of a volume: whatever is taken, removed and gone back to, every snapshot reads as the volume was then."""

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pileus.agent.storage.layers import BASE, Layers

Content = Mapping[int, int]


class Volume(RuleBasedStateMachine):
    """Layers with blocks in them, beside what a volume without layers would hold."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = Layers()
        self.blocks: dict[str, dict[int, int]] = {BASE: {}}
        self.now: dict[int, int] = {}
        self.then: dict[str, dict[int, int]] = {}
        self.made = 0

    def read(self, layer: str) -> dict[int, int]:
        content: dict[int, int] = {}
        for each in reversed(self.layers.chain(layer)):
            content |= self.blocks[each]
        return content

    def name(self) -> str:
        self.made += 1
        return f"layer-{self.made}"

    @rule(block=st.integers(0, 3), value=st.integers(1, 1000))
    def write(self, block: int, value: int) -> None:
        self.blocks[self.layers.active][block] = self.now[block] = value

    @rule()
    def take(self) -> None:
        snapshot = self.name()
        self.layers = self.layers.taken(snapshot).confirmed()
        self.blocks[snapshot] = {}
        self.then[snapshot] = dict(self.now)

    @rule()
    def fail_to_take(self) -> None:
        before = self.layers
        self.layers = before.taken(self.name()).untaken()
        assert self.layers == before

    @precondition(lambda self: self.then)
    @rule(data=st.data())
    def revert(self, data: st.DataObject) -> None:
        snapshot, to = data.draw(st.sampled_from(sorted(self.then))), self.name()
        self.layers = self.layers.reverted(snapshot, to)
        self.blocks[to] = {}
        self.now = dict(self.then[snapshot])

    @precondition(lambda self: self.then)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        snapshot = data.draw(st.sampled_from(sorted(self.then)))
        self.layers = self.layers.without(snapshot)
        del self.then[snapshot]

    @precondition(lambda self: self.layers.to_merge() is not None)
    @rule()
    def merge(self) -> None:
        layer = self.layers.to_merge()
        assert layer is not None
        self.layers = self.layers.begun(layer)
        self.blocks[self.layers.below[layer]] |= self.blocks[layer]
        self.layers = self.layers.merged()

    @invariant()
    def everything_reads_as_it_was(self) -> None:
        assert self.read(self.layers.active) == self.now
        for snapshot, content in self.then.items():
            assert self.read(self.layers.of(snapshot)) == content

    @invariant()
    def what_is_written_to_is_under_nothing(self) -> None:
        assert not self.layers.above(self.layers.active)
        assert self.layers.active not in self.layers.frozen.values()

    def teardown(self) -> None:
        """When all snapshots are gone, the base is the volume again."""
        for snapshot in sorted(self.then):
            self.layers = self.layers.without(snapshot)
        self.then.clear()
        while self.layers.to_merge() is not None:
            self.merge()
        assert self.layers == Layers()
        assert self.blocks[BASE] == self.now


TestVolume = Volume.TestCase


@given(st.integers(1, 8))
def test_a_volume_needs_no_more_layers_than_it_has_snapshots(snapshots: int) -> None:
    layers = Layers()
    for number in range(snapshots):
        layers = layers.taken(str(number)).confirmed()
    for number in range(0, snapshots, 2):
        layers = layers.without(str(number))
        while (layer := layers.to_merge()) is not None:
            layers = layers.begun(layer).merged()
    assert len(layers.below) == len(layers.frozen) == snapshots // 2
