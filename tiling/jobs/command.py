"""A command line from a config dataclass: flags, `--config FILE`, `--print_config`, help and validation.

Every field of the dataclass made with `setting` is one flag (`patch_px` is `--patch-px`) and one key of the
YAML file. A key that no field has is an error.
"""

import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, field, fields, is_dataclass
from types import FrameType
from typing import Any, NoReturn, TypeVar, get_type_hints

import jsonargparse

from tiling.jobs.errors import RequestError

C = TypeVar("C")


def setting(default: Any, help: str) -> Any:
    """A config field with its default and one line of help, which names the unit."""
    return field(default=default, metadata={"help": help})


class _Parser(jsonargparse.ArgumentParser):
    """`--print_config` leaves out what was not given, so that the file does not unset inputs when it is used."""

    def dump(self, *arguments: Any, **how: Any) -> str:
        return str(super().dump(*arguments, **{**how, "skip_unset": True}))


def parser_for(config_class: type, prog: str, description: str) -> jsonargparse.ArgumentParser:
    """A parser with one flag a field; the caller adds the inputs and `--out`.

    A field that is a config itself, such as `tile`, is a section: its flags are `--tile.patch-px` and so on.
    """
    parser = _Parser(prog=prog, description=description)
    parser.add_argument("--config", action="config", help="YAML file with any of the flags below")
    _add_flags(parser, config_class, "--")
    return parser


def _add_flags(parser: jsonargparse.ArgumentParser, config_class: type, start: str) -> None:
    hints = get_type_hints(config_class)
    for entry in fields(config_class):
        if isinstance(section := hints[entry.name], type) and is_dataclass(section):
            _add_flags(parser, section, f"{start}{entry.name}.")
            continue
        flag, help_text = start + entry.name.replace("_", "-"), entry.metadata["help"]
        if hints[entry.name] is bool:
            parser.add_argument(flag, action="store_true", help=help_text)
        else:
            assert entry.default is not MISSING
            parser.add_argument(flag, type=hints[entry.name], default=entry.default, help=help_text)


def config_from(config_class: type[C], arguments: jsonargparse.Namespace) -> C:
    """The config held by parsed arguments. Raises RequestError where its own checks refuse a value."""
    values = {}
    for name, hint in get_type_hints(config_class).items():
        value = arguments[name]
        values[name] = config_from(hint, value) if isinstance(hint, type) and is_dataclass(hint) else value
    try:
        return config_class(**values)
    except ValueError as error:
        raise RequestError(str(error)) from error


def settings(config_class: type[C], config: C | None, given: Mapping[str, Any]) -> C:
    """The config of a call from Python: `config`, or the defaults, with what is `given` by name in place.

    Checked as flags are: raises RequestError for an unknown name, a wrong type or a value that is refused.
    """
    parser = parser_for(config_class, "", "")
    parser.exit_on_error = False
    known = vars(config) if config is not None else {}
    try:
        return config_from(config_class, parser.parse_object({**known, **given}))
    except jsonargparse.ArgumentError as error:
        raise RequestError(str(error)) from error


def run_command(name: str, body: Callable[[], int]) -> None:
    """Run a command and exit: 2 with the message for a wrong request, 130 for Ctrl-C and SIGTERM."""
    signal.signal(signal.SIGTERM, _stop)
    try:
        code = body()
    except RequestError as error:
        print(f"{name}: {error}", file=sys.stderr)
        code = 2
    except OSError as error:  # of the output folder; those of slides end in the batch loop
        print(f"{name}: {error}; is --out a folder that can be written to, with room on its disk?", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print(f"{name}: stopped; what is finished stays, run the same command again to go on", file=sys.stderr)
        _leave(130)
    sys.exit(code)


def _leave(code: int) -> NoReturn:
    """End at once. All is cleared up by now, and taking a Python down that has loaded torch costs seconds of a core."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _stop(signum: int, frame: FrameType | None) -> None:
    signal.signal(signum, signal.SIG_IGN)  # a second one must not disturb the clearing up
    sys.unraisablehook = _stop_again
    raise KeyboardInterrupt


def _stop_again(swallowed: "sys.UnraisableHookArgs") -> None:
    """Python swallows what is raised in a destructor or a callback of the garbage collector, a signal's too."""
    if issubclass(swallowed.exc_type, KeyboardInterrupt):
        signal.signal(signal.SIGALRM, _stop)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
    else:
        sys.__unraisablehook__(swallowed)
