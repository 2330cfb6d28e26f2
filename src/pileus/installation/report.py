"""What `pileus up` says at its end."""

from collections.abc import Callable

from pileus.installation.up import Up


def report(up: Up, passed_s: Callable[[], float]) -> None:
    """Print where the cloud is, and how to get in."""
    lines = [
        "",
        f"The cloud is up, after {passed_s():.0f} s.",
        f"  API            {up.api}",
        f"  CA fingerprint {up.fingerprint}",
        f"  Guests run on  {up.accelerator}",
    ]
    if up.password is not None:
        lines += [
            "  Administrator  admin",
            f"  Password       {up.password}   (shown this once; `{up.command} user set-password admin` changes it)",
        ]
    if up.hello is not None:
        hello = up.hello
        lines += [
            "",
            f"The instance {hello.name} runs at {hello.address}, from outside at {hello.floating}.",
            f"  Its console    {hello.console}",
            f"  Into it        {hello.ssh}",
        ]
    lines += ["", f"Next: `{up.command} --help`. Stop it all with `{up.stop}`."]
    print("\n".join(lines))  # noqa: T201 - what this is for
