"What a run shows on a terminal: live bars where there is one, a line per event where there is none"
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from genai_playbook.faces import SYMBOLS
from genai_playbook.runner import ChapterRun, Progress, Run

__all__ = ['ScreenProgress', 'Asking', 'print_result', 'print_comparison', 'print_verification', 'STYLE', 'SYMBOL']

STYLE = {'PASS': 'green', 'FAIL': 'bold red', 'INSUFFICIENT': 'yellow', 'NOT TESTED': 'dim', 'GO': 'bold green', 'NO-GO': 'bold red', 'INSUFFICIENT EVIDENCE': 'bold yellow',
         'done': 'green', 'broke': 'bold red', 'timed out': 'bold red', 'exempt': 'dim', 'better': 'bold green', 'not worse': 'green', 'worse': 'bold red', 'cannot tell': 'yellow', 'no verdict': 'dim'}
SYMBOL = {**SYMBOLS, 'done': '✓', 'broke': '✗', 'timed out': '✗', 'exempt': '–', 'better': '✓', 'not worse': '✓', 'worse': '✗', 'cannot tell': '?', 'no verdict': '·'}


class ScreenProgress(Progress):
    "Progress of a run on a rich console"
    def __init__(self, console):
        self.console, self.tasks = console, {}
        self.bars = Bars(SpinnerColumn(), TextColumn('{task.description}'), BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn('{task.fields[said]}'),
                         console=console, disable=not console.is_terminal)

    def __enter__(self):
        self.bars.start()
        return self

    def __exit__(self, *exc): self.bars.stop()

    def start(self, run: Run):
        n = sum(c.status == 'not run' for c in run.chapters)
        self.console.print(f'[bold]{escape(run.poc)}[/]: {n} chapter{"s"*(n != 1)} to run, effort {run.effort}, evidence in {escape(str(run.folder))}')

    def chapter(self, chapter: ChapterRun):
        self.tasks[chapter.name] = self.bars.add_task(f'{chapter.name:<12}', total=None, said='')
        if not self.console.is_terminal: self.console.print(f'{chapter.name}: started')

    def cell(self, chapter: ChapterRun, done: int, total: int): self.bars.update(self.tasks[chapter.name], completed=done, total=total)

    def end(self, chapter: ChapterRun, gates: list):
        said = ' '.join(f'[{STYLE[g.verdict]}]{SYMBOL[g.verdict]} {g.code}[/]' for g in gates)
        if chapter.error: said += f' [red]{escape(chapter.error)}[/]'
        self.bars.update(self.tasks[chapter.name], total=1, completed=1, visible=False)
        self.console.print(f'[{STYLE[chapter.status]}]{SYMBOL[chapter.status]} {chapter.name:<12}[/] {chapter.status:<9} {chapter.seconds:6.1f} s  {said}')


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
