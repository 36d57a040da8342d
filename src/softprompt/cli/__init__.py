"""The command line: one file a verb, each of which parses, calls one function and prints.

Exit status: 0 all is well; 1 the thing itself failed or was interrupted; 2 a mistake in what was
given, said in one message on stderr. Only results go to stdout.
"""

from softprompt.cli.root import app, main

__all__ = ["app", "main"]
