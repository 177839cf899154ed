"""Does a run folder still say what was measured, and does it come out again?

Three layers: files against the manifest, the manifest against the ledger; numbers against each other, wherever they are shown; and, with `rerun`, numbers against a new execution."""
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import date
from functools import cache
from pathlib import Path

from genai_playbook.errors import PlaybookError
from genai_playbook.ledger import Checkpoint, Entry, Ledger, check_signature, ledger_path, ledger_problems, load_key, receipt_problem
from genai_playbook.models import file_digest
from genai_playbook.witness import RECEIPTS, package_digest, read_receipts, run_digests

__all__ = ['Check', 'Claim', 'Verification', 'verify', 'stale_parts', 'stale_since', 'compare_gates', 'rerun', 'REPRODUCED', 'WITHIN', 'NOT_REPRODUCED', 'NOT_RERUN']

REPRODUCED, WITHIN, NOT_REPRODUCED, NOT_RERUN = 'reproduced', 'within tolerance', 'not reproduced', 'not re-runnable here'


@dataclass(frozen=True)
class Check:
    "One question to a run folder"
    name: str
    ok: bool|None  # None: could not be looked at
    said: str      # what was found


@dataclass(frozen=True)
class Claim:
    "One gate, then and now"
    code: str
    label: str     # REPRODUCED, WITHIN, NOT_REPRODUCED or NOT_RERUN
    then: str
    now: str
    rule: str      # what was allowed


@dataclass
class Verification:
    "What was found"
    folder: Path
    checks: list[Check] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)  # what changed since: model, data.evaluation, package …
    claims: list[Claim] = field(default_factory=list)

    @property
    def wrong(self) -> list[Check]: return [c for c in self.checks if c.ok is False]

    @property
    def exit_code(self) -> int:
        "0: whole, and still about what is here now; 1: not"
        return int(bool(self.wrong or self.stale or any(c.label == NOT_REPRODUCED for c in self.claims)))


# --- what is in the folder ----------------------------------------------------------------------
def _json(path: Path, what: str) -> dict:
    try: d = json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError: raise PlaybookError(f'{path.parent} is not a whole run: {path.name} is missing; make it again with `genai-playbook report {path.parent}`.') from None
    except (OSError, ValueError): d = None
    if not isinstance(d, dict): raise PlaybookError(f'{path} is no {what}: run again.')
    return d


def _as_written(run) -> bool:
    "Does state.json hold what the runner writes?"
    texts = [run.poc, run.card, run.effort, run.started, run.finished, *(getattr(c, k) for c in run.chapters for k in ('name', 'title', 'status', 'notebook', 'html', 'error'))]
    try: date.fromisoformat(run.finished[:10])
    except (TypeError, ValueError): return not run.finished
    lists = isinstance(run.exemptions, list) and all(isinstance(e, dict) and 'chapter' in e for e in run.exemptions) and (run.chosen is None or isinstance(run.chosen, list))
    plain = all('/' not in c.notebook+c.html for c in run.chapters) if all(isinstance(t, str) for t in texts) else False
    return plain and lists and isinstance(run.parameters, dict) and isinstance(run.digests, dict) and (run.notebooks is None or isinstance(run.notebooks, str))


def _held(name: str, check, *args) -> list[Check]:
    "A check of files that anybody may have written: what this version never writes is a finding, not a crash"
    try: return check(*args)
    except (AttributeError, TypeError, KeyError, ValueError, IndexError, OverflowError) as e: return [Check(name, False, f'there is something in it that this version never writes ({type(e).__name__})')]


def _open(folder: Path):
    "The run, its evidence and its manifest; raises PlaybookError for a folder that is none, or only half"
    from genai_playbook.runner import load_run
    run = load_run(folder)
    if not _as_written(run): raise PlaybookError(f'{folder}/state.json was changed, or made by another version: restore it from a copy.')
    if not run.finished: raise PlaybookError(f'{folder} is half a run: it was cut off; go on with  genai-playbook run {run.card} --resume')
    ev, m = _json(folder/'evidence.json', 'evidence of this version'), _json(folder/'manifest.json', 'manifest of this version')
    shape = dict(decision=dict, records=dict, digests=dict, poc=dict, gates=list, chapters=list)
    whole = all(isinstance(ev.get(k), t) for k, t in shape.items()) and all(isinstance(x, dict) for x in [*ev['gates'], *ev['chapters']])
    if not whole or not all(isinstance(m.get(k), dict) for k in ('files', 'environment', 'notebooks')): raise PlaybookError(f'{folder} was made by another version: verify it with the genai_playbook that made it.')
    ev['gates'] = [{k: v for k, v in g.items() if k != 'holm'} for g in ev['gates']]  # follows from the gates, and is added when evidence.json is written
    return run, ev, m


def _check_files(folder: Path, manifest: Mapping) -> list[Check]:
    "Every file of the manifest is there, byte for byte"
    files = {n: f for n, f in manifest['files'].items() if n != RECEIPTS}
    def same(n, f):
        try: return file_digest(folder/n) == f['sha256']
        except (OSError, TypeError, KeyError): return False
    bad = [n for n, f in files.items() if not same(n, f)]
    here = {p.name for p in folder.iterdir() if p.is_file() and not p.name.startswith('.')}
    res = [Check('files', not bad, f'{", ".join(bad)} changed or missing' if bad else f'{len(files)} files are as the manifest has them')]
    if more := sorted(here-set(files)-{'manifest.json', RECEIPTS}): res.append(Check('other files', None, f'{", ".join(more)} {"is" if len(more) == 1 else "are"} no part of the run'))
    return res


# --- numbers against each other -----------------------------------------------------------------
def _recorded(run) -> tuple[dict, dict]:  # gates as dicts by code, records by name: what the notebooks say
    from genai_playbook.evidence import read_evidence
    gates, records = {}, {}
    for c in run.chapters:
        if not c.notebook: continue
        try: found = read_evidence(run.folder/c.notebook)
        except PlaybookError:
            if c.status == 'done': raise
            continue  # the chapter is reported as broken
        gates |= {g.code: g.to_dict() for g in found.gates}
        records |= found.records
    return gates, records


def _check_numbers(run, ev: Mapping) -> list[Check]:
    "evidence.json says what the notebooks say, and nothing else"
    from genai_playbook.evidence import NOT_TESTED
    from genai_playbook.report import write_evidence
    try: gates, records = _recorded(run)
    except PlaybookError as e: return [Check('numbers', False, str(e).rstrip('.'))]
    shown = {g.get('code'): g for g in ev['gates']}
    bad = sorted(c for c in gates if shown.get(c) != gates[c]) + sorted(str(c) for c, g in shown.items() if c not in gates and g.get('verdict') != NOT_TESTED)
    if len(shown) != len(ev['gates']): bad.append('a gate twice')
    names = sorted(n for n in {*records, *ev['records']} if records.get(n) != ev['records'].get(n))
    bad += [f'record {n}' for n in names]
    if not bad:
        with tempfile.TemporaryDirectory() as tmp: again = write_evidence(ev, Path(tmp)/'evidence.json').read_bytes()
        if (run.folder/'evidence.json').read_bytes() != again: bad = ['evidence.json as a whole']
    return [Check('numbers', not bad, f'evidence.json and the notebooks differ in {", ".join(bad)}' if bad else f'{len(gates)} gates and {len(records)} records are the same in notebooks and evidence.json')]


def _check_faces(run) -> list[Check]:
    "What people read in a notebook is what machines read in it"
    from genai_playbook.evidence import MIME
    from genai_playbook.faces import gate_html, gate_text
    bad = []
    for c in run.chapters:
        nb = json.loads((run.folder/c.notebook).read_text(encoding='utf-8')) if c.notebook else dict(cells=[])
        for out in (o for cell in nb['cells'] for o in cell.get('outputs', ())):
            data = out.get('data') or {}
            g = data[MIME].get('gate') if isinstance(data.get(MIME), dict) else None
            if not isinstance(g, dict): continue
            text = {k: ''.join(data.get(k, '')) for k in ('text/html', 'text/plain')}
            if text != {'text/html': gate_html(g), 'text/plain': gate_text(g)}: bad.append(f'{g.get("code")} in {c.notebook}')
    return [Check('faces', not bad, f'{", ".join(bad)} shows other numbers than it holds' if bad else 'gates show the numbers that they hold')]


def _check_pages(run, ev: dict) -> list[Check]:
    "Pages and summaries come out of the notebooks and evidence.json again, letter for letter"
    from genai_playbook import report
    bad, names = [], {c.notebook: c for c in run.chapters if c.notebook}
    ev = ev | {k: {n: ev[k][n] for n in [*order, *ev[k]] if n in ev[k]} for k, order in dict(environment=_here(), digests=run.digests).items()}  # JSON forgot their order, pages have it
    with tempfile.TemporaryDirectory() as tmp:
        for n in names: shutil.copy(run.folder/n, tmp)
        made = {c.html: report.chapter_html(Path(tmp)/n, error=c.error) for n, c in names.items() if c.html}
        made |= {'index.html': report.index_html(ev, Path(tmp)), 'summary.md': report.summary_md(ev), 'junit.xml': report.junit_xml(ev)}
    for n, text in made.items():
        try: same = (run.folder/n).read_bytes() == text.encode('utf-8', 'replace')
        except OSError: same = False
        if not same: bad.append(n)
    return [Check('pages', not bad, f'{", ".join(bad)} {"does" if len(bad) == 1 else "do"} not show what the notebooks say' if bad else f'{len(made)} pages show what the notebooks say')]


def _check_decision(run, ev: Mapping, entries: list[Entry]) -> list[Check]:
    "The rule leads from these gates to this decision, with waivers that were really given"
    from genai_playbook.evidence import Gate, decide
    d = ev['decision']
    waived = list((d.get('scope') or {}).get('waived') or ())
    day = date.fromisoformat(run.finished[:10])
    try: again = decide([Gate.from_dict(g) for g in ev['gates']], ev['chapters'], run.exemptions, [dict(code=c, until=day) for c in waived], run.chosen, day, run.effort).to_dict()
    except (PlaybookError, TypeError, KeyError, ValueError): again = None
    if again != d: return [Check('decision', False, 'the decision does not follow from the gates')]
    given = {e.facts.get('code') for e in entries if e.kind == 'waiver'}
    if entries and (bare := sorted(set(waived)-given)): return [Check('decision', False, f'{", ".join(bare)} counts as waived, and the ledger has no waiver')]
    return [Check('decision', True, f'{d["verdict"]} follows from the gates')]


# --- against the ledger -------------------------------------------------------------------------
def _check_entry(e: Mapping, found: Mapping, first: bool) -> str:
    "What of a run differs from an entry about it: the notebooks never change, pages may be made again"
    keys = ('notebooks',) if first else ('notebooks', 'evidence', 'manifest')
    bad = [k for k in keys if k in e['digests'] and e['digests'][k] != found[k]]
    return f'{", ".join(bad)} {"is" if len(bad) == 1 else "are"} not what the ledger recorded' if bad else ''


def _check_ledger(folder: Path, log: Ledger|None, found: Mapping) -> list[Check]:
    "The ledger is whole, and knows this run as it is"
    if log is None or not log.path.exists(): return [Check('ledger', None, 'there is no ledger here: only the receipts in the folder speak for it')]
    entries = log.entries()  # raises where the file cannot be read
    if wrong := ledger_problems(log): return [Check('ledger', False, f'{log.path.name}: {wrong[0]}')]
    mine = [asdict(e) for e in entries if e.kind in ('run', 'decision') and e.facts.get('run') == folder.name]
    runs = [e for e in mine if e['kind'] == 'run']
    if not mine: return [Check('ledger', None, f'{log.path.name} does not know this run: it was not made by the command line')]
    why = _check_entry(mine[0], found, True) or _check_entry((runs or mine)[-1], found, False)
    return [Check('ledger', not why, why or f'{log.path.name} is whole, and entry {mine[0]["seq"]} is about this run as it is')]


def _check_receipts(folder: Path, log: Ledger|None, found: Mapping, public) -> list[Check]:
    "Receipts hold by themselves, and the ledger still begins as it did when they were given"
    slips = read_receipts(folder)
    if not slips: return [Check('receipts', None, 'the folder has no receipts')]
    bad = [why for s in slips if (why := receipt_problem(s))]
    if not bad:
        runs = [s['entry'] for s in slips if s['entry']['kind'] == 'run'] or [slips[-1]['entry']]
        bad = [why for why in (_check_entry(slips[0]['entry'], found, True), _check_entry(runs[-1], found, False)) if why]
        cps = [Checkpoint.from_dict(s['checkpoint']) for s in slips]
        if log is not None and log.path.exists(): bad += [f'{log.path.name}: {why}' for cp in cps for why in ledger_problems(log, cp)]
        if public is not None and not any(cp.signature for cp in cps): bad.append('no receipt is signed')
        if public is not None: bad += [why for cp in cps if cp.signature and (why := check_signature(cp, public))]
    signed = sum(bool(s.get('checkpoint', {}).get('signature')) for s in slips if isinstance(s.get('checkpoint'), dict))
    said = f'{len(slips)} receipt{"s" if len(slips) > 1 else ""} hold{"s" if len(slips) == 1 else ""}'
    if signed: said += f', {signed} signed' + ('' if public is not None else ' (name the public key with --public to check)')
    return [Check('receipts', not bad, bad[0] if bad else said)]


# --- then and now -------------------------------------------------------------------------------
def stale_parts(
    run,  # of `runner.load_run`
    manifest: Mapping,
    card,  # as it is now
    package: str = '',  # digest of the package at that time; '' when nobody kept it
) -> list[str]:  # names; empty when the evidence speaks of what is here
    "What changed since a run: model, data, card, prompt, chapters or package"
    now = card.digests()
    res = [k for k in sorted({*now, *run.digests}) if now.get(k) != run.digests.get(k)]
    chapters = {i.path.name: file_digest(i.path) for i in run.infos().values()}
    then = manifest.get('notebooks') or {}
    res += [f'chapter {n}' for n in sorted({*chapters, *then}) if chapters.get(n) != then.get(n)]
    from genai_playbook import __version__
    changed = package != package_digest() if package else (manifest.get('environment') or {}).get('genai_playbook') != __version__
    return res + ['package']*bool(changed)


def stale_since(
    run,  # of `runner.load_run`, finished or not
    card,  # as it is now
) -> list[str]:
    "What changed since a run began; of one that has not ended, chapters and package are those at hand"
    path = run.folder/'manifest.json'
    if path.exists(): return stale_parts(run, _json(path, 'manifest of this version'), card, (_packages(read_receipts(run.folder)) or [''])[0])
    now = card.digests()
    return [k for k in sorted({*now, *run.digests}) if now.get(k) != run.digests.get(k)]


@cache
def _here() -> dict:
    from genai_playbook.report import environment
    return environment()


def _same_program(manifest: Mapping, package: str) -> bool:
    return package == package_digest() and (manifest.get('environment') or {}).get('libraries') == _here()['libraries']


def verify(
    folder: Path|str,  # a run folder
    public: Path|None = None,  # PEM of the public key that must have signed the receipts
) -> Verification:
    "Hold a run folder against its manifest, itself, its receipts and the ledger; raises PlaybookError when it is no finished run"
    from genai_playbook.card import load_card
    folder = Path(folder)
    key = load_key(public, private=False) if public else None
    run, ev, m = _open(folder)
    found, slips = run_digests(folder), read_receipts(folder)
    try: card = load_card(run.card)
    except PlaybookError: card = None
    log = Ledger(ledger_path(card)) if card else None
    entries = log.entries(poc=run.poc) if log else []
    packages = [p for e in entries if e.kind == 'run' and e.facts.get('run') == folder.name and (p := e.digests.get('package'))] or _packages(slips)
    measured, drawn = (packages[0], packages[-1]) if packages else ('', '')  # what executed the chapters, and what made the pages last
    v = Verification(folder, _held('files', _check_files, folder, m) + _held('numbers', _check_numbers, run, ev) + _held('decision', _check_decision, run, ev, entries))
    if _same_program(m, drawn): v.checks += _held('faces', _check_faces, run) + _held('pages', _check_pages, run, ev)
    else: v.checks.append(Check('pages', None, 'made by another version of the program or its libraries: pages were held against digests only'))
    v.checks += _check_ledger(folder, log, found) + _held('receipts', _check_receipts, folder, log, found, key)
    if card: v.stale = stale_parts(run, m, card, measured)
    else: v.checks.append(Check('stale', None, f'the card {run.card} is not here: nobody can tell whether anything changed since'))
    return v


def _packages(slips: list[dict]) -> list[str]:
    entries = [e for s in slips if isinstance(e := s.get('entry'), dict) and e.get('kind') == 'run' and isinstance(e.get('digests'), dict)]
    return [str(p) for e in entries if (p := e['digests'].get('package'))]


# --- again --------------------------------------------------------------------------------------
_FIELDS = ('value', 'low', 'high', 'n', 'threshold', 'verdict', 'unscored', 'clusters')  # n of an enumerated fact may grow: how many entries a ledger has
RATIO = 2.  # a timing may be so many times as long or short
_SIZES = {'share': .005}  # absolute; other machines round differently, and now and then an answer ends in another word
_RELATIVE = .01  # of everything else that is measured


def _close(a, b, gate: Mapping) -> bool:
    if a == b: return True
    if isinstance(a, str) or isinstance(b, str) or a is None or b is None: return False
    return abs(a-b) <= _SIZES.get(gate['unit'], _RELATIVE*abs(a))


def _timed(then: Mapping, now: Mapping, same_machine: bool) -> tuple[str, str]:
    a, b = then['value'], now['value']
    if isinstance(a, str) or isinstance(b, str) or not a or not b: return NOT_RERUN, 'a timing, and one of the two has no number'
    if max(a/b, b/a) <= RATIO: return WITHIN, f'a timing: {b/a:.2f} times as much, {RATIO:g} is allowed'
    return (NOT_REPRODUCED, f'a timing: {b/a:.2f} times as much, {RATIO:g} is allowed') if same_machine else (NOT_RERUN, 'a timing of another machine')


def compare_gates(
    then: list[dict],  # gates of evidence.json
    now: list[dict],
    timing: set[str],  # codes of gates that measure time, or what it costs
    same_machine: bool = True,
) -> list[Claim]:
    "Label each gate by whether it came out again"
    new, res = {g['code']: g for g in now}, []
    show = lambda g: f'{g["verdict"]} {g["value"]:.4g}' if g and not isinstance(g['value'], str) else g['verdict'] if g else 'missing'
    for g in then:
        h = new.get(g['code'])
        if h and all(g[k] == h[k] for k in _FIELDS if k != 'n' or g['method'] != 'exact'): label, rule = REPRODUCED, 'equal'
        elif h is None: label, rule = NOT_REPRODUCED, 'the gate was not recorded again'
        elif g['code'] in timing: label, rule = _timed(g, h, same_machine)
        else:
            size = _SIZES.get(g['unit'])
            ok = g['verdict'] == h['verdict'] and all(_close(g[k], h[k], g) for k in ('value', 'low', 'high'))
            label, rule = WITHIN if ok else NOT_REPRODUCED, f'same verdict, numbers within {size:g}' if size else f'same verdict, numbers within {_RELATIVE:.0%}'
        res.append(Claim(g['code'], label, show(g), show(h), rule))
    return res


def rerun(
    folder: Path|str,  # a finished run
    progress=None,  # of `runner.Progress`
) -> list[Claim]:
    "Execute the chapters of a run again, with an empty answer cache and in another folder, and compare"
    from genai_playbook import runner
    run, ev, m = _open(Path(folder))
    old = os.environ.get('GENAI_PLAYBOOK_CACHE')
    with tempfile.TemporaryDirectory(prefix='gp-again-') as tmp:
        os.environ['GENAI_PLAYBOOK_CACHE'] = f'{tmp}/cache'  # kernels inherit it
        try: again = runner.run(run.card, run.chosen, run.effort, run.parameters, f'{tmp}/evidence', progress=progress, notebooks=Path(run.notebooks) if run.notebooks else None)
        finally:
            del os.environ['GENAI_PLAYBOOK_CACHE']
            if old is not None: os.environ['GENAI_PLAYBOOK_CACHE'] = old
    here, there = _here(), m.get('environment') or {}
    infos = run.infos()
    clocks = {n for n, i in infos.items() if i.exclusive}
    fed = {n for n, i in infos.items() if set(i.needs) & clocks}  # such as cost: what it says in money follows from seconds
    timing = {g['code'] for g in ev['gates'] if g['chapter'] in clocks or g['chapter'] in fed and g['unit'] not in ('share', 'count', 'ratio')}
    return compare_gates(ev['gates'], json.loads(json.dumps(again['gates'])), timing, all(here[k] == there.get(k) for k in ('machine', 'cores', 'platform')))
