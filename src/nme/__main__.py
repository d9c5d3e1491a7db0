"""Start the command line, or say what to install for it."""

import sys


def main() -> None:
    """Entry point of ``nme`` and of ``python -m nme``; the library alone brings none of the command line's packages."""
    try:
        from nme.cli import main as run

        run()
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "nme":
            raise
        sys.exit(f"nme: error: '{error.name}' is not installed; install nme[workflow] to use the commands")


if __name__ == "__main__":
    main()
