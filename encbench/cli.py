"""The command line. Only the command that is asked for is imported.

``commands/`` holds one file for each command, with an ``app`` in it; this file knows their
names, turns errors into one line, and reads options that take several values.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from . import __version__, distributed
from .errors import EncbenchError, from_os_error

COMMANDS = (
    "run", "probe", "rank", "confirm", "report", "train", "sample", "geneval", "zoo", "list",
    "data", "doctor",
)  # fmt: skip
SEVERAL = ("encoders", "probes", "layers", "pools", "ks", "shares", "units", "places")

# The class of all usage errors. Typer carries its own copy of Click without a public name for it.
_ClickError: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


class _Lazy(TyperGroup):
    """Commands are modules of ``encbench.commands``, imported when they are asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f".commands.{cmd_name}", __package__)
        command = typer.main.get_command(module.app)
        command.name = cmd_name
        return command


app = typer.Typer(
    cls=_Lazy,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with: encbench run --encoders st:FOLDER clip:ViT-L-14/openai --out runs/first",
)


def _version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"encbench {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Which text encoder should a few-step text-to-image model be trained on, and how sure
    are we? encbench ranks encoders before anything is trained, and reports what it found."""


def spread(arguments: list[str]) -> list[str]:
    """Let ``--encoders A B C`` mean ``--encoders A --encoders B --encoders C``, for options that
    take several values. A number may be negative; commas in numbers' lists work too."""
    made: list[str] = []
    option = ""
    for position, argument in enumerate(arguments):
        if argument == "--":
            return made + arguments[position:]
        is_number = argument.lstrip("-").replace(".", "").isdigit()
        if argument.startswith("-") and not is_number:
            name, equals, _ = argument.partition("=")
            option = name if name.removeprefix("--") in SEVERAL else ""
            if not option or equals:
                made.append(argument)
            elif position + 1 == len(arguments):
                made.append(argument)  # without a value: let the parser say so
            continue
        made.append(f"{option}={argument}" if option else argument)
    return made


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 a problem told in one line, 2 wrong usage,
    130 interrupted."""
    try:
        code = app(
            args=spread(sys.argv[1:] if arguments is None else arguments),
            prog_name="encbench",
            standalone_mode=False,
        )
    except EncbenchError as error:
        _fail(str(error), error.exit_code)
    except _ClickError as error:
        where = error.ctx.command_path if getattr(error, "ctx", None) else "encbench"
        if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help
            error.show()
            sys.exit(error.exit_code)
        _fail(f"{error.format_message()} (see: {where} --help)", error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted; the same command goes on where it was", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except MemoryError:
        _fail("out of memory; use a smaller encoder or dtype=bfloat16", 1)
    except OSError as error:
        _fail(str(from_os_error(error, error.filename or "a file operation")), 1)
    sys.exit(code or 0)


def _fail(message: str, code: int) -> None:
    if distributed.is_leader():  # of several processes one speaks
        one_line = " ".join(message.split())
        typer.secho(f"encbench: {one_line}", fg=typer.colors.RED, err=True)
    sys.exit(code)
