"""`pileus login`, `logout` and `whoami`."""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from pileus.cli.commands import Command
from pileus.cli.session import COMMON, AsCommon, Session
from pileus.client import config as configuration
from pileus.client.config import Config
from pileus.kernel.errors import Invalid, PileusError, SecondFactorRequired, Unauthenticated

_HERE = "https://localhost:5870"
_IN_A_BROWSER = "oidc"
"""The kind of identity providers that ask people themselves."""


def commands(session: Session) -> Mapping[str, Command]:
    """The commands, by name."""

    async def login(
        url: Annotated[str, Parameter(help="Of the controller; without it, that of before or of this machine.")] = "",
        /,
        *,
        user: Annotated[str, Parameter(help="User name.")] = "",
        provider: Annotated[str, Parameter(help="Identity provider to sign in by; without one, this cloud.")] = "",
        password_stdin: Annotated[bool, Parameter(negative=(), help="Read the password from the input.")] = False,
        code: Annotated[str, Parameter(help="Of the second factor, if the user has one; asked for without.")] = "",
        fingerprint: Annotated[
            str, Parameter(help="Of the cloud's authority, sha256:..., as its controller said at its beginning.")
        ] = "",
        authority: Annotated[Path | None, Parameter(help="File with the certificate of the cloud's authority.")] = None,
        common: AsCommon = COMMON,
    ) -> None:
        """Sign in to a cloud: get a token, and keep it for the commands that follow."""
        session.use(common)
        known = _known(session)
        url = (url or (known.url if known else _HERE)).rstrip("/")
        trusted = await _authority(session, url, known, fingerprint, authority)
        wanted = Config(url=url, authority=trusted, project=common.project)
        patience_s = session.terminal.patience_s
        from pileus.client.session import kind_of, sign_in

        if provider and await kind_of(wanted, provider, patience_s=patience_s) == _IN_A_BROWSER:
            if user or password_stdin:
                raise Invalid(f"{provider} asks for user and password itself, in a browser")
            config = await _in_browser(session, wanted, provider, code)
        else:
            user = user or _line(session, "user: ")
            password = _password(session, from_input=password_stdin)
            signing_in = partial(sign_in, wanted, user, password, provider=provider, patience_s=patience_s)
            config = await _with_code(session, signing_in, code)
        path = configuration.save(config, session.terminal.environ)
        session.say(f"signed in to {url} {f'as {user}' if user else f'by {provider}'}; the token is in {path}")

    async def logout(*, common: AsCommon = COMMON) -> None:
        """Delete the token, here and in the cloud."""
        session.use(common)
        own = configuration.own_path(session.terminal.environ)
        if not own.exists():
            raise Unauthenticated("not signed in")
        try:
            async with session.client() as client:
                current = (await client.get("/v1/tokens/current")).body
                await client.send("DELETE", f"/v1/tokens/{current['token_id']}", plans=True)
        except Unauthenticated:
            session.say("the token was no longer good")
        configuration.remove(session.terminal.environ)
        session.say(f"signed out; {own} is gone")

    async def whoami(*, common: AsCommon = COMMON) -> None:
        """Show who you are, in which project, and what you may do there."""
        session.use(common)
        async with session.client() as client:
            current = (await client.get("/v1/tokens/current")).body
        if session.printer.document(current):
            return
        if session.printer.for_people:
            session.printer.fields(
                {
                    "user": current["user_name"],
                    "project": current["project_name"],
                    "role": current["role"] or "custom",
                    "cloud": client.config.url,
                }
            )
        else:
            session.terminal.out(current["user_name"] if session.printer.format == "name" else current["user_id"])

    return {"login": login, "logout": logout, "whoami": whoami}


async def _with_code(session: Session, signing_in: Callable[[str], Awaitable[Config]], code: str) -> Config:
    """Sign in, with the code of a second factor if it takes one."""
    try:
        return await signing_in(code)
    except SecondFactorRequired:
        if code or not session.terminal.stdin.isatty():
            raise
    return await signing_in(_line(session, "code: "))


async def _in_browser(session: Session, wanted: Config, provider: str, code: str) -> Config:
    from pileus.cli.browser import landing
    from pileus.client.session import begin_in_browser, finish_from_browser

    patience_s = session.terminal.patience_s
    async with landing() as place:
        begun = await begin_in_browser(wanted, provider, place.redirect_uri, patience_s=patience_s)
        session.say(f"sign in at this address, in a browser on this machine:\n\n  {begun.url}\n")
        brought = await place.brought(begun.state)
    signing_in = partial(finish_from_browser, wanted, begun.attempt, brought, patience_s=patience_s)
    return await _with_code(session, signing_in, code)


def _known(session: Session) -> Config | None:
    with suppress(PileusError):
        return configuration.load(session.terminal.environ)
    return None


async def _authority(session: Session, url: str, known: Config | None, expected: str, file: Path | None) -> str:
    """The certificate of whom to trust: given, known from before, or shown and agreed to."""
    if file is not None:
        return Config(url=url, authority=str(file)).authority_pem()
    if known is not None and known.url == url and not expected:
        return known.authority_pem()
    from pileus.client.session import authority_at

    return await authority_at(url, lambda found: found == expected if expected else _agreed(session, found))


def _agreed(session: Session, found: str) -> bool:
    if not session.terminal.stdin.isatty():
        raise Invalid(f"--fingerprint is missing: whom to trust; who answers there says {found}")
    session.terminal.say(f"the authority of this cloud has the fingerprint\n  {found}")
    return _line(session, "is it the one that its controller said at its beginning? [y/N] ").lower() in ("y", "yes")


def _line(session: Session, prompt: str) -> str:
    if not session.terminal.stdin.isatty():
        raise Invalid("--user is missing")
    session.terminal.stderr.write(prompt)
    session.terminal.stderr.flush()
    return session.terminal.stdin.readline().strip()


def _password(session: Session, *, from_input: bool) -> str:
    if from_input:
        return session.terminal.stdin.readline().rstrip("\n")
    if not session.terminal.stdin.isatty():
        raise Invalid("--password-stdin is missing")
    from getpass import getpass

    return getpass("password: ", stream=session.terminal.stderr)
