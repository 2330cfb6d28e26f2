"""What `--help` prints where there are no colours: plain lines, and what goes on below is indented further."""

import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cyclopts.help import HelpEntry, HelpPanel
    from rich.console import Console, ConsoleOptions, RenderableType

_FIRST, _FURTHER = "  ", "    "
_UNWRAPPED = 1_000_000
"""Columns; more than any text has."""


class PlainHelp:
    """A formatter for cyclopts, in the place of its own one for plain text: that wraps first and indents then."""

    def __call__(self, console: "Console", options: "ConsoleOptions", panel: "HelpPanel") -> None:
        del options
        if not panel.entries:
            return
        _print(console, f"{panel.title}:")
        for entry in panel.entries:
            names = entry.display_labels_with_metavar if panel.format == "parameter" else entry.display_labels
            says = " ".join((*_plain(console, entry.description).split(), *_notes(entry)))
            _print(console, _wrapped(": ".join(filter(None, (", ".join(names), says))), console.width))
        console.print()

    def render_usage(self, console: "Console", options: "ConsoleOptions", usage: "RenderableType | None") -> None:
        del options
        _print(console, f"Usage: {_plain(console, usage)}\n")

    def render_description(
        self, console: "Console", options: "ConsoleOptions", description: "RenderableType | None"
    ) -> None:
        del options
        if text := _plain(console, description):
            lines = (textwrap.fill(line, console.width, break_on_hyphens=False) for line in text.splitlines())
            _print(console, "\n".join(lines) + "\n")


def _notes(entry: "HelpEntry") -> list[str]:
    choices = [f"[choices: {', '.join(entry.choices)}]"] if entry.choices else []
    return choices + (["[required]"] if entry.required else [])


def _wrapped(text: str, columns: int) -> str:
    return textwrap.fill(
        text,
        columns,
        initial_indent=_FIRST,
        subsequent_indent=_FURTHER,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _plain(console: "Console", of: "RenderableType | None") -> str:
    """Its text, without colours and not wrapped."""
    lines = console.render_lines(of or "", console.options.update(width=_UNWRAPPED), pad=False)
    return "\n".join("".join(part.text for part in line) for line in lines).strip()


def _print(console: "Console", text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
