"""Runs chapters through papermill, more strictly than papermill does, and keeps what they said in a run folder

A run folder holds `state.json` (what was asked, how far it came) and one executed notebook per chapter; everything else in it is derived from those. Each file appears
whole or not at all, so that a run that was killed can be resumed."""
import ast
import io
import json
import shutil
import threading
import time
import tokenize
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor, wait
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from genai_playbook.chapters import ChapterInfo, chapter_gates, find_chapters
from genai_playbook.errors import PlaybookError
from genai_playbook.executing import BROKE, DONE, TIMED_OUT, end_kernels, execute_chapter, execute_far
from genai_playbook.forking import chapters_env
from genai_playbook.models import digest_of, file_digest
from genai_playbook.scheduling import needs, past_seconds, schedule, threads_each

__all__ = ['Parameter', 'ChapterRun', 'Run', 'RunResult', 'Progress', 'notebook_parameters', 'effective_parameters', 'plan', 'execute_chapter', 'finish', 'keep_remote', 'run', 'load_run', 'newest_run', 'gather']

EFFORTS = ('quick', 'full')
OWN = ('poc', 'effort', 'run_dir')  # the parameters that the runner itself sets
EXEMPT, NOT_RUN = 'exempt', 'not run'
BUSY = .25  # share of the machine that others may use before times are in doubt


def _hint(word: str, options: Iterable[str], otherwise: str) -> str:
    from genai_playbook.tables import nearest
    near = nearest(word, options)
    return f'; did you mean `{near}`?' if near else f'; {otherwise} {", ".join(options)}.'


# --- parameters ---------------------------------------------------------------------------------
@dataclass(frozen=True)
class Parameter:
    "One parameter that a notebook declares"
    name: str
    default: object  # a literal
    type: str        # its annotation, or the type of its default
    help: str        # the comment behind it


def notebook_parameters(
    nb: Mapping,  # a notebook as JSON data or a NotebookNode
    name: str = 'notebook',  # for error texts
) -> dict[str, Parameter]:
    "The literal assignments of the one cell tagged `parameters`; raises PlaybookError when there is no such cell or it derives anything"
    cells = [c for c in nb['cells'] if 'parameters' in c['metadata'].get('tags', [])]
    if len(cells) != 1: raise PlaybookError(f'{name}: {len(cells)} cells are tagged `parameters`, there must be exactly one (nbdev-clean keeps the tag only with allowed_cell_metadata_keys).')
    src = ''.join(cells[0]['source'])
    notes = {t.start[0]: t.string.lstrip('# ') for t in tokenize.generate_tokens(io.StringIO(src).readline) if t.type == tokenize.COMMENT}
    res = {}
    for o in ast.parse(src).body:
        target = o.target if isinstance(o, ast.AnnAssign) else o.targets[0] if isinstance(o, ast.Assign) and len(o.targets) == 1 else None
        try: default = ast.literal_eval(o.value)
        except (ValueError, AttributeError): target = None
        if not isinstance(target, ast.Name): raise PlaybookError(f'{name}: `{ast.unparse(o)}` is not a literal parameter; derive it in the next cell.')
        kind = ast.unparse(o.annotation) if isinstance(o, ast.AnnAssign) else type(default).__name__
        res[target.id] = Parameter(target.id, default, kind, notes.get(o.end_lineno, ''))
    return res


def effective_parameters(
    known: Mapping[str, Parameter],
    given: Mapping,  # what to set instead of the defaults
    name: str = 'notebook',  # for error texts
) -> dict:  # every parameter with its value, so that the executed notebook records all of them
    "Defaults and `given` together; raises PlaybookError on an unknown name or another type"
    res = {k: p.default for k, p in known.items()}
    for k, v in given.items():
        if k not in known:
            raise PlaybookError(f'{name} has no parameter `{k}`{_hint(k, known, "it takes")}')
        want = type(known[k].default)
        if want is float and type(v) is int: v = float(v)
        if known[k].default is not None and type(v) is not want: raise PlaybookError(f'{name}.{k} takes {want.__name__} ({known[k].help}), not {type(v).__name__} {v!r}.')
        res[k] = v
    return res


# --- what a run is ------------------------------------------------------------------------------
@dataclass
class ChapterRun:
    "One chapter of a run"
    name: str
    title: str
    question: str = ''
    status: str = NOT_RUN
    seconds: float = 0.
    notebook: str = ''   # file name in the run folder, '' until the chapter ended
    html: str = ''
    error: str = ''      # why it broke, in one line
    key: str = ''        # digest of everything the chapter's result depends on
    digest: str = ''     # of the executed notebook


@dataclass
class Run:
    "A run folder's state.json"
    folder: Path
    poc: str
    card: str            # path of the card, or the bundled name
    effort: str
    parameters: dict[str, dict] = field(default_factory=dict)  # chapter: what was set
    chosen: list[str]|None = None   # None: the whole playbook
    started: str = ''
    finished: str = ''
    exemptions: list[dict] = field(default_factory=list)
    digests: dict = field(default_factory=dict)
    notebooks: str|None = None      # folder of the chapters; None: the playbook's own
    kernels: str = ''               # how they started: 'forked', or 'cold' and why
    threads: dict[str, int] = field(default_factory=dict)  # chapter: threads of torch and BLAS
    chapters: list[ChapterRun] = field(default_factory=list)

    def save(self):
        "Write state.json, whole"
        from genai_playbook.report import write_whole
        write_whole(self.folder/'state.json', json.dumps({**asdict(self), 'folder': None}, indent=1, default=str, ensure_ascii=False))

    def infos(self) -> dict[str, ChapterInfo]:
        "The chapters that this run chose from"
        return find_chapters(Path(self.notebooks) if self.notebooks else None)

    @property
    def ended(self) -> bool:
        "Has it come to its end, report and all? The manifest is written last"
        return bool(self.finished) and (self.folder/'manifest.json').exists()

    @property
    def whole(self) -> bool:
        "Has it ended, and no chapter of it broke?"
        return self.ended and not any(c.status in (BROKE, TIMED_OUT, NOT_RUN) for c in self.chapters)

    def chapter(self, name: str) -> ChapterRun:
        "The chapter called `name`"
        return next(c for c in self.chapters if c.name == name)


def load_run(
    folder: Path,  # a run folder; raises PlaybookError when it is none
) -> Run:
    "What state.json in `folder` says"
    try:
        d = json.loads((Path(folder)/'state.json').read_text(encoding='utf-8'))
        return Run(**{**d, 'folder': Path(folder), 'chapters': [ChapterRun(**c) for c in d['chapters']]})
    except (OSError, ValueError, TypeError, KeyError) as e:
        raise PlaybookError(f'{folder} is not a run folder of this version (state.json: {type(e).__name__}): name a folder that `genai-playbook run` made.') from None


def newest_run(
    poc: str,  # a POC's name
    base: Path,  # the folder that holds evidence/<poc>/...
    finished: bool|None = None,  # only runs that have (True) or have not (False) come to their end, report and all
) -> Run|None:
    "The newest run of `poc` below `base`"
    for f in sorted(Path(base).glob(f'{poc}/*/state.json'), reverse=True):
        try: r = load_run(f.parent)
        except PlaybookError: continue  # of another version: not a run that could be read
        if finished is None or r.ended == finished: return r


def gather(
    run: Run|Path|str,  # a run, or its folder
):  # (gates, records): list of evidence.Gate, dict of name to data
    "Everything the executed notebooks of a run say; a gate that its chapter declares but never recorded is NOT TESTED"
    from genai_playbook.card import load_card
    from genai_playbook.evidence import NOT_TESTED, Gate, read_evidence, unmeasured
    run = run if isinstance(run, Run) else load_run(Path(run))
    infos = run.infos()
    gates, records, card = [], {}, None
    for c in run.chapters:
        if c.status == EXEMPT or c.name not in infos: continue
        ev = read_evidence(run.folder/c.notebook) if c.notebook and c.status == DONE else None
        if c.notebook and c.status in (BROKE, TIMED_OUT):
            try: ev = read_evidence(run.folder/c.notebook)
            except PlaybookError: ev = None  # the chapter is already reported as broken
        gates += ev.gates if ev else []
        records.update(ev.records if ev else {})
        have = {g.code for g in ev.gates} if ev else set()
        for s in chapter_gates(infos[c.name]):
            if s.code in have: continue
            card = card or load_card(run.card)
            est, why = unmeasured(), f'chapter {c.name} {"has not run" if c.status == NOT_RUN else c.status if c.status != DONE else "did not record it"}'
            gates.append(Gate(s.code, s.chapter, s.name, s.metric, est.value, est.low, est.high, est.level, 0, s.unit, card.threshold(s), s.direction, NOT_TESTED,
                              card.is_hard(s), est.method, note=why, advice=s.advice))
    return gates, records


# --- planning -----------------------------------------------------------------------------------
def _findable(card) -> str: return card.name if card.bundled else str(card.path)  # what `load_card` finds it by, wherever a kernel runs


def plan(
    card,  # what `load_card` gives
    chosen: Iterable[str]|None = None,  # chapters to run; None: all
    params: Mapping[str, Mapping]|None = None,  # chapter: {parameter: value}
    effort: str = 'full',
    folder: Path|None = None,  # other chapters than the playbook's own
) -> tuple[dict[str, ChapterInfo], dict[str, dict]]:  # chapters by name, and the effective parameters of each
    "Which chapters run with which parameters; raises PlaybookError before anything runs"
    every, params = find_chapters(folder), params or {}
    if effort not in EFFORTS: raise PlaybookError(f'--effort takes {" or ".join(EFFORTS)}, not {effort!r}.')
    for n in [*(chosen or ()), *params]:
        if n not in every:
            raise PlaybookError(f'There is no chapter `{n}`{_hint(n, every, "there are")}')
    exempt = card.exempt()
    infos = {n: c for n, c in every.items() if (chosen is None or n in set(chosen)) and n not in exempt}
    effective = {}
    for n, c in infos.items():
        known = notebook_parameters(json.loads(c.path.read_text(encoding='utf-8')), c.path.name)
        own = {k: v for k, v in dict(poc=_findable(card), effort=effort, run_dir='').items() if k in known}
        given = params.get(n, {})
        if bad := set(given) & set(OWN): raise PlaybookError(f'-p {n}.{sorted(bad)[0]} is set by the runner: name the card as the argument of `run`, and use --effort.')
        effective[n] = effective_parameters(known, {**own, **given}, n)
    return infos, effective


# --- progress -----------------------------------------------------------------------------------
class Progress:
    "What the runner reports while it works; this one is silent, the command line has some that draw and print"
    def expect(self, seconds: Mapping[str, float], jobs: int): "How long chapters took in earlier runs, by name, and how many run side by side"
    def start(self, run: Run): "The run begins"
    def note(self, text: str): "Something the user should know"
    def chapter(self, chapter: ChapterRun): "A chapter starts"
    def cell(self, chapter: ChapterRun, done: int, total: int): "A cell of it ended"
    def gate(self, chapter: ChapterRun, gate: dict): "A gate of it was judged"
    def end(self, chapter: ChapterRun, gates: list): "The chapter ended, with these gates"

    def stopped(self) -> bool:
        "Has somebody asked to stop? The runner looks several times a second"
        return False


# --- the end of a run ---------------------------------------------------------------------------
def finish(
    run: Run,
    card,
) -> dict:  # the evidence
    "Decide, and write evidence.json, index.html, junit.xml, summary.md, model_card.md and manifest.json beside the notebooks"
    from genai_playbook import report
    from genai_playbook.evidence import decide
    from genai_playbook.witness import waivers_for
    gates, records = gather(run)
    chapters = [{k: v for k, v in asdict(c).items() if k not in ('key', 'digest')} for c in run.chapters]
    evidence = dict(schema='genai_playbook/evidence/1', decision=decide(gates, chapters, run.exemptions, waivers_for(card), run.chosen, effort=run.effort).to_dict(), gates=[g.to_dict() for g in gates], chapters=chapters,
                    poc=dict(name=card.name, card=run.card, promise=card.outcome.promise), environment=report.environment() | dict(kernels=run.kernels, threads=run.threads), digests=run.digests, records=records, effort=run.effort,
                    parameters=run.parameters, partial=run.chosen is not None, started=run.started, finished=run.finished)
    report.write_evidence(evidence, run.folder/'evidence.json')
    for name, text in {'junit.xml': report.junit_xml(evidence), 'summary.md': report.summary_md(evidence), 'model_card.md': report.model_card_md(evidence, card.about())}.items():
        report.write_whole(run.folder/name, text)
    report.index_html(evidence, run.folder)
    report.manifest(run.folder, dict(poc=run.digests, notebooks={i.path.name: file_digest(i.path) for i in run.infos().values()}))
    return {**evidence, 'folder': str(run.folder)}


def keep_remote(
    folder: Path,  # a finished run
    address: str,  # s3://, gs://, abfs:// …: whatever papermill can write
) -> str:  # the address
    "Copy a run folder through papermill's writers; raises PlaybookError when the address cannot be written"
    from papermill.iorw import papermill_io
    for p in sorted(folder.iterdir()):
        if p.is_file():
            try: papermill_io.write(p.read_text(encoding='utf-8'), f'{address}/{p.name}', extensions=None)
            except Exception as e:  # each store has errors of its own
                raise PlaybookError(f'Cannot write {address} ({type(e).__name__}): check the address, its extra (pip install "papermill[s3]" …) and your rights; the run itself is in {folder}.') from None
    return address


# --- the run ------------------------------------------------------------------------------------
class RunResult(dict):
    "What evidence.json says, and the same as Python objects"
    @property
    def folder(self) -> Path:
        "Where the run lies"
        return Path(self['folder'])

    @property
    def decision(self):
        "evidence.Decision; displays itself in a notebook"
        from genai_playbook.evidence import Decision
        return Decision(**self['decision'])

    @property
    def gates(self):
        "DataFrame with a row for each gate, by its code"
        import pandas as pd
        from genai_playbook.evidence import Gate
        return pd.DataFrame([asdict(Gate.from_dict(g)) for g in self['gates']], columns=list(Gate.__dataclass_fields__)).set_index('code')

    @property
    def chapters(self):
        "DataFrame with a row for each chapter, by its name"
        import pandas as pd
        return pd.DataFrame(self['chapters']).set_index('name')

    def digest(
        self,
        leave: Iterable[str] = (),  # gate chapters and record names that hold measured times, which never repeat
    ) -> str:
        "One number for what was found: every gate and record, whoever computed them and however long it took"
        gates = [g for g in self['gates'] if g['chapter'] not in set(leave)]
        return digest_of(sorted(gates, key=lambda g: g['code']), {k: v for k, v in self['records'].items() if k not in set(leave)})

    def __repr__(self): return f'RunResult({self["decision"]["headline"]!r}, {self["folder"]})'
    def _repr_mimebundle_(self, **kw): return self.decision._repr_mimebundle_()


def _new_folder(base: Path, card, digest: str, now: datetime) -> Path:
    try:
        folder = base/card.name/f'{now:%Y%m%dT%H%M%SZ}-{digest[:8]}'
        folder.mkdir(parents=True, exist_ok=False)
    except FileExistsError:
        return _new_folder(base, card, digest_of(digest), now)
    except OSError as e:
        raise PlaybookError(f'Cannot write to {base} ({e.strerror}): choose another folder with --out.') from None
    return folder


def _held(folder: Path):
    from genai_playbook.report import alone_in
    return alone_in(folder, f'{folder} is being written by another run: wait for it, or leave --resume out.')


def _tidy(folder: Path):
    "Away with what a killed run had begun to write, and with the manifest, which says that a run has ended"
    shutil.rmtree(folder/'.partial', ignore_errors=True)
    for p in [*folder.glob('.*.tmp'), folder/'manifest.json']: p.unlink(missing_ok=True)


def _chapters(infos, effective, digests: Mapping, every: Mapping[str, ChapterInfo], exempt, old: Run|None) -> list[ChapterRun]:
    "The chapters of a run; those of `old` whose notebook, card, data, model, package and needs are the same are kept"
    from genai_playbook.witness import package_digest
    had, keys, res = {c.name: c for c in old.chapters} if old else {}, {}, []
    for n, c in infos.items(): keys[n] = digest_of(digests, package_digest(), effective[n], file_digest(c.path))
    whole = {n for n, c in had.items() if n in infos and c.status == DONE and c.key == keys[n] and (nb := old.folder/c.notebook).is_file() and file_digest(nb) == c.digest}
    while lost := {n for n in whole if needs(infos[n], infos) - whole}: whole -= lost
    for n, c in every.items():
        if n in infos: res.append(had[n] if n in whole else ChapterRun(n, c.title, c.question, key=keys[n]))
        elif n in exempt: res.append(ChapterRun(n, c.title, c.question, EXEMPT))
    return res


def _begin(card, infos, effective, base: Path, effort: str, params: Mapping, chosen: list[str]|None, old: Run|None, notebooks: Path|None) -> Run:
    "A new run, or `old` with the chapters of it that are still valid"
    now, digests = datetime.now(timezone.utc), card.digests()
    folder = old.folder if old else _new_folder(base, card, digest_of(digests, effort, effective), now)
    state = Run(folder, card.name, _findable(card), effort, {n: dict(p) for n, p in params.items()}, chosen, old.started if old else now.isoformat(timespec='seconds'),
                exemptions=card.exemptions, digests=digests, notebooks=str(notebooks) if notebooks else None)
    state.chapters = _chapters(infos, effective, digests, state.infos(), card.exempt(), old)
    return state


def _preflight(poc: str):
    from genai_playbook.card import load_card
    from genai_playbook.checking import preflight
    preflight(load_card(poc))


def _kernels(cold: bool) -> str:
    "How kernels will start: 'forked', or 'cold' and why"
    from genai_playbook import forking
    if cold: return 'cold: --cold'
    forking.begin(forking.chapters_env())
    import papermill.execute  # noqa: F401  takes two seconds, and so do those imports
    why = forking.why_cold(forking.chapters_env())
    return f'cold: {why}' if why else 'forked'


def _ask_first(card, cold: bool) -> str:
    "One real answer before anything is written, in a fork where there can be one, because it loads the model; how kernels start"
    from genai_playbook import forking
    kernels = _kernels(cold)
    if kernels == 'forked':
        try: forking.call('genai_playbook.runner:_preflight', _findable(card), env=forking.chapters_env())
        except OSError as e: kernels = f'cold: {e}'
    if kernels != 'forked': _preflight(_findable(card))
    return kernels


def _busy() -> float:
    "Share of the cores that somebody uses while no chapter runs"
    import psutil
    return psutil.cpu_percent(interval=.5)/100


class _Work:
    "Runs one chapter and keeps what came of it"
    def __init__(self, state: Run, infos, effective, timeout: float, progress: Progress, pool: Executor|None):
        self.state, self.infos, self.effective, self.timeout, self.progress, self.pool = state, infos, effective, timeout, progress, pool
        self.lock, self.live, self.stopped, self.cold = threading.Lock(), set(), False, state.kernels != 'forked'

    def __call__(self, name: str):
        c, info, folder, given = self.state.chapter(name), self.infos[name], self.state.folder, self.effective[name]
        self.progress.chapter(c)
        if info.exclusive and (busy := _busy()) > BUSY: self.progress.note(f'Other programs keep {busy:.0%} of this machine busy: the times that chapter {name} measures will be longer than they need be.')
        params = {**given, **({'run_dir': str(folder)} if 'run_dir' in given else {})}
        start, nb = time.monotonic(), folder/info.path.name
        for old in (nb, nb.with_suffix('.html')): old.unlink(missing_ok=True)  # of an attempt that is void
        status, error = (self._near if self.pool is None else self._far)(c, info.path, nb, params)
        if self.stopped: return  # the kernel was ended by us, which says nothing of the chapter
        status, error, gates = self._read(nb, status, error)
        self._keep(c, nb, status, error, time.monotonic()-start)
        self.progress.end(c, gates)

    def _near(self, c: ChapterRun, src: Path, nb: Path, params: Mapping) -> tuple[str, str]:
        return execute_chapter(src, nb, params, self.timeout, lambda done, total: self.progress.cell(c, done, total), lambda gate: self.progress.gate(c, gate),
                               threads=self.state.threads[c.name], cold=self.cold, env=chapters_env(), live=self.live)

    def _far(self, c: ChapterRun, src: Path, nb: Path, params: Mapping) -> tuple[str, str]:
        f = self.pool.submit(execute_far, src, nb, params, self.timeout, self.state.threads[c.name], self.cold)
        while not wait([f], timeout=.2).done:
            if self.stopped: return BROKE, 'it was stopped'
        try: return f.result()
        except Exception as e: return BROKE, f'its worker failed: {type(e).__name__}: {e}'.splitlines()[0][:300]

    def _read(self, nb: Path, status: str, error: str):
        from genai_playbook.evidence import read_evidence
        try: return status, error, read_evidence(nb).gates if status == DONE else []
        except PlaybookError as e: return BROKE, str(e), []

    def _keep(self, c: ChapterRun, nb: Path, status: str, error: str, seconds: float):
        from genai_playbook.report import chapter_html
        there = nb.exists()
        if there: chapter_html(nb, nb.with_suffix('.html'), error)
        with self.lock:
            c.status, c.error, c.seconds, c.notebook, c.html = status, error, round(seconds, 2), nb.name if there else '', nb.with_suffix('.html').name if there else ''
            c.digest = file_digest(nb) if there else ''
            self.state.save()

    def stop(self):
        self.stopped = True
        end_kernels(self.live)


def _full(folder: Path, e: OSError) -> PlaybookError:
    return PlaybookError(f'Cannot write to {folder} ({e.strerror or type(e).__name__}): finished chapters are kept; mend that, then go on with --resume.')


def _resumable(poc: str, base: Path) -> Run|None:
    "The newest run, if it was cut off or a chapter of it broke"
    newest = newest_run(poc, base)
    return newest if newest and not newest.whole else None


def run(
    poc: str|Path,  # a card, its folder, or the name of a bundled POC
    chapters: Iterable[str]|None = None,  # None: the whole playbook
    effort: str = 'full',  # 'quick': small samples, a first answer
    params: Mapping[str, Mapping]|None = None,  # chapter: {parameter: value}
    out: str|Path = 'evidence',  # a local folder, or an address that papermill can write (s3://, gs://, abfs://)
    jobs: int|None = None,  # chapters side by side; None: as many as there are cores
    timeout: float = 1800.,  # seconds for one chapter
    resume: bool = False,  # go on with the newest run if it was cut off or a chapter broke, keeping chapters that are still valid
    progress: Progress|None = None,
    notebooks: Path|None = None,  # other chapters than the playbook's own
    cold: bool = False,  # start each kernel afresh instead of forking it
    executor: str|Executor = 'threads',  # 'dask:ADDRESS', 'dask:local', or any executor whose workers see the same files under the same paths
) -> RunResult:  # the evidence
    "Run the playbook on a POC and write its evidence; raises PlaybookError for what the user can mend"
    from genai_playbook.card import load_card
    from genai_playbook.scaling import executor_for
    card, progress, params = load_card(poc), progress or Progress(), params or {}
    chosen = list(chapters) if chapters is not None else None
    infos, effective = plan(card, chosen, params, effort, notebooks)
    remote = str(out) if '://' in str(out) else ''
    base = Path('evidence' if remote else out).resolve()
    with executor_for(executor, jobs) as (pool, jobs):
        kernels = _ask_first(card, cold)
        state = _begin(card, infos, effective, base, effort, params, chosen, _resumable(card.name, base) if resume else None, notebooks)
        state.kernels = kernels
        try:
            with _held(state.folder): evidence = _carry_out(state, card, infos, effective, pool, jobs, timeout, progress)
        except OSError as e: raise _full(state.folder, e) from None
    if remote: evidence['folder'] = keep_remote(state.folder, f'{remote.rstrip("/")}/{card.name}/{state.folder.name}')
    return evidence


def _carry_out(state: Run, card, infos, effective, pool: Executor|None, jobs: int, timeout: float, progress: Progress) -> RunResult:
    from genai_playbook.timing import usable_cpus
    seconds = past_seconds(state.folder.parent.parent, state.poc, state.effort)
    todo = {n: i for n, i in infos.items() if state.chapter(n).status == NOT_RUN}
    state.threads = threads_each(infos, jobs, usable_cpus())
    _tidy(state.folder)
    state.save()
    progress.expect({n: seconds[n] for n in todo if n in seconds}, jobs)
    progress.start(state)
    if state.kernels not in ('forked', 'cold: --cold'): progress.note(f'Kernels start afresh, some seconds each: {state.kernels.removeprefix("cold: ")}.')
    work = _Work(state, infos, effective, timeout, progress, pool)
    schedule(todo, work, jobs, seconds, work.stop, progress.stopped)
    shutil.rmtree(state.folder/'.partial', ignore_errors=True)
    state.finished = datetime.now(timezone.utc).isoformat(timespec='seconds')
    state.save()
    return RunResult(finish(state, card))
