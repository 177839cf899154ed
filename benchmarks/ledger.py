"""How fast the ledger takes and checks a hundred thousand entries; CPU seconds beside the wall clock, because a shared machine stretches the latter

    python benchmarks/ledger.py [--n 100000]"""
import argparse
import tempfile
import time
from pathlib import Path


def timed(what: str, work):
    wall, cpu = time.perf_counter(), time.process_time()
    res = work()
    print(f'{what:<42} {time.perf_counter()-wall:6.2f} s wall {time.process_time()-cpu:6.2f} s CPU')
    return res


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--n', type=int, default=100_000)
    n = p.parse_args().n
    from genai_playbook.ledger import Ledger, checkpoint, ledger_problems, receipt
    with tempfile.TemporaryDirectory() as folder:
        log = Ledger(Path(folder)/'ledger.sqlite')
        timed(f'append {n:,} entries at once', lambda: log.extend(dict(kind='run', poc='demo', who='benchmark', why=f'entry {i}', digests=dict(model=f'{i:064x}'), facts={}) for i in range(n)))
        kept = timed('take a checkpoint', lambda: checkpoint(log))
        wrong = timed('verify all against the checkpoint', lambda: ledger_problems(log, kept))
        timed('prove that one entry is there', lambda: receipt(log, n//2))
        timed('append 20 entries, each durable by itself', lambda: [log.append('run', 'benchmark', 'one more', 'demo') for _ in range(20)])
        print(f'{log.path.stat().st_size/2**20:.1f} MiB; problems found: {wrong or "none"}')


if __name__ == '__main__': main()
