"""What forked kernels save, and what a run costs beyond the time its chapters compute

    python benchmarks/runner.py               # both, some minutes
    python benchmarks/runner.py --rounds 1 --effort quick

First: twelve notebooks that import torch, transformers, pandas and matplotlib, executed by papermill with cold kernels and by the runner with forked ones, each in a process of its own,
interleaved. The forked side pays for its nursery every time. Second: `genai-playbook run demo` against the time that the cells of its chapters took, divided by the workers that may run:
one for chapters that measure time and for the decision, `--jobs` for the others."""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CELLS = ['import torch, transformers, pandas, matplotlib.pyplot as plt', 'torch.ones(3).sum().item(), pandas.DataFrame(dict(a=[1])).a.sum()', 'plt.plot([1, 2]);']


def write_notebooks(folder: Path, n: int):
    from nbformat import write
    from nbformat.v4 import new_code_cell, new_notebook
    for i in range(n):
        nb = new_notebook(cells=[new_code_cell('x: int = 1  # a number', metadata={'tags': ['parameters']}), *map(new_code_cell, CELLS)])
        nb.metadata['kernelspec'] = dict(name='python3', display_name='Python 3', language='python')
        write(nb, folder/f'{i:02}.ipynb')


def execute(how: str, folder: Path, jobs: int):
    "All notebooks of `folder`: this is what the timed process does"
    import threading
    from concurrent.futures import ThreadPoolExecutor
    from genai_playbook.executing import execute_chapter
    from genai_playbook.forking import Nursery, why_cold
    if how == 'forked': threading.Thread(target=why_cold).start()  # imports, while this process imports papermill
    out = folder/how
    out.mkdir()

    def papermill(p):
        from papermill import execute_notebook
        execute_notebook(str(p), str(out/p.name), dict(x=2), progress_bar=False)

    def ours(p):
        status, error = execute_chapter(p, out/p.name, dict(x=2))
        assert status == 'done', error
    with ThreadPoolExecutor(jobs) as pool: list(pool.map(papermill if how == 'cold' else ours, sorted(folder.glob('*.ipynb'))))
    Nursery.close_all()


def timed(command: list) -> tuple[float, float]:  # seconds, and CPU-seconds of all that it started
    start, before = time.perf_counter(), os.times()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode: sys.exit(done.stderr)
    after = os.times()
    return time.perf_counter() - start, after.children_user + after.children_system - before.children_user - before.children_system


def compare_kernels(n: int, rounds: int, jobs: list[int]):
    print(f'{n} notebooks that import torch, transformers, pandas and matplotlib: median of {rounds} interleaved rounds\n')
    print('| side by side | papermill, cold: s | forked: s | ratio (of each round) | cold: CPU-s | forked: CPU-s | ratio |\n|--:|--:|--:|--:|--:|--:|--:|')
    medians = {}
    for j in jobs:
        took = {'cold': [], 'forked': []}
        for _ in range(rounds):
            for how, seconds in took.items():
                with tempfile.TemporaryDirectory() as tmp:
                    write_notebooks(Path(tmp), n)
                    seconds.append(timed([sys.executable, __file__, '--execute', how, tmp, str(j)]))
        wall, cpu = ({how: statistics.median(x[k] for x in s) for how, s in took.items()} for k in (0, 1))
        ratios, medians[j] = [c[0]/f[0] for c, f in zip(took['cold'], took['forked'])], wall
        print(f'| {j} | {wall["cold"]:.1f} | {wall["forked"]:.1f} | {statistics.median(ratios):.1f} ({", ".join(f"{r:.1f}" for r in ratios)}) | {cpu["cold"]:.1f} | {cpu["forked"]:.1f} | {cpu["cold"]/cpu["forked"]:.1f} |', flush=True)
    print(f'\npapermill, which runs one after the other, against the runner, {jobs[-1]} side by side: {medians[1]["cold"]/medians[jobs[-1]]["forked"]:.1f}')


def cell_seconds(notebook: Path) -> float:
    "What papermill measured around each cell of an executed notebook"
    return sum(c['metadata']['papermill'].get('duration') or 0 for c in json.loads(notebook.read_text())['cells'] if c['cell_type'] == 'code')


def compare_run(poc: str, effort: str, jobs: int):
    from genai_playbook.chapters import find_chapters
    from genai_playbook.runner import newest_run
    with tempfile.TemporaryDirectory() as tmp:
        command = [sys.executable, '-m', 'genai_playbook.cli', 'run', poc, '--effort', effort, '--out', tmp, '--jobs', str(jobs)]
        start = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL)  # its exit code is a verdict
        took, run = time.perf_counter() - start, newest_run(poc, Path(tmp))
        cells = {c.name: cell_seconds(run.folder/c.notebook) for c in run.chapters if c.notebook}
    alone = {n for n, c in find_chapters().items() if c.exclusive or 'all' in c.needs}
    beside = [s for n, s in cells.items() if n not in alone]
    least = sum(s for n, s in cells.items() if n in alone) + sum(beside)/max(1, min(jobs, len(beside)))
    print(f'\nrun {poc} --effort {effort} --jobs {jobs}: {took:.1f} s; cells {sum(cells.values()):.1f} s, divided by the workers that may run {least:.1f} s; ratio {took/least:.2f}')
    print('cells, seconds: ' + ', '.join(f'{n} {s:.1f}' for n, s in cells.items()))


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--n', type=int, default=12)
    p.add_argument('--rounds', type=int, default=3)
    p.add_argument('--effort', default='full')
    p.add_argument('--jobs', type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument('--only', choices=['kernels', 'run'])
    p.add_argument('--execute', nargs=3, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.execute: return execute(a.execute[0], Path(a.execute[1]), int(a.execute[2]))
    if a.only != 'run': compare_kernels(a.n, a.rounds, sorted({1, a.jobs}))
    if a.only != 'kernels': compare_run('demo', a.effort, a.jobs)


if __name__ == '__main__': main()
