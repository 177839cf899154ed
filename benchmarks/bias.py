"""Chapter 06 on recorded decisions without a model: a CSV of a million rows with three group columns, made here from a seed

    python benchmarks/bias.py                # a million rows, full effort
    python benchmarks/bias.py --rows 100000

Prints the chapter's own seconds, the whole command's, the processor seconds of both, and the gates."""
import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

CARD = '''poc: million
outcome: {promise: pays what is due}
model: {kind: recorded, path: rows.csv, answer: answer, id: id}
data:
  evaluation: rows.csv
  columns: {groups: [gender, region, age]}
bias: {label: due, decision_column: paid, gap: 0.05}
'''


def decisions(n: int, seed: int = 0) -> pd.DataFrame:
    "Rows in which women over 65 are paid 8 points less often than is due"
    r = np.random.default_rng(seed)
    gender, region, age = r.choice(['women', 'men'], n), r.choice(['north', 'south', 'east', 'west', 'islands'], n), r.choice(['under 30', '30 to 65', 'over 65'], n)
    due = r.random(n) < .6
    paid = due & (r.random(n) < .95 - .08*((gender == 'women') & (age == 'over 65')))
    ids = [f'q{i}' for i in range(n)]
    return pd.DataFrame(dict(id=ids, prompt=ids, gender=gender, region=region, age=age, due=np.where(due, 'yes', 'no'), paid=paid.astype(int), answer=np.where(paid, 'We pay.', 'Sorry, no.')))


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--rows', type=int, default=1_000_000)
    n = p.parse_args().rows
    from genai_playbook.runner import run
    with tempfile.TemporaryDirectory() as tmp:
        os.environ['GENAI_PLAYBOOK_CACHE'] = f'{tmp}/cache'
        decisions(n).to_csv(f'{tmp}/rows.csv', index=False)
        Path(tmp, 'poc.yaml').write_text(CARD)
        start, cpu = time.perf_counter(), os.times()
        ev = run(f'{tmp}/poc.yaml', chapters=['bias'], out=f'{tmp}/evidence')
        took, t = time.perf_counter() - start, os.times()
        used = sum(t[:4]) - sum(cpu[:4])
    print(f"{n:,} rows: chapter {ev['chapters'][0]['seconds']:.0f} s ({ev['chapters'][0]['status']}), whole run {took:.0f} s, {used:.0f} processor seconds on {os.cpu_count()} cores")
    for g in ev['gates']: print(f"{g['code']} {g['verdict']:13} {g['value']!s:.8} [{g['low']!s:.8}, {g['high']!s:.8}]  n = {g['n']:,}  {g['note']}")


if __name__ == '__main__': main()
