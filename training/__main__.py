"""``python -m training`` is ``faceshards train``."""

import sys

from pipelines.cli import main

if __name__ == "__main__":
    arguments = sys.argv[1:]
    sys.exit(main(arguments if arguments[:1] == ["train"] else ["train", *arguments], prog_name="faceshards"))
