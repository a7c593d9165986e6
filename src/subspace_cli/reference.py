"""`subspace reference`: every field, key and option, as a page generated from the code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from subspace_tuning.documented import Setting

_BAR = "\\|"  # within a table
_INTRODUCTION = """\
# Every setting

Generated from the code by `subspace reference`: the fields of `SubspaceConfig`, the keys of a config file for
`subspace train` and `subspace compare`, and the options of the command.
"""
_RUN = """\
A config file for `subspace train` has the keys `model` and `output` and three sections. On the command line a key is
written with its section, as in `training.seed=1`. `subspace train --template` prints a file with all keys.
"""
_COMPARISON = """\
A config file for `subspace compare` has these keys. [Compare](compare.md) explains them; on the command line a key is
written with its section, as in `tuning.rates.tries=3`. `tuning=null` gives each row its own default learning rate.
"""


def reference() -> None:
    """Print every field, key and option with its meaning.

    The Markdown page has the fields of SubspaceConfig, the keys of config files and the options of all commands.
    """
    typer.echo(page(), nl=False)


def page() -> str:
    """Return the page."""
    from subspace_tuning.comparison import sections as comparison
    from subspace_tuning.documented import settings
    from subspace_tuning.methods.schedules import SCHEDULES
    from subspace_tuning.training.sections import SECTIONS, RunConfig
    from subspace_tuning.training.template import as_yaml
    from subspace_tuning.tuner import SubspaceConfig

    lines = [*_INTRODUCTION.splitlines(), "", "## SubspaceConfig", "", *_settings("field", settings(SubspaceConfig))]
    lines += ["## Schedules", "", "The options in `schedule`, by the name of the method's schedule.", ""]
    for name, schedule in SCHEDULES.items():
        lines += [f"### {name}", "", *_settings("option", settings(schedule.options_class))]
    lines += [
        "## The config of a run",
        "",
        *_RUN.splitlines(),
        "",
        *_settings("key", settings(RunConfig), written=as_yaml),
    ]
    for name, section in SECTIONS.items():
        lines += [f"### {name}", "", *_settings("key", settings(section), f"{name}.", as_yaml)]
    lines += ["## The config of a comparison", "", *_COMPARISON.splitlines(), ""]
    lines += _settings("key", settings(comparison.CompareConfig), written=as_yaml)
    for name, section in comparison.SECTIONS.items():
        lines += [f"### {name}", "", *_settings("key", settings(section), f"{name}.", as_yaml)]
    return "\n".join([*lines, *_commands()]).rstrip() + "\n"


def _settings(
    what: str, found: Iterable[Setting], prefix: str = "", written: Callable[[object], str] = repr
) -> Iterator[str]:
    from subspace_tuning.training.sections import MISSING

    yield from (f"| {what} | type | default | range | meaning |", "|---|---|---|---|---|")
    for one in found:
        default = "must be given" if one.default == MISSING else f"`{written(one.default)}`"
        kind = one.type.replace("None", written(None))
        yield _row(f"`{prefix}{one.name}`", kind, default, str(one.range or ""), one.meaning)
    yield ""


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', _BAR) for cell in cells)} |"


def _commands() -> Iterator[str]:
    from .app import app

    yield from ("## The command", "")
    root: Any = typer.main.get_command(app)
    for name, command in root.commands.items():
        context = typer.Context(command, info_name=f"subspace {name}")
        yield from (f"### subspace {name}", "", *(command.help or "").splitlines(), "")
        yield from ("```text", " ".join([context.command_path, *command.collect_usage_pieces(context)]), "```", "")
        yield from ("| word | meaning |", "|---|---|")
        for word, meaning in (parameter.get_help_record(context) for parameter in command.get_params(context)):
            yield _row(f"`{word}`", meaning)
        yield ""
