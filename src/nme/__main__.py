"""Start the command line, or name the missing package."""

import sys


def main() -> None:
    """Entry point of ``nme`` and ``python -m nme``; installing only the library omits the command line's packages."""
    try:
        from nme.cli import main as run

        run()
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "nme":
            raise
        sys.exit(f"nme: error: '{error.name}' is not installed; run pip install '.[workflow]' in a clone of nme")


if __name__ == "__main__":
    main()
