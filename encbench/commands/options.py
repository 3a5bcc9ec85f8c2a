"""Commands made from configurations: flags, TOML files and presets of :mod:`encbench.options`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer
from typer.core import TyperCommand

from ..files import read_toml
from ..options import Option, from_values, option_table, options_of, typed_values
from ..presets import Presets, preset_values

DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Print what would be done and what it would cost; do nothing."),
]
Parquet = Annotated[
    bool,
    typer.Option(
        "--parquet", help="Also write the records as parquet tables to OUT/parquet (extra: data)."
    ),
]


class SeveralValues(TyperCommand):
    """A command whose repeatable options take several values after one flag."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        several = {name for p in self.params if getattr(p, "multiple", False) for name in p.opts}
        return super().parse_args(ctx, spread(args, several))


def spread(arguments: list[str], several: set[str]) -> list[str]:
    """Let ``--encoders A B C`` mean ``--encoders A --encoders B --encoders C``, for the options
    in ``several``. A value may be a negative number."""
    made: list[str] = []
    option = ""
    for position, argument in enumerate(arguments):
        if argument == "--":
            return made + arguments[position:]
        is_number = argument.lstrip("-").replace(".", "").isdigit()
        if argument.startswith("-") and not is_number:
            name, equals, _ = argument.partition("=")
            option = name if name in several else ""
            if not option or equals:
                made.append(argument)
            elif position + 1 == len(arguments):
                made.append(argument)  # without a value: let the parser say so
            continue
        made.append(f"{option}={argument}" if option else argument)
    return made


def add_command(
    app: typer.Typer, name: str, config: type, presets: Presets | None = None, *, toml: bool = True
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator that makes a command of ``work(config, ...)``.

    The command has an option for each field of the configuration and for each further parameter
    of ``work``, which holds a typer.Option; ``--config FILE`` for a TOML file with the same keys
    if ``toml``; and ``--preset NAME`` where there are presets. Flags override the file, which
    overrides the preset.
    """

    def decorate(work: Callable[..., None]) -> Callable[..., None]:
        declared = options_of(config)
        first, *more = inspect.signature(work, eval_str=True).parameters.values()
        parameters = [inspect.Parameter("ctx", first.KEYWORD_ONLY, annotation=typer.Context)]
        parameters += [_parameter(key, *field) for key, field in declared.items()]
        if toml:
            parameters.append(_toml_parameter(config, presets))
        if presets is not None:
            parameters.append(_preset_parameter(presets))
        parameters += [parameter.replace(kind=first.KEYWORD_ONLY) for parameter in more]

        def main(ctx: typer.Context, **given: Any) -> None:
            from ..progress import show_log

            show_log()
            values = {key: given[key] for key in declared if given[key] not in (None, [], ())}
            work(from_values(config, values), **{p.name: given[p.name] for p in more})

        main.__doc__ = work.__doc__
        main.config = config  # type: ignore[attr-defined]
        main.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        app.command(name, cls=SeveralValues)(main)
        return work

    return decorate


def _parameter(name: str, declared: Option, kind: Any, default: Any) -> inspect.Parameter:
    """A field as typer takes it."""
    several = get_origin(kind) in (tuple, Mapping)
    if declared.parse is not None:
        kind = str
    elif several:
        kind = get_args(kind)[0]
    if several:
        kind, default = list[kind], default if default is MISSING else list(default or ())
    if not several and default is None:
        kind = kind | None
    shown: Any = declared.shown or default not in (None, [])
    if default is False or default == []:
        default = None  # not given, so that it can come from a file or a preset
    if declared.argument:
        info: Any = typer.Argument(help=declared.help)
    else:
        info = typer.Option(
            *([declared.flag] if declared.flag else []),
            help=declared.help,
            rich_help_panel=declared.group or None,
            metavar=declared.metavar,
            show_default=shown,
        )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if default is MISSING else default,
        annotation=Annotated[kind, info],
    )


def _toml_parameter(config: type, presets: Presets | None) -> inspect.Parameter:
    def read(ctx: typer.Context, path: Path | None) -> Path | None:
        from ..errors import UnknownNameError, UsageError

        if path is None:
            return None
        values = {key.replace("-", "_"): value for key, value in read_toml(path).items()}
        known = {p.name for p in ctx.command.params if p.name} - {"config"}
        fields = options_of(config)
        try:
            for key in values:
                if key not in known:
                    raise UnknownNameError("key", key, known)
            typed_values(config, {key: values[key] for key in values if key in fields})
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from error
        if presets is not None and "preset" in values:
            _merge(ctx, preset_values(presets, values["preset"]), over=False)
        _merge(ctx, values, over=True)
        return path

    text = "TOML file with the same keys as these flags; flags take precedence."
    info = typer.Option(help=text, callback=read, is_eager=True)
    return inspect.Parameter(
        "config", inspect.Parameter.KEYWORD_ONLY, default=None,
        annotation=Annotated[Path | None, info],
    )  # fmt: skip


def _preset_parameter(presets: Presets) -> inspect.Parameter:
    def read(ctx: typer.Context, name: str | None) -> str | None:
        if name is not None:
            _merge(ctx, preset_values(presets, name), over=False)
        return name

    texts = [f"{name}: {summary(make)}" for name, make in presets.items()]
    info = typer.Option(help=" ".join(texts), callback=read, is_eager=True)
    return inspect.Parameter(
        "preset", inspect.Parameter.KEYWORD_ONLY, default=None,
        annotation=Annotated[str | None, info],
    )  # fmt: skip


def summary(thing: object) -> str:
    """The first paragraph of a docstring, in one line."""
    return " ".join((thing.__doc__ or "").split("\n\n")[0].split())


def _merge(ctx: typer.Context, values: Mapping[str, Any], *, over: bool) -> None:
    """Make values the defaults of a command's options; ``over``: replace defaults that are already
    set."""
    texts = {
        key: [f"{k}={v}" for k, v in value.items()] if isinstance(value, Mapping) else value
        for key, value in values.items()
    }
    before = dict(ctx.default_map or {})
    ctx.default_map = {**before, **texts} if over else {**texts, **before}


def options_page() -> str:
    """``docs/options.md``: what every command does, and its options."""
    from ..cli import COMMANDS

    page = [
        "# Commands\n\nMade by `python -m encbench.commands.options > docs/options.md` from the "
        "code. `--config FILE` reads a TOML file with the same keys as the flags, without `--`. "
        "What `--json` prints: [json.md](json.md), with the exit codes.\n"
    ]
    shown: dict[type, str] = {}
    for name in COMMANDS:
        app = import_module(f"{__package__}.{name}").app
        group = typer.main.get_command(app)
        for word, command in getattr(group, "commands", {"": group}).items():
            title = f"`{' '.join(['encbench', name, *([word] if word else [])])}`"
            text = inspect.cleandoc(command.help or "").replace("\f", "").replace("[", "\\[")
            page.append(f"\n## {title}\n\n{text}\n")
            config = getattr(command.callback, "config", None)
            own = set(options_of(config)) if config else set()
            page += [
                f"\n`{'`, `'.join(p.opts + p.secondary_opts)}`: {p.help}\n"
                for p in command.params
                if p.name not in own and p.name != "help"
            ]
            if config in shown:
                page.append(f"\nAll options of {shown[config]}.\n")
            elif config:
                shown[config] = title
                page.append(f"\n{option_table(config)}")
    return "".join(page)


if __name__ == "__main__":
    print(options_page(), end="")
