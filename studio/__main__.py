"""One entry for every role."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the role that the command line names."""
    if sys.argv[1:2] == ["worker"]:
        from studio.engine.worker import serve

        return serve()
    return 2


if __name__ == "__main__":
    sys.exit(main())
