"""``python -m cab``, and ``cab``: takes Ctrl-C into its hands before anything else is imported."""

import sys

from cab import leaving


def main() -> int:
    """Runs the command line of this process; returns its exit status, or ends the process where it was interrupted."""
    leaving.watch()
    try:
        from cab import cli

        status = cli.main()
        leaving.ignore_signals()
    except KeyboardInterrupt:
        leaving.leave()
    return status


if __name__ == "__main__":
    sys.exit(main())
