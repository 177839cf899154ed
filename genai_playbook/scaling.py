"""More than one machine, or more than one card: executors, matrices of POCs and models, and answers to a million prompts

Whatever has the interface of `concurrent.futures.Executor` can run chapters and shards; `dask:ADDRESS` and `dask:local` are opened here, others are handed over as objects. Workers see the same
files under the same paths and have the same packages installed."""
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, wait
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from genai_playbook.errors import PlaybookError

__all__ = ['executor_for', 'matrix_cards', 'run_matrix', 'answer_file']

SECONDS = 60  # to wait for the first worker of a cluster


# --- executors -----------------------------------------------------------------------------------
def _dask(where: str, jobs: int|None):
    try: from distributed import Client
    except ImportError: raise PlaybookError(f'--executor dask:{where} needs distributed: pip install "genai-playbook[dask]".') from None
    try: return Client(n_workers=jobs, threads_per_worker=1, dashboard_address=None) if where == 'local' else Client(where, timeout='10s')
    except (OSError, ValueError) as e: raise PlaybookError(f'There is no dask scheduler at {where} ({type(e).__name__}): start one with `dask scheduler`, or use dask:local.') from None


@contextmanager
def executor_for(
    what: str|Executor,  # 'threads', 'dask:local', 'dask:ADDRESS', or an executor that the caller keeps
    jobs: int|None = None,  # how many to use; None: what the machine or the cluster has
) -> Iterator[tuple[Executor|None, int]]:  # None: threads of this process; and how many work side by side
    "Whoever does the work, opened and closed"
    from genai_playbook.timing import usable_cpus
    if isinstance(what, Executor): yield what, jobs or getattr(what, '_max_workers', None) or usable_cpus()
    elif what == 'threads': yield None, jobs or usable_cpus()
    elif what.startswith('dask:') and what != 'dask:':
        with _dask(what.removeprefix('dask:'), jobs or usable_cpus()) as client:
            try: client.wait_for_workers(1, timeout=SECONDS)
            except Exception as e: raise PlaybookError(f'No worker joined {what} within {SECONDS} s ({type(e).__name__}): start some with `dask worker`.') from None
            yield client.get_executor(pure=False, retries=3), jobs or max(1, sum(client.nthreads().values()))
    else: raise PlaybookError(f'--executor {what}: use threads, dask:local or dask:ADDRESS (such as dask:tcp://10.0.0.5:8786).')


# --- matrices ------------------------------------------------------------------------------------
def _link(source: Path, into: Path):
    "Everything beside a card is found beside the new one too"
    for p in source.iterdir():
        new = into/p.name
        if p.name == 'poc.yaml' or p.name.startswith('.') or p.suffix in ('.yaml', '.yml') or p.name in ('evidence', '__pycache__'): continue
        if p.suffix == '.py' and new.exists() and new.read_bytes() != p.read_bytes(): raise PlaybookError(f'{p.name} lies beside both cards and differs: rename one of them.')
        if not new.exists(): new.symlink_to(p.resolve())


def _crossed(poc, other, folder: Path) -> Path:
    "A card with the data and promises of `poc` and the model of `other`, in a folder of its own"
    import yaml
    from genai_playbook.report import write_whole
    folder.mkdir(parents=True, exist_ok=True)
    raw = lambda card: yaml.safe_load(card.path.read_text(encoding='utf-8'))
    model = dict(raw(other)['model'])
    if 'path' in model and (at := other.path.parent/os.path.expanduser(model['path'])).exists(): model['path'] = str(at)
    _link(poc.path.parent, folder)
    _link(other.path.parent, folder)
    write_whole(folder/'poc.yaml', yaml.safe_dump(raw(poc) | dict(poc=folder.name, model=model), sort_keys=False, allow_unicode=True))
    return folder/'poc.yaml'


def _named(pocs: Sequence[str|Path]) -> dict:  # name: (card, what it was called)
    from genai_playbook.card import load_card
    cards = {c.name: (c, str(p)) for p in pocs for c in [load_card(p)]}
    if len(cards) < len(pocs): raise PlaybookError('Two of these cards have the same `poc` name: rename one, their evidence would lie in one folder.')
    return cards


def matrix_cards(
    pocs: Sequence[str|Path],  # cards
    folder: Path,  # where cards of new combinations go
) -> dict[tuple[str, str], str]:  # (POC, whose model): a card to run
    "Every model of these cards with every POC of them; raises PlaybookError when two cards have one name"
    cards = _named(pocs)
    own = lambda a, b: a if a == b else f'{a}-with-{b}'
    return {(a, b): cards[a][1] if a == b else str(_crossed(cards[a][0], cards[b][0], folder/own(a, b))) for a in cards for b in cards}


def run_matrix(
    pocs: Sequence[str|Path],  # cards
    cross: bool = True,  # every model with every POC; False: each card as it is
    out: str|Path = 'evidence',
    **options,  # of `run`
) -> dict[tuple[str, str], dict]:  # (POC, whose model): what `run` gave
    "One run after the other, because chapters that measure time want the machine for themselves; each spreads its chapters as `run` does"
    from genai_playbook.runner import run
    cards = matrix_cards(pocs, Path('evidence' if '://' in str(out) else out).resolve()/'cards') if cross else {(n, n): p for n, (_, p) in _named(pocs).items()}
    return {key: run(card, out=out, **options) for key, card in cards.items()}


# --- a million answers ---------------------------------------------------------------------------
def _chunks(path: Path, size: int) -> Iterator:
    "DataFrames of at most `size` rows, one after the other"
    import pandas as pd
    kind = path.suffix.lower()
    if not path.stat().st_size: return
    if kind == '.csv': yield from pd.read_csv(path, dtype=str, keep_default_na=False, chunksize=size)
    elif kind in ('.jsonl', '.ndjson'): yield from pd.read_json(path, lines=True, dtype=False, chunksize=size)
    elif kind == '.parquet':
        from pyarrow.parquet import ParquetFile
        for batch in ParquetFile(path).iter_batches(size): yield batch.to_pandas()
    else: raise PlaybookError(f'{path.name}: prompts are read from .csv, .jsonl or .parquet.')


@lru_cache(maxsize=1)
def _system(poc: str, digest: str):  # a worker lives on when the card has changed
    from genai_playbook.card import load_card
    return load_card(poc).system().uncached


def _answer_part(poc: str, digest: str, rows, part: str, key: str) -> int:
    "Answer a chunk and store it whole; what a worker does"
    from dataclasses import asdict
    from io import BytesIO
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq
    from genai_playbook.report import write_whole
    answers = pd.DataFrame([asdict(a) for a in _system(poc, digest).answer(list(rows['prompt'].astype(str)))])
    table = pa.Table.from_pandas(pd.concat([rows.reset_index(drop=True), answers.add_prefix('answer_').rename(columns={'answer_text': 'answer'})], axis=1), preserve_index=False)
    buffer = BytesIO()
    pq.write_table(table.replace_schema_metadata({'genai_playbook': key}), buffer)
    write_whole(Path(part), buffer.getvalue())
    return len(rows)


def _valid(part: Path, key: str) -> bool:
    import pyarrow.parquet as pq
    try: return (pq.read_schema(part).metadata or {}).get(b'genai_playbook') == key.encode()
    except (OSError, ValueError): return False


def _readable(prompts: Path):
    if not prompts.is_file(): raise PlaybookError(f'There is no file {prompts}.')
    try: import pyarrow  # noqa: F401
    except ImportError: raise PlaybookError('Answers are stored as Parquet, which needs pyarrow: pip install "genai-playbook[dask]".') from None


def answer_file(
    poc: str|Path,  # a card: its system answers
    prompts: str|Path,  # .csv, .jsonl or .parquet with a column `prompt`
    out: str|Path,  # folder of part-000000.parquet, part-000001.parquet …
    chunk: int = 10_000,  # rows that are in memory for each worker
    executor: str|Executor = 'threads',
    jobs: int|None = None,  # chunks under way at once on an executor; None: as many as it has workers. In this process it is one, whose model uses all cores
    progress: Callable[[int], None] = lambda rows: None,  # told how many rows are done
) -> int:  # rows
    "Answer any number of prompts with bounded memory; a chunk that was answered before, by the same system from the same rows, is not asked again"
    from pandas import util
    from genai_playbook.card import load_card
    card, prompts, out = load_card(poc), Path(prompts).resolve(), Path(out).resolve()
    _readable(prompts)
    out.mkdir(parents=True, exist_ok=True)
    system, where, done, running = card.system().digest, card.name if card.bundled else str(card.path), 0, set()
    with executor_for(executor, jobs) as (pool, n):
        for i, rows in enumerate(_chunks(prompts, chunk)):
            if 'prompt' not in rows: raise PlaybookError(f'{prompts.name} has no column `prompt`; it has {", ".join(map(str, rows.columns[:8]))}.')
            part, key = out/f'part-{i:06}.parquet', hashlib.sha256(system.encode() + util.hash_pandas_object(rows.astype(str), index=False).values.tobytes()).hexdigest()
            if _valid(part, key): done += len(rows)
            elif pool is None: done += _answer_part(where, system, rows, str(part), key)
            else: running.add(pool.submit(_answer_part, where, system, rows, str(part), key))
            progress(done)
            while len(running) >= n:
                ready, running = wait(running, return_when=FIRST_COMPLETED)
                done += sum(f.result() for f in ready)
        for f in running: done += f.result()
    for p in sorted(out.glob('part-*.parquet'))[i+1 if done else 0:]: p.unlink()  # of an earlier, longer list
    progress(done)
    return done
