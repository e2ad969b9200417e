"""`sail-train`: looks a command up and hands it the rest of the line.

Exit codes: 0 done, 2 something asked for is wrong (one line says what), 130 interrupted; `run` adds those of
`sail_train.train`.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence

from sail_train.commands import COMMANDS
from sail_train.config import suggestion
from sail_train.types import RunStopped

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

EXAMPLES = """\
examples:
  sail-train run recipe=tiny
  sail-train config recipe=tiny stage=align train.max_steps=2
  sail-train chat runs/tiny/mixed_rl --image x.png "How many sevens?" --think on
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        sys.stdout.write(usage())
        return 0 if words else EXIT_USAGE
    try:
        name, rest = find(words)
        return load(name)(rest)
    except (ValueError, RunStopped) as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_USAGE
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command goes on from what is finished\n")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # the reader of our output (head, less) has gone; python would complain once more when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def usage(group: str | None = None) -> str:
    """What --help prints: all commands, or those of a group such as `data`."""
    shown = {name: text for name, (_, text) in COMMANDS.items() if group in (None, name.split()[0])}
    lines = [f"  {name:<18}{text}" for name, text in shown.items()]
    title = "sail-train COMMAND ..." if group is None else f"sail-train {group} COMMAND ..."
    body = "\n".join(lines)
    return f"usage: {title}\n\n{body}\n\neach with --help\n\n{EXAMPLES}"


def find(words: Sequence[str]) -> tuple[str, list[str]]:
    """The command that the words begin with, and the rest of them."""
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in COMMANDS:
            return name, list(words[length:])
    groups = {name.split()[0] for name in COMMANDS if " " in name}
    if words[0] not in groups:
        raise ValueError(f"{words[0]!r} is no command; {suggestion(words[0], {name.split()[0] for name in COMMANDS})}")
    inner = {name.split()[1] for name in COMMANDS if name.startswith(f"{words[0]} ")}
    if len(words) == 1 or words[1] in ("-h", "--help"):
        sys.stdout.write(usage(words[0]))
        raise SystemExit(0 if len(words) > 1 else EXIT_USAGE)
    raise ValueError(f"{words[1]!r} is no command of {words[0]}; {suggestion(words[1], inner)}")


def load(name: str) -> Callable[[list[str]], int]:
    """The function behind a command."""
    module, _, function = COMMANDS[name][0].partition(":")
    loaded: Callable[[list[str]], int] = getattr(importlib.import_module(module), function)
    return loaded


if __name__ == "__main__":
    sys.exit(main())
