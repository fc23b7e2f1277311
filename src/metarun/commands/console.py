"""What every console command shares: its parser, its one message for a mistake, and its exit codes."""

import argparse
import errno
import io
import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from metarun.config import directories, mistakes, search_path
from metarun.config.named_code import additions_end_nothing, place_in_additions
from metarun.config.schema import FEW_SHOT
from metarun.errors import MetarunError, in_a_line, positive_int
from metarun.system.machine import versions

# Exit codes: the system refused something; a setting, a file or the data cannot be used.
FAILED = 1
MISTAKE = 2
# What the system says of a directory in which a run cannot write.
_REFUSED_WRITING = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENOSPC,
    errno.ENAMETOOLONG,
)
# In the environment: whether an error in code from outside is shown with its traceback.
TRACEBACK = "METARUN_TRACEBACK"
_UNWRITABLE = "Name a directory that can be written in with hydra.run.dir=DIR."


class Parser(argparse.ArgumentParser):
    """One whose errors are messages like all others."""

    def error(self, message: str) -> NoReturn:
        sys.exit(said(f"{message}. `{self.prog} --help` says what there is.", MISTAKE))


def parsed(parser: Parser) -> argparse.Namespace:
    """The arguments of a command; after `--version`, which every command has, it ends.

    The folders of `--config-dir`, which every command has as well and which may stand anywhere, are added.
    """
    where = "a folder with choices of your own, such as method/mine.yaml"
    parser.add_argument("--config-dir", action="append", default=[], metavar="DIR", help=where)
    parser.add_argument("--version", action="version", version=version(), help="the versions of what computes")
    anywhere = Parser(prog=parser.prog, add_help=False, allow_abbrev=False)
    anywhere.add_argument("--config-dir", action="append", default=[])
    given, others = anywhere.parse_known_args()
    try:
        search_path.add(given.config_dir)
    except MetarunError as error:
        sys.exit(said(error, MISTAKE))
    return parser.parse_args(others)


def version() -> str:
    """metarun's own version, and those of what it computes with."""
    of = versions()
    return ", ".join([f"metarun {of.pop('metarun')}", *(f"{name} {number}" for name, number in of.items())])


def of_settings(entry: Callable[[list[str]], None], prog: str, usage: str, description: str, epilog: str) -> NoReturn:
    """Ends in what `entry` does with the arguments of a command that takes KEY=VALUE alone, or in its `--help`."""
    parser = Parser(
        prog=prog,
        usage=f"{prog} {usage}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help=argparse.SUPPRESS)
    settings = parsed(parser).settings
    sys.exit(told(lambda: entry(settings)))


def pairs(settings: list[str]) -> dict[str, str]:
    """`KEY=VALUE` as a dict; raises `MetarunError` for what is not of this form."""
    for setting in settings:
        if "=" not in setting:
            raise MetarunError(f"{setting}: expected KEY=VALUE, such as run={setting}.")
    return dict(setting.split("=", 1) for setting in settings)


def whole(key: str, text: str) -> int:
    """The number of 1 or more that a key was given as text; raises `ConfigError` for another."""
    return positive_int(key, int(text) if text.isdecimal() and len(text) < 20 else text)


def told(entry: Callable[[], object], part: str = FEW_SHOT) -> int:
    """Runs `entry` and returns its exit code, having told the user in one message what went wrong.

    Args:
      entry: what to run.
      part: of `conf/`, whose keys are meant where an error does not say.
    """
    # A folder may be called by bytes that no terminal can show, and a terminal may show ASCII alone.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    code = FAILED
    try:
        with additions_end_nothing():
            entry()
            sys.stdout.flush()
        code = 0
    except MetarunError as error:
        code = said(error, MISTAKE)
    except (HydraException, OmegaConfBaseException, ValueError, TypeError, RecursionError) as error:
        message = mistakes.explained(error, getattr(error, "part", part), sys.argv[1:])
        if message is None:
            code = _of_addition(error)
        else:
            code = said(message, MISTAKE)
    except KeyboardInterrupt:
        code = said("interrupted; nothing was lost.", 130)
    except BrokenPipeError:  # who reads what is printed has read enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        where = "" if error.filename is None else f"{error.filename}: "
        hint = f" {_UNWRITABLE}" if error.errno in _REFUSED_WRITING else ""
        code = said(f"{where}{error.strerror or error}.{hint}", FAILED)
    except Exception as error:
        code = _of_addition(error)
    finally:
        directories.remove_unused(refused=code == MISTAKE)
    return code


def _of_addition(error: Exception) -> int:
    """Tells of an error in code from outside, and returns the exit code; raises any other again."""
    where = place_in_additions(error)
    if where is None:
        raise error
    if os.environ.get(TRACEBACK):
        traceback.print_exception(error)
    hint = "" if os.environ.get(TRACEBACK) else f" {TRACEBACK}=1 in the environment shows the traceback."
    return said(f"{where}: {in_a_line(error)}.{hint}", FAILED)


def said(message: object, code: int) -> int:
    """Prints a message of metarun's and returns `code`."""
    print(f"metarun: {message}".encode("utf-8", "backslashreplace").decode(), file=sys.stderr)
    return code
