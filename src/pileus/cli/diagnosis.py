"""`pileus doctor`: what is wrong on this machine, why it matters, and the command that mends it."""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from cyclopts import App, CycloptsError, Parameter

from pileus.cli.local import ABOUT, DATA

if TYPE_CHECKING:
    from pileus.doctor.findings import Finding

_EPILOGUE = """Exit status:
  0  all is well
  1  there are warnings
  2  something is broken, or the command line is wrong"""


def doctor(arguments: Sequence[str]) -> int:
    """`pileus doctor`."""
    app = App(
        name="pileus doctor",
        help=ABOUT["doctor"],
        help_epilogue=_EPILOGUE,
        help_format="plaintext",
        version_flags=[],
        result_action="return_value",
    )

    @app.default
    def run(
        *,
        data: Annotated[Path, Parameter(help="The folder for everything.")] = DATA,
        output: Annotated[
            Literal["table", "json"], Parameter(name=("--output", "-o"), help="For people, or for programs.")
        ] = "table",
    ) -> int:
        from pileus.doctor.examine import examine
        from pileus.doctor.findings import exit_status

        _log_nothing()
        findings = asyncio.run(examine(data))
        if output == "json":
            print(msgspec.json.format(msgspec.json.encode(findings), indent=2).decode())  # noqa: T201
        else:
            for line in told(findings):
                print(line)  # noqa: T201
        return exit_status(findings)

    try:
        status = app(list(arguments), exit_on_error=False)
    except KeyboardInterrupt:
        return 130
    except CycloptsError:  # said already
        return 2
    return status if isinstance(status, int) else 0


def _log_nothing() -> None:
    """What drivers log on their way is in the findings, if it matters; the output is for these alone."""
    import logging

    import structlog

    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def told(findings: "Sequence[Finding]") -> list[str]:
    """The findings as lines: what is broken last, where the eye is when the prompt is back."""
    from pileus.doctor.findings import Severity

    lines: list[str] = []
    for severity in Severity:
        for each in (finding for finding in findings if finding.severity is severity):
            if severity is Severity.OK:
                lines.append(f"ok       {each.what}{f': {each.why}' if each.why else ''}")
                continue
            lines += ["", f"{severity.upper():<8} {each.what}", f"  why    {each.why}", f"  mend   {each.mend}"]
    counts = [f"{sum(each.severity is severity for each in findings)} {severity}" for severity in Severity]
    return [*lines, "", ", ".join(counts)]
