"""Run commands, in this process and in a new one, and read what they print."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from typer.testing import CliRunner

from softprompt.cli import app


@dataclass(frozen=True)
class CommandResult:
    """The status of a command, its standard output and its standard error."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]

    def is_mistake(self, *fragments: str) -> bool:
        """Whether a user's mistake was reported: exit 2, the message alone, nothing printed."""
        assert self.status == 2, (self.status, self.err)
        assert "Traceback" not in self.err
        for fragment in fragments:
            assert fragment in self.err, f"{fragment!r} is not in {self.err!r}"
        return True


def run_command(*args: object, given: str | bytes | None = None) -> CommandResult:
    """Run a command in this process; an error that it does not handle is raised."""
    result = CliRunner().invoke(app, [str(arg) for arg in args], input=given)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return CommandResult(result.exit_code, result.stdout, result.stderr)


def start_command(*args: object, **more: Any) -> subprocess.Popen[str]:
    """Start a command in a new process; ``more`` is passed to ``Popen``."""
    command = [sys.executable, "-c", "from softprompt.cli import main; main()", *map(str, args)]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, env=os.environ | {"NO_COLOR": "1"}, **more
    )
