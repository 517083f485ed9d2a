"""``python -m pipelines`` is the command faceshards."""

from pipelines.cli import main

if __name__ == "__main__":
    main(prog_name="faceshards")
