"""`python -m edgeladder`: the command line where its script is not on the PATH."""

from edgeladder.cli.app import run

if __name__ == "__main__":
    run()
