"""How long a user waits for `--help` and for `import softprompt`."""

import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from arms import timed

COMMANDS = {
    "softprompt --help": [str(Path(sys.executable).with_name("softprompt")), "--help"],
    "import softprompt": [sys.executable, "-c", "import softprompt"],
    "python alone": [sys.executable, "-c", "pass"],
}
ROUNDS = 9


def startup(*, quick: bool) -> dict[str, Any]:  # noqa: ARG001  # every part is called alike
    """Median seconds of each, in turns."""
    spent: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS + 1):
        for name, command in COMMANDS.items():
            with timed() as seconds:
                subprocess.run(command, check=True, capture_output=True)
            spent[name].append(seconds[0])
    middle = {name: round(statistics.median(all_[1:]), 3) for name, all_ in spent.items()}
    return {"seconds": middle, "setting": {"rounds": ROUNDS}}
