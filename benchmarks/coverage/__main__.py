"""Which of diffusers' pipeline classes run here, and give what bare diffusers gives: `python . benchmarks.coverage`.

Every class of the installed diffusers for which a tiny random model can be built offline is called bare and through the
pack, in one process, with the same weights and seeds, and then with each optimization. Writes
`results/pipeline_coverage.json`, docs/coverage.md and the table in the README.

`--cases FOLDER` adds the cases of diffusers' own tests, from a checkout of its repository.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from pathlib import Path

from ...cache_folder import cache_folder


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.coverage", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", metavar="NAME", nargs="+", help="cases whose name or class contains one of these")
    parser.add_argument("--cases", type=Path, metavar="FOLDER", help="a checkout of diffusers, for its tests' cases")
    parser.add_argument("--plain", action="store_true", help="without the optimizations")
    parser.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    parser.add_argument("--update", action="store_true", help="keep what is stored; try what is missing and --only")
    parser.add_argument("--list", action="store_true", help="every installed class and what is known of it")
    parser.add_argument("--no-store", action="store_true", help="write neither results nor tables")
    parser.add_argument("--seconds", type=float, default=180.0, help="most processor time of a case (default: 180)")
    parser.add_argument("--gib", type=float, default=6.0, help="most memory that one case may take (default: 6)")
    parser.add_argument("--journal", type=Path, default=None, help="where results are kept as they come")
    args = parser.parse_args(arguments)
    if args.list:
        from ...commands.libraries import prepare_libraries
        from .tables import listed

        prepare_libraries(verbose=False)
        print(listed())
        return 0
    folder = cache_folder() / "coverage"
    os.environ["HF_HUB_CACHE"] = str(folder / "hub")  # read when the libraries are imported
    os.environ["HF_HUB_OFFLINE"] = "1"
    from . import everything

    journal = args.journal or folder / "journal.jsonl"
    results = everything.run(args, folder / "hub", journal)
    print(", ".join(f"{count} {state}" for state, count in Counter(r["state"] for r in results.values()).most_common()))
    if not args.no_store and (args.update or not (args.only or args.plain)):
        from . import tables

        tables.store(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
