"""How long does a drift check of a million requests take, and how often do the tests alarm over nothing? Prints both.

    python benchmarks/monitoring.py                  # 1,000,000 rows × 20 features against a reference of as many rows; some 20 s
    python benchmarks/monitoring.py --rows 100000

Seconds are CPU seconds of one process, so they hold on a busy machine; wall clock is printed beside them. The bar: under 20 s on 2 cores.
"""
import argparse
import time

import numpy as np
import pandas as pd

from genai_playbook.drift import DRIFT, Reference
from genai_playbook.stats import clopper_pearson


def columns(rows, rng):
    "Twelve continuous features, four counts, four categories"
    cols = {f'number{i}': rng.normal(size=rows) for i in range(12)} | {f'count{i}': rng.poisson(20, rows) for i in range(4)}
    return pd.DataFrame(cols | {f'category{i}': rng.choice(['web', 'app', 'mail', 'phone'], rows) for i in range(4)})


def timed(what, f):
    cpu, wall = time.process_time(), time.perf_counter()
    res = f()
    print(f'| {what} | {time.process_time() - cpu:.2f} | {time.perf_counter() - wall:.2f} |', flush=True)
    return res


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rows', type=int, default=1_000_000)
    parser.add_argument('--windows', type=int, default=300, help='windows of 500 requests without drift')
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    usual, window = columns(args.rows, rng), columns(args.rows, rng)
    print(f'## {args.rows:,} rows × {usual.shape[1]} features\n\n| step | CPU s | wall s |\n|---|---|---|')
    for test in ('ks', 'mann_whitney', 'psi'):
        tests = {c: test for c in usual if not c.startswith('category')}
        ref = timed(f'reference, once ({test})', lambda tests=tests: Reference(usual, tests))
        found = timed(f'one window ({test})', lambda ref=ref: ref.check(window))
        assert found.verdict != DRIFT, found.features
    alarms = sum(Reference(columns(500, rng)).check(columns(500, rng)).verdict == DRIFT for _ in range(args.windows))
    low, high = clopper_pearson(alarms, args.windows, .90)
    print(f'\nNothing changed, 500 against 500 requests: {alarms} of {args.windows} windows alarm, {alarms/args.windows:.1%} [{low:.1%}, {high:.1%}]')


if __name__ == '__main__': main()
