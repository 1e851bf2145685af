"""What the command `fairy` runs: the command line, with Ctrl-C answered while its modules are still being loaded."""

import sys


def main() -> None:
    """Run the command line and end the process with its exit code."""
    try:
        from fairy.runtime.cli.main import main as command_line

        command_line()
    except KeyboardInterrupt:
        print("error: Interrupted; no video was written.", file=sys.stderr)
        sys.exit(130)
