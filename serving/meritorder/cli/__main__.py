"""`python -m meritorder.cli`, the same as `meritorder`."""

from meritorder.cli.main import main

if __name__ == "__main__":
    main(prog_name="meritorder")
