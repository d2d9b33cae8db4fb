"""Measure fastopt beside NumPy and every installed peer, side by side in one process.

python benchmarks/compare.py [--only adam] [--sizes 100 10000] [--large] [--json FILE] [--plot DIR]
python benchmarks/compare.py --threads 2    # all with two threads, and two against one
python benchmarks/compare.py --isa avx2     # only: is a weaker instruction set still faster than NumPy?
python benchmarks/compare.py --check        # only: do all compute the same numbers?
"""

import argparse
import gc
import json
import os
import sys
from pathlib import Path


def main() -> None:
    arguments = parse()
    # Libraries read these when they load, so they come before all other imports.
    os.environ["FASTOPT_BENCH_THREADS"] = str(arguments.threads)
    os.environ["FASTOPT_BENCH_COMPILED"] = str(int(arguments.compiled))
    import settings  # noqa: F401, I001
    import demands

    import fastopt
    from fastopt import _kernels, bench, cli

    fastopt.set_num_threads(arguments.threads)
    catalogue = bench.catalogue(quick=bool(arguments.isa), large=arguments.large, threads=arguments.threads)
    if arguments.isa:
        _kernels.use_isa(arguments.isa)
        peers = None
    else:
        import peers
    fence = "```\n" if arguments.markdown else ""
    described = f"\n\n{peers.describe()}" if peers else ""
    load = os.getloadavg()[0]
    print(f"{fence}{cli.describe_environment()}\nload before      {load:.1f}{described}\n{fence}", flush=True)

    results = []
    endings = tuple(f" {n:,}" for n in arguments.sizes or ())
    chosen = {key: make for key, make in catalogue.items()
              if arguments.only in key and (not endings or key.endswith(endings))}  # fmt: skip
    for number, (key, make) in enumerate(chosen.items(), 1):
        if sys.stderr.isatty():
            print(f"\r{number}/{len(chosen)} {key:<60}\r", end="", file=sys.stderr, flush=True)
        fastopt.set_num_threads(arguments.threads)
        contest = make()
        if peers:
            peers.agree(peers.add(contest))
        if arguments.check:
            print(f"{key}: the same from {', '.join(contest.contenders)}", flush=True)
        else:
            # OpenMP's threads spin for eight milliseconds after a contender's turn, on a core that the next one needs.
            pause = 0.0 if arguments.threads == 1 else 12e-3
            results.append(bench.measure(contest, rounds=arguments.rounds, pause=pause))
        del contest
        gc.collect()  # gigabytes in cycles
    if arguments.check:
        return

    tables = [bench.table(family, markdown=arguments.markdown) for family in bench.families(results).values()]
    print("\n\n".join([*tables, bench.NOTE]))
    if arguments.isa:
        shown = demands.judge_confined(results, arguments.isa)
    else:
        shown = demands.judge(results, arguments.threads) + demands.footprint()
    print(f"\nMust show\n\n{demands.format_rows(shown, markdown=arguments.markdown)}")
    everything = {
        "environment": cli.environment() | {"threads": arguments.threads, "load before": load},
        "peers": peers.PEERS if peers else {},
        "results": results,
        "must_show": shown,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(everything, indent=1) + "\n")
    if arguments.plot:
        import plot

        print("\n".join(f"drew {path}" for path in plot.draw(everything, arguments.plot)))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", default="", metavar="TEXT", help="the rows whose name holds TEXT")
    parser.add_argument("--sizes", type=int, nargs="+", metavar="N", help="the rows of arrays of N elements")
    parser.add_argument("--large", action="store_true", help="the steps also on 50,000,000 parameters")
    parser.add_argument(
        "--threads", type=int, default=1, metavar="N", help="the threads of every contender; default: 1"
    )
    parser.add_argument("--isa", choices=["avx2", "baseline"], help="confine fastopt; beside NumPy alone")
    parser.add_argument("--compiled", action=argparse.BooleanOptionalAction, default=True, help="torch.compile too")
    parser.add_argument("--rounds", type=int, default=15, help="default: 15; 3 or more")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write everything that was measured")
    parser.add_argument("--plot", type=Path, metavar="DIR", help="where to draw pictures (needs matplotlib)")
    parser.add_argument("--markdown", action="store_true", help="print tables in Markdown")
    parser.add_argument("--check", action="store_true", help="compare the numbers, measure nothing")
    return parser.parse_args()


if __name__ == "__main__":
    main()
