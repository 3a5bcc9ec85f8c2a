"""The command line. Only the module of the command that is run is imported.

``commands/`` holds one file for each command, with an ``app`` in it; this file knows their
names and turns errors into one line.
"""

from __future__ import annotations

import ast
import importlib
import io
import os
import shlex
import sys
import tempfile
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from . import __version__
from .errors import EncbenchError, ProcessError, UsageError, describe_error, from_os_error

COMMANDS = (
    "run", "probe", "rank", "replace", "confirm", "validate", "report", "board", "train", "sample",
    "export", "push", "pull", "geneval", "score", "compare", "study", "zoo", "list", "data",
    "doctor",
)  # fmt: skip
COMPLETION = {"--install-completion", "--show-completion"}
INTERRUPTED = 130  # exit status after Ctrl-C, by custom of the shell

# The class of all usage errors. Typer carries its own copy of Click without a public name for it.
_ClickError: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


class _Lazy(TyperGroup):
    """Commands are modules of ``encbench.commands``, imported when they are run."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command with name and summary only, for the help of the group: importing all would be
        slow."""
        return TyperCommand(cmd_name, help=_summary(cmd_name)) if cmd_name in COMMANDS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None and name is not None:
            module = importlib.import_module(f".commands.{name}", __package__)
            command = typer.main.get_command(module.app)
            command.name = name
            _reflow(command)
        return name, command, rest


def _reflow(command: Any) -> None:
    """Join the lines of each paragraph of a command's help, which typer would keep apart."""
    if command.help:
        command.help = "\n\n".join(" ".join(p.split()) for p in command.help.split("\n\n"))
    for below in getattr(command, "commands", {}).values():
        _reflow(below)


def _summary(name: str) -> str:
    """The first paragraph of a command's docstring, from its source."""
    source = Path(__file__).with_name("commands").joinpath(f"{name}.py").read_bytes()
    functions = (node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef))
    docstring = ast.get_docstring(next(f for f in functions if f.decorator_list)) or ""
    return docstring.split("\n\n")[0]


app = typer.Typer(
    cls=_Lazy,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with: encbench run --dry-run",
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
    are we? encbench ranks encoders before anything is trained."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 a problem (printed as one line), 2 wrong usage, 130
    interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names that are not UTF-8 must not crash
    arguments = sys.argv[1:] if arguments is None else arguments
    if "_ENCBENCH_COMPLETE" in os.environ or COMPLETION & set(arguments):
        app(args=arguments, prog_name="encbench")  # typer's own: it exits
    try:
        for argument in arguments:
            if "\\ud" in ascii(argument):  # how Python holds bytes that are not UTF-8
                raise UsageError(f"{argument!a} is not UTF-8; rename that file or folder")
        code = app(args=arguments, prog_name="encbench", standalone_mode=False)
        if code == INTERRUPTED:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt
    except EncbenchError as error:
        _fail(str(error), error.exit_code, all_speak=isinstance(error, ProcessError))
    except _ClickError as error:
        where = error.ctx.command_path if getattr(error, "ctx", None) else "encbench"
        if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help
            error.show()
            sys.exit(error.exit_code)
        _fail(f"{error.format_message()} (see: {where} --help)", error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        again = shlex.join(["encbench", *arguments])
        _fail(f"interrupted; finished work is kept, go on with: {again}", INTERRUPTED)
    except SystemExit as error:  # from code that a spec names; status 0 would look like success
        if isinstance(error.__context__, BrokenPipeError):  # what rich makes of it
            sys.exit(1)
        _fail(f"a module that was loaded called sys.exit({error.code!r}); nothing follows", 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except MemoryError:
        _fail("out of memory; use a smaller encoder or dtype=bfloat16", 1)
    except OSError as error:
        _fail(str(from_os_error(error, error.filename or "a file operation")), 1)
    except Exception as error:  # a bug: everything that a user can cause has its own message
        _fail(f"internal error, please report it: {describe_error(error)}{_keep_traceback()}", 1)
    sys.exit(code or 0)


def _keep_traceback() -> str:
    """Write the traceback of the current error to a file; returns a sentence with its path."""
    with suppress(OSError):
        handle, name = tempfile.mkstemp(".txt", "encbench-error-")
        with os.fdopen(handle, "wb") as file:
            file.write(traceback.format_exc().encode("utf-8", "backslashreplace"))
        return f" (traceback: {name})"
    return f" (no traceback: {tempfile.gettempdir()} cannot be written)"


def _fail(message: str, code: int, *, all_speak: bool = False) -> None:
    from . import distributed

    if all_speak or distributed.is_leader():  # one of several processes prints
        one_line = " ".join(message.split())
        typer.secho(f"encbench: {one_line}", fg=typer.colors.RED, err=True)
    sys.exit(code)
