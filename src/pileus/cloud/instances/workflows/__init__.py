"""The tasks of an instance's life."""

from typing import Any

from pileus.cloud.instances.workflows.creation import create_instance, create_instance_from_snapshot
from pileus.cloud.instances.workflows.deletion import delete_instance, soft_delete_instance, undelete_instance
from pileus.cloud.instances.workflows.leaving import delete_but_disks, leave_instance
from pileus.cloud.instances.workflows.limits import set_limits
from pileus.cloud.instances.workflows.media import change_media
from pileus.cloud.instances.workflows.password import set_password
from pileus.cloud.instances.workflows.power import (
    pause_instance,
    reboot_instance,
    resume_instance,
    start_instance,
    stop_instance,
    suspend_instance,
)
from pileus.cloud.instances.workflows.rebuild import rebuild_instance
from pileus.cloud.instances.workflows.recovery import set_recovery
from pileus.cloud.instances.workflows.resize import resize_instance, resize_running_instance
from pileus.cloud.instances.workflows.restoring import create_instance_from_backup
from pileus.cloud.instances.workflows.together import batch_instances
from pileus.cloud.world import World
from pileus.workflow.workflow import Workflow

WORKFLOWS: tuple[Workflow[World, Any], ...] = (
    create_instance,
    create_instance_from_snapshot,
    create_instance_from_backup,
    start_instance,
    stop_instance,
    pause_instance,
    suspend_instance,
    resume_instance,
    reboot_instance,
    set_recovery,
    resize_instance,
    resize_running_instance,
    rebuild_instance,
    change_media,
    set_limits,
    set_password,
    soft_delete_instance,
    undelete_instance,
    delete_instance,
    batch_instances,
    delete_but_disks,
    leave_instance,
)
