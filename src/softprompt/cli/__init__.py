"""The command line: one module per command, which parses, calls one function and prints.

Exit status: 0 for success; 1 if the work failed or was interrupted; 2 for a mistake in the input,
with one message on stderr. Only results go to stdout.
"""

from softprompt.cli.main import app, main

__all__ = ["app", "main"]
