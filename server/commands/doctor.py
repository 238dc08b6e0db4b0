"""``octavo doctor``: whether and how ``octavo serve`` would work with these options on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
from rich.console import Console
from rich.markup import escape

from octavo.config import EngineConfig, ServerConfig
from octavo.engine.doctor.examination import examine
from octavo.engine.doctor.finding import Finding, look
from octavo.server.arguments import Parser, add_server_options, settings_of
from octavo.server.serve import address_of, bind

_STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}


def main(arguments: Sequence[str]) -> int:
    """Tells what it finds; returns 1 if a server would not start."""
    parser = Parser(
        "octavo doctor",
        "[MODEL] [--json] [options of octavo serve]",
        "Says whether and how `octavo serve` would work here with the same options, and what to do where it would not.",
    )
    parser.add_argument("--json", action="store_true", help="tell it to a machine")
    add_server_options(parser)
    given = parser.parse(arguments)
    settings, engine, server = settings_of(parser, given)
    findings = (
        msgspec.structs.replace(finding, text=_line(settings.in_their_words(finding.text)))
        for finding in _findings(engine, server)
    )
    return _print_json(list(findings)) if given.json else _print(findings)


def _findings(engine: EngineConfig, server: ServerConfig) -> Iterator[Finding]:
    yield from examine(engine)
    yield look("port", lambda: _port(server))


def _port(config: ServerConfig) -> Finding:
    with bind(config) as listener:
        return Finding("port", f"{address_of(listener)} is free")


def _print_json(findings: Sequence[Finding]) -> int:
    works = not _count(findings, "problem")
    told = msgspec.json.encode({"works": works, "findings": findings})
    print(msgspec.json.format(told, indent=2).decode())
    return 0 if works else 1


def _print(findings: Iterator[Finding]) -> int:
    console = Console(highlight=False, soft_wrap=True)
    told = []
    with console.status("looking around"):
        for finding in findings:
            told.append(finding)
            style = _STYLES[finding.state]
            console.print(f"[{style}]{finding.state:<8}[/] {finding.topic:<13} {escape(finding.text)}")
            if finding.advice:
                console.print(f"{'':<22} [{style}]→[/] {escape(finding.advice)}")
    problems, notes = _count(told, "problem"), _count(told, "note")
    if problems:
        console.print(f"\n[bold red]`octavo serve` would not start here:[/] {problems} problem{'s'[: problems > 1]}")
        return 1
    console.print(f"\n[bold green]`octavo serve` should work here[/]{_notes(notes)}")
    return 0


def _notes(count: int) -> str:
    return f", with {count} note{'s'[: count > 1]} above" if count else ""


def _count(findings: Sequence[Finding], state: str) -> int:
    return sum(finding.state == state for finding in findings)


def _line(text: str) -> str:
    return " ".join(text.split())
