"""``python -m faceshards`` is the command faceshards; the ranks of a run are this file, started by its path."""

import sys
from pathlib import Path

# Python puts first on its path the current folder (-m), where a folder of the user's may be called training, or the
# folder of this file, whose modules would be found as top-level ones. What counts is where this package lies.
HERE = str(Path(__file__).resolve().parent.parent)
if not getattr(sys.flags, "safe_path", False):
    sys.path[0] = HERE

from faceshards.cli.main import main  # noqa: E402

if __name__ == "__main__":
    main(prog_name="faceshards")
