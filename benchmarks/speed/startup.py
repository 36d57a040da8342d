"""How long a user waits for `--help` and for `import softprompt`."""

import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from arms import measure_time

COMMANDS = {
    "softprompt --help": [str(Path(sys.executable).with_name("softprompt")), "--help"],
    "import softprompt": [sys.executable, "-c", "import softprompt"],
    "python alone": [sys.executable, "-c", "pass"],
}
ROUNDS = 9


def measure_startup(*, quick: bool) -> dict[str, Any]:  # noqa: ARG001  # as for every part
    """The median seconds of each command; the commands alternate."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS + 1):  # the first round warms up
        for name, command in COMMANDS.items():
            with measure_time() as elapsed:
                subprocess.run(command, check=True, capture_output=True)
            times[name].append(elapsed[0])
    medians = {name: round(statistics.median(values[1:]), 3) for name, values in times.items()}
    return {"seconds": medians, "setting": {"rounds": ROUNDS}}
