"""What is asked of the agent inside of a guest (qemu-guest-agent), which is the guest's own and may do as it likes."""

from pileus.agent.hypervisor.libvirt.binding import Library, VirDomain, error_code
from pileus.kernel.errors import Conflict


def set_password(library: Library, domain: VirDomain, user: str, password: str) -> None:
    """Have the guest change a user's password.

    Raises:
        Conflict: there is no agent, it does not answer, or it refuses.
    """
    try:
        domain.setUserPassword(user, password, 0)
    except library.libvirtError as error:
        code = error_code(error)
        if code in {library.VIR_ERR_AGENT_UNRESPONSIVE, library.VIR_ERR_ARGUMENT_UNSUPPORTED}:
            raise Conflict(
                "the guest's agent does not answer: have qemu-guest-agent installed and running in the guest, and wait"
                " until it has booted",
                internal=str(error),
            ) from error
        if code == library.VIR_ERR_INTERNAL_ERROR:
            raise Conflict(
                f"the guest did not set the password of {user}: it may have no such user", internal=str(error)
            ) from error
        raise
