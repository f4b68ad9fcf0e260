"""``python -m sftkit``: the command line."""

from sftkit.cli import main

if __name__ == "__main__":
    main()
