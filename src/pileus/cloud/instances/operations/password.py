"""Setting passwords of users inside of instances."""

import secrets
import string
from typing import Annotated, Final, Protocol

import msgspec
from pydantic import AfterValidator, StringConstraints

from pileus.cloud.images.model import IMAGES
from pileus.cloud.instances.model import INSTANCES, Instance, InstanceState
from pileus.cloud.instances.operations.noun import instances
from pileus.kernel.errors import Conflict
from pileus.operations.caller import Role
from pileus.operations.declare import Answer, Exchange
from pileus.operations.plan import Plan
from pileus.operations.wire import Wire
from pileus.state.state import put

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


class PasswordSet(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A password that was set."""

    user: str
    password: str = ""
    """If it was made up: nobody else has it."""


@instances.special("POST", "/{id}/password", verb="reset_password", least=Role.MEMBER, status=200, answers=PasswordSet)
async def reset_password(exchange: Exchange, instance: Instance, wish: PasswordReset) -> Answer:
    """Set the password of a user inside of a running instance, through the guest agent in it.

    It is kept nowhere: that it was set is in the event log, what it is is not.
    """
    if instance.state is not InstanceState.RUNNING:
        raise Conflict(f"instance {instance.name} is {instance.state}: start it first, its own agent has to do it")
    state = exchange.ask.state
    image = state[IMAGES].find(instance.image_id)
    user = wish.user or (image.default_user if image is not None else "") or "root"
    password = wish.password or "".join(secrets.choice(_ALPHABET) for _ in range(_GENERATED_CHARACTERS))
    guests: GuestPasswords = exchange.services[GuestPasswords]
    await guests.set_password(instance, user, password)
    answer = PasswordSet(user=user, password="" if wish.password else password)
    now = state[INSTANCES].find(instance.id)
    changes = (put(now),) if now is not None else ()
    return await exchange.commit(
        Plan(summary=f"set the password of {user} in instance {instance.name}", changes=changes, answers=answer)
    )
