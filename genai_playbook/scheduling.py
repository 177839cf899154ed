"""Which chapter runs when: after those it needs, the longest chain first, one that measures time alone"""
import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from genai_playbook.chapters import ChapterInfo
from genai_playbook.errors import PlaybookError

__all__ = ['needs', 'past_seconds', 'priorities', 'threads_each', 'schedule']

LOOK = .2  # seconds
RUNS = 5  # earlier runs that an estimate looks at


def needs(
    info: ChapterInfo,
    names: Iterable[str],  # chapters of the run
) -> set[str]:
    "Chapters of the run that have to end before this one starts"
    return {n for n in names if n != info.name} if 'all' in info.needs else set(info.needs) & set(names)


def past_seconds(
    base: Path,  # the folder that holds <poc>/<run>/state.json
    poc: str,
    effort: str,
) -> dict[str, float]:  # chapter: seconds it took; only of those that ended well
    "How long chapters took in the newest runs of this POC with this effort"
    res: dict[str, float] = {}
    for f in sorted(Path(base).glob(f'{poc}/*/state.json'), reverse=True)[:RUNS]:
        try:
            d = json.loads(f.read_text(encoding='utf-8'))
            if d['effort'] == effort: res = {c['name']: float(c['seconds']) for c in d['chapters'] if c['status'] == 'done'} | res
        except (OSError, ValueError, TypeError, KeyError): continue  # of another version, or being written by a disk that is full
    return res


def priorities(
    infos: Mapping[str, ChapterInfo],
    seconds: Mapping[str, float],  # what is known of each chapter's time
) -> dict[str, float]:
    "Seconds from a chapter's start to the end of the longest chain that waits for it; a chapter nobody has timed counts as long as the longest one known"
    guess = max(seconds.values(), default=1.)
    own = {n: seconds.get(n, guess) for n in infos}
    after = {n: [m for m, c in infos.items() if n in c.needs] for n in infos}

    def chain(n: str, seen: frozenset = frozenset()) -> float:
        return 0. if n in seen else own[n] + max((chain(m, seen | {n}) for m in after[n]), default=0.)
    return {n: chain(n) for n in infos}


def threads_each(
    infos: Mapping[str, ChapterInfo],
    jobs: int,  # chapters side by side
    total: int,  # cores
) -> dict[str, int]:
    "Threads for each chapter's torch and BLAS: all cores for one that runs alone, a fair share for the others"
    beside = max(1, min(jobs, sum(not c.exclusive and 'all' not in c.needs for c in infos.values())))
    return {n: total if c.exclusive or 'all' in c.needs else max(1, total//beside) for n, c in infos.items()}


def _startable(infos, waiting, running, jobs, rank) -> str|None:
    "The next chapter that may start now: one that measures time whenever nothing else runs, then the longest chain"
    if len(running) >= jobs or any(infos[n].exclusive for n in running): return None
    ready = [n for n in waiting if not needs(infos[n], infos) & (waiting | running) and not (infos[n].exclusive and running)]
    return min(ready, key=lambda n: (not infos[n].exclusive, -rank[n], list(infos).index(n)), default=None)


def schedule(
    infos: Mapping[str, ChapterInfo],
    work: Callable[[str], None],  # runs one chapter; what it raises ends the schedule
    jobs: int,  # chapters side by side
    seconds: Mapping[str, float]|None = None,  # what earlier runs took
    stop: Callable[[], None] = lambda: None,  # called again and again, until what still runs has ended, when one raised or the user interrupted
    stopped: Callable[[], bool] = lambda: False,  # has somebody asked to stop? Looked at several times a second
):
    "Call `work` on every chapter; raises PlaybookError when some need each other"
    waiting, running, rank = set(infos), {}, priorities(infos, seconds or {})
    with ThreadPoolExecutor(jobs) as pool:
        try:
            while waiting or running:
                while (n := _startable(infos, waiting, set(running.values()), jobs, rank)) is not None:
                    running[pool.submit(work, n)] = n
                    waiting.discard(n)
                if not running: raise PlaybookError(f'Chapters {", ".join(sorted(waiting))} need each other: mend `needs` in their metadata.')
                done: set[Future] = set()
                while not done:
                    if stopped(): raise PlaybookError('The run was stopped: finished chapters are kept, and it can be gone on with.')
                    done, _ = wait(running, timeout=LOOK, return_when=FIRST_COMPLETED)
                for f in done:
                    del running[f]
                    f.result()
        except BaseException:
            while wait(running, timeout=.1).not_done: stop()
            raise
