"""``python -m sftkit``: the command line."""

from sftkit.user_modules import forget_directory

if __name__ == "__main__":
    forget_directory()  # before anything else is imported

    from sftkit.cli import main

    main()
