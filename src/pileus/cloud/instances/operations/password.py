"""Setting passwords of users inside of instances."""

import asyncio
import secrets
import string
from typing import Annotated, Final, Protocol

import msgspec
from pydantic import AfterValidator, StringConstraints

from pileus.cloud.images.model import IMAGES
from pileus.cloud.instances.model import INSTANCES, Instance, InstanceState, PasswordChange
from pileus.cloud.instances.operations.noun import instances
from pileus.cloud.instances.shadow import hashed
from pileus.cloud.instances.workflows import set_password
from pileus.cloud.instances.workflows.hosting import OfInstance
from pileus.cloud.volumes.model import BOOT_SLOT, VOLUMES
from pileus.kernel.errors import Conflict
from pileus.kernel.ids import InstanceId
from pileus.operations.caller import Role
from pileus.operations.declare import Answer, Exchange
from pileus.operations.plan import Plan
from pileus.operations.wire import Wire
from pileus.state.state import State, put
from pileus.workflow.workflow import begin

_GENERATED_CHARACTERS: Final = 20
_ALPHABET: Final = string.ascii_letters + string.digits


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must not hold control characters")
    return text


GuestUserName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]{0,63}$")]
GuestPassword = Annotated[str, StringConstraints(min_length=8, max_length=128), AfterValidator(_one_line)]


class GuestPasswords(Protocol):
    """Reaches the agents inside of guests."""

    async def set_password(self, instance: Instance, user: str, password: str) -> None:
        """Have a guest set a user's password.

        Raises:
            Conflict: it does not run, has no agent that answers, or refuses.
            Unavailable: its host does not answer.
        """
        ...


class PasswordReset(Wire):
    user: GuestUserName | None = None
    """By default the one that the image names, else root."""
    password: GuestPassword | None = None
    """Without one, one is made up and shown this once."""
    dry_run: bool = False
    """Only say what would be done: the guest is not asked, nor its disk looked at."""


class PasswordSet(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A password that was set."""

    user: str
    password: str = ""
    """If it was made up: nobody else has it."""
    task_id: str = ""
    """Of a stopped instance: it is set when this task has ended well."""
    would: str = ""
    """What would be done, if nothing else was asked for."""


@instances.special(
    "POST",
    "/{id}/password",
    verb="reset_password",
    least=Role.MEMBER,
    status=200,
    answers=PasswordSet,
    starts=set_password,
)
async def reset_password(exchange: Exchange, instance: Instance, wish: PasswordReset) -> Answer:
    """Set the password of a user inside of an instance.

    In a running one it is set through the guest agent, at once. In a stopped one it is set in its disk, by a task.
    It is kept nowhere: that it was set is in the event log, what it is is not.
    """
    user = wish.user or _default_user(exchange.ask.state, instance) or "root"
    if wish.dry_run:
        return Answer(status=200, body=msgspec.json.encode(PasswordSet(user=user, would=_would(instance, user))))
    password = wish.password or "".join(secrets.choice(_ALPHABET) for _ in range(_GENERATED_CHARACTERS))
    made_up = "" if wish.password else password
    if instance.state is InstanceState.STOPPED:
        return await _set_in_disk(exchange, instance, user, password, made_up)
    _must_run(instance)
    guests: GuestPasswords = exchange.services[GuestPasswords]
    await guests.set_password(instance, user, password)
    now = exchange.ask.state[INSTANCES].find(instance.id)
    changes = (put(now),) if now is not None else ()
    answer = PasswordSet(user=user, password=made_up)
    return await exchange.commit(Plan(summary=_in_guest(instance, user), changes=changes, answers=answer))


def _default_user(state: State, instance: Instance) -> str:
    image = state[IMAGES].find(instance.image_id or "")
    if image is not None:
        return image.default_user
    boots = next((each for each in state[VOLUMES].by("instance", instance.id) if each.slot == BOOT_SLOT), None)
    return boots.needs.default_user if boots is not None and boots.needs is not None else ""


def _would(instance: Instance, user: str) -> str:
    """What would be done. Raises Conflict if it would be refused."""
    if instance.state is InstanceState.STOPPED:
        _held(instance, user)
        return _in_disk(instance, user)
    _must_run(instance)
    return f"{_in_guest(instance, user)}, if its guest agent answers"


def _in_guest(instance: Instance, user: str) -> str:
    return f"set the password of {user} in instance {instance.name}"


def _in_disk(instance: Instance, user: str) -> str:
    return f"set the password of {user} in the disk of instance {instance.name}"


def _must_run(instance: Instance) -> None:
    if instance.state is not InstanceState.RUNNING:
        raise Conflict(f"instance {instance.name} is {instance.state}: it must be running or stopped")


def _held(instance: Instance, user: str) -> Instance:
    """A stopped instance while its disk is opened. Raises Conflict if it must not be."""
    instance.must_be_ours("its disk is opened by its own guest alone; start it first")
    return instance.busy(f"the password of {user} is being set in its disk")


async def _set_in_disk(exchange: Exchange, instance: Instance, user: str, password: str, made_up: str) -> Answer:
    hash = await asyncio.to_thread(hashed, password)
    ask = exchange.ask
    # It may have been started, or be gone, meanwhile.
    now = ask.see(INSTANCES, instance.id)
    if now.state is not InstanceState.STOPPED:
        raise Conflict(f"instance {now.name} is {now.state} by now")
    busy = _held(now, user)
    change = PasswordChange(id=now.id, created_at=ask.now, project_id=now.project_id, user=user, hash=hash)
    begun = await exchange.commit(
        Plan(
            summary=_in_disk(now, user),
            changes=(put(busy), put(change)),
            begin=begin(set_password, OfInstance(InstanceId(now.id))),
        )
    )
    answer = PasswordSet(user=user, password=made_up, task_id=begun.headers["pileus-task"])
    return Answer(status=202, body=msgspec.json.encode(answer), headers=begun.headers)
