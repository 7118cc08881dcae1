"""A command line from a config dataclass: flags, `--config FILE`, `--print_config`, help and validation.

Every field of the dataclass made with `setting` is one flag (`patch_px` is `--patch-px`) and one key of the
YAML file. A key that no field has is an error.
"""

import argparse
import atexit
import gc
import os
import re
import signal
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, field, fields, is_dataclass
from difflib import get_close_matches
from types import FrameType
from typing import Any, NoReturn, TypeVar, get_type_hints

import jsonargparse

from tiling.jobs.errors import RequestError

C = TypeVar("C")
_GARBAGE = (50_000, 20, 20)  # of gc.set_threshold; by default a command that loads torch spends a third on searching
_ADDRESS = re.compile(r"(s3a?|gs|gcs|az|abfss?|https?):(?=/)")  # also where Path has made one slash of two


def setting(default: Any, help: str) -> Any:
    """A config field with its default and one line of help, which names the unit."""
    return field(default=default, metadata={"help": help})


class _Help(jsonargparse.DefaultHelpFormatter):
    """What a flag does, and its default where that says something; its type is in the words."""

    def _get_help_string(self, action: argparse.Action) -> str:
        if not action.option_strings or action.dest in ("help", "config", "print_config"):
            return action.help or ""
        if action.required:
            return f"{action.help} (required)"
        says_nothing = action.default is False or action.default in ("", [])
        return f"{action.help}{'' if says_nothing else ' (default: %(default)s)'}"


class _Parser(jsonargparse.ArgumentParser):
    """One line for a fault. `--print_config` leaves out what was not given, so that the file does not unset inputs.

    addresses: names of the arguments that may be addresses of object stores; all others are local.
    """

    addresses: Collection[str] = ()

    def parse_args(self, *arguments: Any, **how: Any) -> Any:
        parsed = super().parse_args(*arguments, **how)
        flags = {flag for action in self._actions for flag in action.option_strings}
        for name, value in parsed.items():
            shown = f"--{name.replace('_', '-')}"
            for text in map(str, value if isinstance(value, list | tuple) else [value]):
                if name not in self.addresses and (found := _ADDRESS.match(text)):
                    self.error(
                        f"{shown if shown in flags else name.upper()}: is an address ({found[0]}//…), and has to be "
                        "local; copy what lies there to a local folder, or write to one and copy that (`aws s3 sync`)"
                    )
        return parsed

    def dump(self, *arguments: Any, **how: Any) -> str:
        return str(super().dump(*arguments, **{**how, "skip_unset": True}))

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        said = _plain(message, [flag for action in self._actions for flag in action.option_strings])
        if self.exit_on_error:
            self.exit(2, f"{self.prog}: {said}; all flags are in {self.prog} --help\n")
        raise jsonargparse.ArgumentError(None, said) from ex


_KINDS = {"int": "a whole number", "float": "a number", "str": "text", "Path": "a path"}
_EXPECTED = r"Expected a (?:<class '(?:\w+\.)*(\w+)'>|typing\.Literal\[(.*?)\])"


def _plain(message: str, flags: list[str]) -> str:
    """What the parser found wrong, in words for those who never saw its source; its own words where they are new."""
    if unknown := re.fullmatch(r"unrecognized arguments: (-\S*).*", message, re.DOTALL):
        return f"no flag {unknown[1]}{_close(unknown[1].split('=')[0], flags)}"
    if unknown := re.fullmatch(r"Option '(.*)' is not accepted", message):
        keys = [flag.removeprefix("--").replace("-", "_") for flag in flags]
        return f"no setting {unknown[1]}{_close(unknown[1], keys)}"
    if other := re.fullmatch(r"Unexpected config: (.*)", message, re.DOTALL):
        return f"--config: expected lines such as key: value, found {other[1].strip()[:80]!r}"
    if missing := re.fullmatch(r"the following arguments are required: (.*)", message):
        names = [f"--{name}" if f"--{name}" in flags else name.upper() for name in missing[1].split(", ")]
        return f"{', '.join(names)}: not given"
    if named := re.match(r'Parser key "(.*?)":\s*|argument (-\S+): |Problems parsing config: ', message):
        flag = named[2] or "--" + (named[1] or "config").replace("_", "-")
        rest = message[named.end() :].replace('in "<unicode string>", ', "")
        wrong = re.search(r"(?:Got|Given) value: (.*)", rest)
        kinds = [_KINDS.get(kind) or choices for kind, choices in re.findall(_EXPECTED, rest)]
        if wrong and kinds:
            one_of = ", ".join(kinds).replace("'", "").rpartition(", ")
            return f"{flag} {wrong[1]}: expected {one_of[0]}{' or ' if one_of[0] else ''}{one_of[2]}"
        return f"{flag}: {' '.join(rest.split())}"
    return message.strip()


def _close(name: str, known: list[str]) -> str:
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; close to it is {close[0]}" if close else ""


def parser_for(
    config_class: type, prog: str, description: str, addresses: Collection[str] = ()
) -> jsonargparse.ArgumentParser:
    """A parser with one flag a field; the caller adds the inputs and `--out`.

    addresses: those of the arguments that may be addresses of object stores.

    A field that is a config itself, such as `tile`, is a section: its flags are `--tile.patch-px` and so on.
    """
    parser = _Parser(prog=prog, description=description, formatter_class=_Help, allow_abbrev=False)
    parser.addresses = addresses
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
    """Run a command and exit: 2 with the message for a wrong request, 130 for Ctrl-C and SIGTERM.

    What libraries make when they are loaded stays to the end: it is seldom searched for garbage, and not at the end.
    """
    signal.signal(signal.SIGTERM, _stop)
    gc.set_threshold(*_GARBAGE)
    atexit.register(gc.freeze)
    try:
        code = body()
    except RequestError as error:
        print(f"{name}: {error}", file=sys.stderr)
        code = 2
    except OSError as error:  # of the output folder; those of slides end in the batch loop
        what = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else error
        print(f"{name}: {what}; is --out a place that can be written to, with room on its disk?", file=sys.stderr)
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
