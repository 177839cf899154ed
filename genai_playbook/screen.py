"What a run shows on a terminal: live bars where there is one, a line per event where there is none"
import json
import sys
import time
from collections.abc import Callable, Mapping

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from genai_playbook.faces import SYMBOLS
from genai_playbook.runner import ChapterRun, Progress, Run

__all__ = ['Estimated', 'ScreenProgress', 'JsonProgress', 'QuietProgress', 'Asking', 'print_result', 'print_matrix', 'print_comparison', 'print_verification', 'STYLE', 'SYMBOL']

STYLE = {'PASS': 'green', 'FAIL': 'bold red', 'INSUFFICIENT': 'yellow', 'NOT TESTED': 'dim', 'GO': 'bold green', 'NO-GO': 'bold red', 'INSUFFICIENT EVIDENCE': 'bold yellow',
         'done': 'green', 'broke': 'bold red', 'timed out': 'bold red', 'exempt': 'dim', 'better': 'bold green', 'not worse': 'green', 'worse': 'bold red', 'cannot tell': 'yellow', 'no verdict': 'dim'}
SYMBOL = {**SYMBOLS, 'done': '✓', 'broke': '✗', 'timed out': '✗', 'exempt': '–', 'better': '✓', 'not worse': '✓', 'worse': '✗', 'cannot tell': '?', 'no verdict': '·'}


def _clock(seconds: float) -> str: return f'{int(seconds)//60}:{int(seconds) % 60:02}'


class Estimated(Progress):
    "How long a run has taken, and how long it will, from what its chapters took in earlier runs"
    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.clock, self.began, self.expected, self.jobs, self.todo, self.running = clock, clock(), {}, 1, set(), {}

    def expect(self, seconds: Mapping[str, float], jobs: int): self.expected, self.jobs = dict(seconds), jobs

    def start(self, run: Run):
        self.began, self.todo = self.clock(), {c.name for c in run.chapters if c.status == 'not run'}

    def chapter(self, chapter: ChapterRun): self.running[chapter.name] = self.clock()
    def end(self, chapter: ChapterRun, gates: list): self._over(chapter.name)

    def _over(self, name: str):
        self.running.pop(name, None)
        self.todo.discard(name)

    @property
    def elapsed(self) -> float:
        "Seconds since the run began"
        return self.clock() - self.began

    @property
    def left(self) -> float|None:
        "Seconds until it ends, roughly; None when some chapter was never timed"
        if not self.todo <= set(self.expected): return None
        rest = {n: max(0., self.expected[n] - (self.clock() - self.running[n] if n in self.running else 0)) for n in self.todo}
        return max([sum(rest.values())/max(1, min(self.jobs, len(rest))), *rest.values()])

    def times(self) -> str:
        "Both, in a few characters"
        return _clock(self.elapsed) + (f', about {_clock(self.left)} left' if self.todo and self.left is not None else '')


class JsonProgress(Estimated):
    "One JSON object a line and event, for programs"
    def __init__(self, out=None, **kw):
        super().__init__(**kw)
        self.out = out or sys.stdout

    def __enter__(self): return self
    def __exit__(self, *exc): pass

    def say(self, event: str, **what):
        "One line"
        print(json.dumps(dict(event=event, elapsed=round(self.elapsed, 2), left=self.left and round(self.left, 1), **what), ensure_ascii=False, default=str), file=self.out, flush=True)

    def start(self, run: Run):
        super().start(run)
        self.say('start', poc=run.poc, folder=run.folder, effort=run.effort, chapters=sorted(self.todo))

    def note(self, text: str): self.say('note', text=text)

    def chapter(self, chapter: ChapterRun):
        super().chapter(chapter)
        self.say('chapter', chapter=chapter.name)

    def cell(self, chapter: ChapterRun, done: int, total: int): self.say('cell', chapter=chapter.name, done=done, total=total)
    def gate(self, chapter: ChapterRun, gate: dict): self.say('gate', chapter=chapter.name, **{k: gate[k] for k in ('code', 'verdict', 'value', 'low', 'high', 'n')})

    def end(self, chapter: ChapterRun, gates: list):
        super().end(chapter, gates)
        self.say('end', chapter=chapter.name, status=chapter.status, seconds=chapter.seconds, error=chapter.error)


class QuietProgress(Progress):
    "Nothing but what went wrong"
    def __init__(self, console): self.console = console
    def __enter__(self): return self
    def __exit__(self, *exc): pass
    def note(self, text: str): self.console.print(escape(text))
    def end(self, chapter: ChapterRun, gates: list): chapter.error and self.console.print(f'{chapter.name} {chapter.status}: {escape(chapter.error)}')


class ScreenProgress(Estimated):
    "Live bars on a terminal, a line for each event in a log"
    def __init__(self, console, **kw):
        super().__init__(**kw)
        self.console, self.tasks = console, {}
        self.bars = Bars(SpinnerColumn(), TextColumn('{task.description}'), BarColumn(24), MofNCompleteColumn(), TextColumn('cells'), TimeElapsedColumn(), TextColumn('{task.fields[said]}'),
                         console=console, disable=not console.is_terminal)
        self.whole = self.bars.add_task('', total=None, visible=False, said='')

    def __enter__(self):
        self.bars.start()
        return self

    def __exit__(self, *exc): self.bars.stop()

    def _line(self, text: str): self.console.print(text if self.console.is_terminal else f'[dim]{_clock(self.elapsed):>6}[/]  {text}')

    def start(self, run: Run):
        super().start(run)
        n, kept = len(self.todo), [c.name for c in run.chapters if c.status == 'done']
        said = '' if self.left is None else f', about {_clock(self.left)} by earlier runs'
        self.console.print(f'[bold]{escape(run.poc)}[/]: {n} chapter{"s"*(n != 1)} to run{said}, effort {run.effort}, evidence in {escape(str(run.folder))}')
        if kept: self._line(f'kept from before: {", ".join(kept)}')
        self._overall()

    def _overall(self): self.bars.update(self.whole, description=f'[dim]{"run":<12}[/]', visible=True, said=f'[dim]{len(self.todo)} chapters to go, {self.times()}[/]')

    def note(self, text: str): self._line(f'[yellow]{escape(text)}[/]')

    def chapter(self, chapter: ChapterRun):
        super().chapter(chapter)
        self.tasks[chapter.name] = self.bars.add_task(f'{chapter.name:<12}', total=None, said='')
        if not self.console.is_terminal: self._line(f'{chapter.name}: started' + (f', about {self.expected[chapter.name]:.0f} s' if chapter.name in self.expected else ''))

    def cell(self, chapter: ChapterRun, done: int, total: int):
        self.bars.update(self.tasks[chapter.name], completed=done, total=total)
        self._overall()

    def gate(self, chapter: ChapterRun, gate: dict):
        mark, task = f'[{STYLE[gate["verdict"]]}]{SYMBOL[gate["verdict"]]} {gate["code"]}[/]', self.tasks[chapter.name]
        if self.console.is_terminal: self.bars.update(task, said=f'{self.bars.tasks[task].fields["said"]} {mark}')
        else: self._line(f'{chapter.name}: {mark} {gate["verdict"]}')

    def end(self, chapter: ChapterRun, gates: list):
        super().end(chapter, gates)
        said = ' '.join(f'[{STYLE[g.verdict]}]{SYMBOL[g.verdict]} {g.code}[/]' for g in gates)
        if chapter.error: said += f' [red]{escape(chapter.error)}[/]'
        self.bars.update(self.tasks[chapter.name], total=1, completed=1, visible=False)
        self._line(f'[{STYLE[chapter.status]}]{SYMBOL[chapter.status]} {chapter.name:<12}[/] {chapter.status:<9} {chapter.seconds:6.1f} s  {said}')
        self._overall()


def _value(g: dict) -> str:
    num = lambda x: x if isinstance(x, str) else f'{x:.4g}'
    return '–' if g['verdict'] == 'NOT TESTED' else f'{num(g["value"])}  [{num(g["low"])}, {num(g["high"])}]'


def print_result(
    evidence: dict,  # what `run` returns
    console,
):
    "The decision table, what to do next, and where the report is"
    d = evidence['decision']
    t = Table(title=None, box=None, pad_edge=False, header_style='dim')
    for name, kw in dict(verdict={}, gate={}, asks=dict(overflow='fold'), value={}, needed={}, n=dict(justify='right')).items(): t.add_column({'value': 'value [95 % bounds]', 'needed': 'asked'}.get(name, name), **kw)
    for g in sorted(evidence['gates'], key=lambda g: (not g['hard'], g['code'])):
        sign = {'>=': '≥', '<=': '≤'}[g['direction']]
        t.add_row(f'[{STYLE[g["verdict"]]}]{SYMBOL[g["verdict"]]} {g["verdict"]}[/]', g['code'] + ('' if g['hard'] else ' [dim](advisory)[/]'), escape(g['name']), escape(_value(g)),
                  f'{sign} {g["threshold"]:.4g}', f'{g["n"]:,}')
    console.print()
    console.print(t)
    console.print(f'\n[{STYLE[d["verdict"]]}]{escape(d["headline"])}[/]')
    for r in d['reasons']: console.print(f'  · {escape(r)}')
    if d['next_steps']: console.print('\nNext:')
    for i, s in enumerate(d['next_steps'], 1): console.print(f'  {i}. [bold]{escape(s["code"])}[/] {escape(s["step"])}')
    console.print(f'\nReport: {escape(evidence["folder"])}/index.html')


def print_matrix(
    results: dict[tuple[str, str], dict],  # what `scaling.run_matrix` returns
    console,
) -> int:  # exit code: the worst of all, 1 before 4 before 3 before 0
    "One line for each POC and model"
    t = Table(box=None, pad_edge=False, header_style='dim')
    for name in ('decision', 'POC', 'model of', 'failed', 'report'): t.add_column(name, overflow='fold')
    for (poc, model), ev in results.items():
        d, failed = ev['decision'], [g['code'] for g in ev['gates'] if g['hard'] and g['verdict'] == 'FAIL']
        t.add_row(f'[{STYLE[d["verdict"]]}]{SYMBOL[d["verdict"]] if d["verdict"] in SYMBOL else ""} {d["verdict"]}[/]', escape(poc), escape(model), ', '.join(failed), escape(f'{ev["folder"]}/index.html'))
    console.print()
    console.print(t)
    codes = {ev['decision']['exit_code'] for ev in results.values()}
    return next(c for c in (1, 4, 3, 0) if c in codes)


class Asking:
    "A bar for each system that is being asked; silent where there is no terminal"
    def __init__(self, console):
        self.bars = Bars(SpinnerColumn(), TextColumn('{task.description}'), BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn(), console=console, disable=not console.is_terminal, transient=True)
        self.tasks = {}

    def __enter__(self):
        self.bars.start()
        return self

    def __exit__(self, *exc): self.bars.stop()

    def __call__(self, name: str, done: int, total: int):
        if name not in self.tasks: self.tasks[name] = self.bars.add_task(f'asking {escape(name)}')
        self.bars.update(self.tasks[name], completed=done, total=total)


def print_comparison(
    result: dict,  # what `head_to_head.compare` returns
    console,
    folder,  # where its page lies
):
    "The table of a comparison, its verdict and where the page is"
    from genai_playbook.faces import number
    from genai_playbook.head_to_head import place, points
    t = Table(box=None, pad_edge=False, header_style='dim')
    for name in ('verdict', 'what', 'A', 'B', 'B − A [95 % bounds]', 'n', 'would tell'): t.add_column(name, justify='left' if name in ('verdict', 'what', 'B − A [95 % bounds]') else 'right', overflow='fold')
    for r in result['comparisons']:
        score, diff = (lambda v, r=r: number(v, 'share' if r['bounded'] else '')), (lambda k, r=r: points(float(r[k]), r['bounded']))
        t.add_row(f'[{STYLE[r["verdict"]]}]{SYMBOL[r["verdict"]]} {r["verdict"]}[/]', escape(place(r)), score(r['a']), score(r['b']), escape(f'{diff("value")}  [{diff("low")}, {diff("high")}]'), f'{r["n"]:,}', f'{r["needed"]:,}' if r['needed'] else '')
    console.print(t)
    console.print(f'\n[{STYLE[result["verdict"]]}]{SYMBOL[result["verdict"]]} {result["verdict"].upper()}[/]  {escape(result["headline"])}')
    if result['worse']: console.print(f'[bold red]✗ WORSE IN PLACES[/]  {escape("; ".join(result["worse"]))}; corrected for looking at {len(result["comparisons"]) - 1} of them.')
    for line in [*result['reasons'], *result['notes']]: console.print(f'  · {escape(line)}')
    console.print(f'\nAnswers side by side: {escape(str(folder))}/compare.html')


def print_verification(
    v,  # of `verifying.verify`
    console,
):
    "What was checked, what changed since, and what came out again"
    marks = {True: '[green]✓[/]', False: '[bold red]✗[/]', None: '[yellow]·[/]'}
    for c in v.checks: console.print(f'{marks[c.ok]} {c.name:<12} {escape(c.said)}')
    if v.stale: console.print(f'[bold yellow]STALE[/] {escape(", ".join(v.stale))} changed since: this evidence cannot support a GO; run again.')
    if v.claims:
        t = Table(box=None, pad_edge=False, header_style='dim')
        for name in ('gate', 'again', 'then', 'now', 'rule'): t.add_column(name)
        look = {'reproduced': 'green', 'within tolerance': 'green', 'not reproduced': 'bold red'}
        for c in v.claims: t.add_row(c.code, f'[{look.get(c.label, "yellow")}]{c.label}[/]', c.then, c.now, c.rule)
        console.print(t)
    console.print('[bold red]does not hold[/]' if v.wrong or any(c.label == 'not reproduced' for c in v.claims) else '[bold yellow]whole, but stale[/]' if v.stale else '[bold green]holds[/]')
