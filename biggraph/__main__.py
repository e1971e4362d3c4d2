"""Lets `python -m biggraph` run the command line."""

from biggraph.cli import main

if __name__ == "__main__":
    main()
