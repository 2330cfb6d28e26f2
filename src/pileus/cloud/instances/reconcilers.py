"""What keeps deleted instances no longer than they are to be kept."""

from pileus.cloud.instances.model import INSTANCES, Instance, InstanceState
from pileus.cloud.instances.operations.deletion import Retention
from pileus.cloud.instances.workflows import delete_instance
from pileus.cloud.instances.workflows.hosting import OfInstance
from pileus.cloud.world import World
from pileus.kernel.clock import Clock
from pileus.kernel.ids import InstanceId
from pileus.state.state import Origin, State, put
from pileus.workflow.engine import Engine
from pileus.workflow.workflow import begin

ORIGIN = Origin(actor="system", operation="housekeeping")


class PurgeDeleted:
    """Deletes for good what was deleted long enough ago, and has not been protected since."""

    def __init__(self, state: State, engine: Engine[World], retention: Retention, clock: Clock) -> None:
        self._state = state
        self._engine = engine
        self._retention = retention
        self._clock = clock

    def once(self) -> None:
        """Begin a task for each of them; each is then no longer deleted but on its way out."""
        latest = self._clock.now() - self._retention.deleted
        for instance in self._state[INSTANCES].by("deleted", True):
            if not instance.protected and (instance.deleted_at is None or instance.deleted_at <= latest):
                self._purge(instance)

    def _purge(self, instance: Instance) -> None:
        leaving = instance.to(InstanceState.DELETING)
        start = begin(delete_instance, OfInstance(InstanceId(instance.id)))
        self._engine.submit(start, [put(leaving)], project=instance.project_id, subject=leaving, origin=ORIGIN)
