"""``python -m softprompt``, and ``accelerate launch -m softprompt``: the command line."""

from softprompt.cli import main

if __name__ == "__main__":
    main()
