"""`python -m standin COMMAND...`: the `anychip` command line on the stand-in; a JSON line of what was seen last."""

from __future__ import annotations

import json
import sys

from . import install, log


def main() -> int:
    """Run the command line. Exit code 3 where anything was refused, else the command's own."""
    install()
    from anychip.cli import build

    code: object = 0
    try:
        build()(sys.argv[1:], standalone_mode=True)
    except SystemExit as end:
        code = end.code
    seen = {"refusals": log.refusals, "operators": len(log.operators), "copies": dict(log.copies), "exit": code}
    print("standin:", json.dumps(seen), file=sys.stderr)
    return 3 if log.refusals else int(code or 0)  # type: ignore[call-overload,no-any-return]


sys.exit(main())
