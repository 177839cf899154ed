"What can be said of a POC before a run: does it answer, what will the gates need, how long will it take"
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from genai_playbook.chapters import chapter_gates, find_chapters
from genai_playbook.errors import PlaybookError

__all__ = ['Check', 'GateNeed', 'preflight', 'check_poc', 'print_check']

TRIAL = 128    # prompts that the time estimate rests on
TRIES = 3     # prompts that may fail before the model is said not to answer


@dataclass(frozen=True)
class GateNeed:
    "Rows and clusters that a gate plans to need, against what the data has"
    code: str
    name: str
    hard: bool
    asked: str          # direction and threshold
    planned: int|None   # rows; None: its chapter decides by itself
    have: int
    planned_clusters: int|None = None  # None: rows are independent, or it counts no rows
    have_clusters: int = 0

    @property
    def enough(self) -> bool: return self.have >= (self.planned or 0) and self.have_clusters >= (self.planned_clusters or 0)

    def short(self) -> str:
        "What there is too little of"
        few = [f'{plan:,} {what}, the data has {have:,}' for plan, have, what in ((self.planned, self.have, 'rows'), (self.planned_clusters, self.have_clusters, 'clusters')) if (plan or 0) > have]
        return ' and '.join(few)


@dataclass
class Check:
    "What `genai-playbook check` found"
    poc: str
    card: str                   # what to type after `genai-playbook run`
    model: dict                 # what is known of the model
    prompt: str                 # what was asked
    answer: str                 # what it said
    rows: int
    clusters: int|None          # groups of rows that are not independent
    seconds: float|None         # for all rows, once; None for a log
    money: float|None           # for all rows, once; None when nothing is priced
    currency: str = ''
    gates: list[GateNeed] = field(default_factory=list)
    chapters: list[tuple[str, bool, str]] = field(default_factory=list)  # name, will it run, why not
    warnings: list[str] = field(default_factory=list)
    findings: list = field(default_factory=list)  # of `linter.Finding`


def _some(card, rows, k: int) -> list:
    "Prompts from all over the data: neighbours are often one conversation, and fail together"
    found = [p for p in card.prompts(rows) if p]
    return found[::max(1, len(found)//k)][:k]


def check_instruments(
    card,  # what `load_card` gives
):
    "What scores the answers must be there before anything is asked: own metrics, schemas, the judge and its labels; raises PlaybookError"
    from genai_playbook.judge import check_judge
    from genai_playbook.metrics import metric_sources, scorer, specs_in
    if 'success' in card.exempt() or (section := card.section('success')) is None: return
    for key in ('metric', 'also'):
        for spec in specs_in(getattr(section, key)):
            try:
                if '/' not in spec.name: scorer(spec, card.folder)
                metric_sources(spec, card.folder)
            except PlaybookError as e: raise card.error(str(e), f'success.{key}') from None
    if section.judge: check_judge(card, section.judge)


def preflight(
    card,  # what `load_card` gives
):  # the answer to the first prompt that got one
    "One real answer, so that what cannot work is said before a chapter runs; raises PlaybookError"
    check_instruments(card)
    model = card.model()
    prompts = _some(card, card.evaluation(), TRIES)
    if not prompts: raise PlaybookError(f'{card.file().name}: no row has a prompt, so nothing can be asked.')
    if not model.live: return model.answer(prompts[:1])[0]
    for p in prompts:
        a = model.answer([p])[0]
        if a.error is None: return a
    raise PlaybookError(f'{model.name} answered none of {len(prompts)} prompts; it said: {a.error}')


def check_poc(
    poc: str,
    clock: Callable[[], float] = time.perf_counter,
) -> Check:
    "Ask the model a little and work out what a whole run needs; raises PlaybookError for what must be mended first"
    from genai_playbook.card import load_card
    from genai_playbook.linter import lint, planned
    card = load_card(poc)
    rows, model = card.evaluation(), card.model()
    answer, prompts = preflight(card), _some(card, rows, TRIAL)
    seconds = money = None
    if not model.live: trial = model.answer(_some(card, rows, len(rows)))
    else:
        model.uncached.answer(prompts[:1])  # loading is no part of an answer's time
        start = clock()
        trial = model.uncached.answer(prompts)
        seconds = (clock()-start)/len(prompts)*len(rows)
        money = _money(card, trial, len(rows))
    res = Check(card.name, card.name if card.bundled else str(poc), dict(model.about), str(prompts[0]), answer.text if answer.error is None else f'no answer: {answer.error}', len(rows), rows['cluster'].nunique() if 'cluster' in rows else None,
                seconds, money, card.outcome.currency)
    exempt, specs = card.exempt(), []
    for c in find_chapters().values():
        why = f'exempt: {exempt[c.name].reason}' if c.name in exempt else 'needs a live model, and this POC is a log of answers' if c.live and not model.live else ''
        res.chapters.append((c.name, not why, why))
        if c.name in exempt: continue
        own = chapter_gates(c)
        specs += own
        for s in own:
            t = card.threshold(s)
            need = planned(s, t, rows)
            res.gates.append(GateNeed(s.code, s.name, card.is_hard(s), f'{"≥" if s.direction == ">=" else "≤"} {t:g}', need.rows, len(rows), need.clusters, res.clusters or 0))
    res.findings = lint(specs, card, rows)
    short = [g for g in res.gates if not g.enough]
    res.warnings += [f'{g.code} plans {g.short()}: expect INSUFFICIENT unless the system is far from {g.asked}.' for g in short]
    if (lost := sum(a.error is not None for a in trial)): res.warnings.append(f'{lost:,} of {len(trial):,} answers failed, such as: {next(a.error for a in trial if a.error)}. Failed answers stay unscored and widen every bound.')
    if card.data.private: res.warnings.append('data.private is set: prompts and answers stay out of reports and caches, so every run pays for its answers again.')
    return res


def _money(card, trial: list, n: int) -> float|None:
    "What `n` answers cost at the card's prices, from the tokens of the trial"
    price = [getattr(card.model_spec, k, None) for k in ('price_in', 'price_out')]
    known = [a for a in trial if a.error is None and a.tokens_in is not None and a.tokens_out is not None]
    if None in price or not known: return None
    return n*sum(a.tokens_in*price[0] + a.tokens_out*price[1] for a in known)/len(known)/1e6


def _duration(s: float) -> str: return "under a second" if s < 1 else f"about {s:.0f} s" if s < 120 else f"about {s/60:.0f} min" if s < 7200 else f"about {s/3600:.1f} h"


def print_check(
    check: Check,
    console,
) -> int:  # exit code: 0, the POC can run
    "Say it on a console"
    from rich.markup import escape
    from rich.table import Table
    short = lambda t: escape(t if len(t) < 400 else t[:400] + ' …')
    console.print(f'[bold]{escape(check.poc)}[/]  {escape(", ".join(f"{k} {v}" for k, v in check.model.items() if v not in (None, "")))}\n')
    console.print(f'[dim]asked[/]     {short(check.prompt)}\n[dim]answered[/]  {short(check.answer)}\n')
    parts = [f'{check.rows:,} rows' + (f' in {check.clusters:,} clusters' if check.clusters else '')]
    if check.seconds is not None: parts.append(f'{_duration(check.seconds)} to ask them all once (later runs reuse answers where they are cached)')
    if check.money is not None: parts.append(f'about {check.money:,.2f} {check.currency} for it')
    console.print('[dim]data[/]      ' + '; '.join(parts) + '\n')
    t = Table(box=None, pad_edge=False, header_style='dim')
    number = lambda n: '–' if n is None else f'{n:,}'
    for c in ('gate', 'what it asks', 'asked'): t.add_column(c)
    for c in ('rows planned', 'clusters planned')[:2 if check.clusters else 1]: t.add_column(c, justify='right')
    t.add_column('')
    for g in check.gates:
        counts = [g.planned, g.planned_clusters][:2 if check.clusters else 1]
        t.add_row(g.code + ('' if g.hard else ' [dim](advisory)[/]'), escape(g.name), g.asked, *map(number, counts), '' if g.planned is None else '[green]enough[/]' if g.enough else '[yellow]too few[/]')
    console.print(t)
    console.print('\n[dim]chapters[/]  ' + ', '.join(f'{n}' if ok else f'{n} ([yellow]will not run[/]: {escape(why)})' for n, ok, why in check.chapters))
    for w in check.warnings: console.print(f'[yellow]note[/]      {escape(w)}')
    colors = dict(error='red', warning='yellow', note='dim')
    for f in check.findings: console.print(f'[{colors[f.level]}]{f.level:<9}[/] {f.code}: {escape(f.text)}')
    console.print(f'\nIt can run:  genai-playbook run {escape(check.card)}')
    return 0
