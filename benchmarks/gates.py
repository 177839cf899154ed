"""How often does each gate decide wrongly? Simulates every kind of gate with the truth at its threshold: false GO, false NO-GO, and how often a two-sided 95 % interval holds the truth.

    python benchmarks/gates.py                              # about twenty minutes of one core
    python benchmarks/gates.py --quick                      # about a minute
    python benchmarks/gates.py --json genai_playbook/data/gates.json   # keeps the rates: chapter 01 shows them

Each cell of a table reads `false GO / false NO-GO / coverage`, in percent: how often the lower bound lies above a truth that is on the threshold, how often the upper bound lies below it, and
how often the interval between the two bounds at level .975 holds it (of the evaluations that are enough; their share stands behind it when that is not all). For a gate that asks "at most",
false GO and false NO-GO change places, so both are held against the bar: at most 5 % and two Monte-Carlo standard errors. Coverage is held against 93 to 97 %, again with two standard errors: the
upper end, "careful", only where a method is not exact, and all of it only where at least half of the evaluations are enough. Where fewer are, those are the ones that happened to
look harmless, and their coverage is low; the two error rates count all evaluations and need no such exception. A row that breaks a bar is simulated again with four times the runs, which replace it;
what is marked `!` broke it twice. Methods named in brackets are shown for comparison and gate nothing. An estimate that says `enough=False` passes nothing and fails nothing.
"""
import argparse
import json
import math
import time
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri, stdtrit
from scipy.stats import binom

import genai_playbook
from genai_playbook import cells, estimating, sequential, stats

ALPHA, THRESHOLDS, AGAIN, CLAIMED = .05, (.90, .95, .99), 4, .5
NEAR = (-.03, -.01, 0., .01, .03)  # truth less threshold
GUESSING = 'labels with which the judge cannot be told from one that guesses'
SIZES = {'1 to 4': [1, 2, 3, 4], '10': [10], '1 or 30': [1]*7 + [30]}  # answers in a cluster, each entry equally likely


class Rates(NamedTuple):
    "What a method did in `runs` evaluations; `runs` is infinite when the rates are exact"
    enough: float
    false_go: float
    false_nogo: float
    coverage: float
    runs: float

    def broken(self, exact):
        "Which bars these rates break"
        bar = ALPHA + 2*se(ALPHA, self.runs) + 1e-9
        slack = 2*se(.95, self.runs*self.enough) + 1e-9 if self.enough >= CLAIMED else math.inf
        over = [k for k, r in (('false GO', self.false_go), ('false NO-GO', self.false_nogo)) if r > bar]
        return over + ['coverage']*bool(self.coverage < .93 - slack) + ['careful']*bool(self.coverage > .97 + slack and not exact)


def se(rate, runs): return math.sqrt(rate*(1 - rate)/runs) if runs else math.inf


def from_bounds(one, two, truth, enough=True):
    "Rates from arrays of (low, high), at level .95 of each side and at .975"
    (low, high), (low2, high2), runs = one, two, len(one[0])
    enough = np.broadcast_to(enough, runs)
    held = (low2 <= truth) & (truth <= high2) & enough
    return Rates(enough.mean(), (enough & (low > truth)).mean(), (enough & (high < truth)).mean(), held.sum()/enough.sum() if enough.any() else math.nan, runs)


def from_estimates(make, samples, truth):
    "Rates of `make(sample, level)`, an Estimate"
    one, two = ([make(s, level) for s in samples] for level in (.95, .975))
    pairs = lambda es: (np.array([e.low for e in es]), np.array([e.high for e in es]))
    return from_bounds(pairs(one), pairs(two), truth, np.array([e.enough for e in one]))


@dataclass
class Method:
    name: str
    gates: bool = True    # a gate stands on it; others are shown for comparison
    exact: bool = False   # may cover more than 97 %
    smallest: str = ''    # below what size it says INSUFFICIENT, in words

    @property
    def shown(self): return self.name if self.gates else f'({self.name})'


@dataclass
class Section:
    "A kind of gate: prints its rows as they come, and keeps them"
    title: str
    columns: list
    methods: list
    rows: list = field(default_factory=list)

    def __post_init__(self):
        print(f'\n## {self.title}\n\n| ' + ' | '.join([*self.columns, *(m.shown for m in self.methods)]) + ' |\n|' + '---|'*(len(self.columns) + len(self.methods)))

    def row(self, labels, runs, simulate, *args):
        "`simulate(*args, runs)` gives the rates of each method; None where one does not apply"
        rates = simulate(*args, runs)
        if any(self.marks(rates)): rates = simulate(*args, AGAIN*runs)
        self.rows.append([list(labels), *(r and list(r) for r in rates)])
        print('| ' + ' | '.join([*map(str, labels), *(shown(r, m) for r, m in zip(rates, self.marks(rates)))]) + ' |', flush=True)

    def marks(self, rates): return [r.broken(m.exact) if m.gates and r is not None else [] for m, r in zip(self.methods, rates)]

    def close(self):
        res = [summary(self, i) for i in range(len(self.methods))]
        for m in res: print(f"\n{m['method']}: at worst {m['false_go']:.1%} false GO, {m['false_nogo']:.1%} false NO-GO; coverage {m['coverage'][0]:.1%} to {m['coverage'][1]:.1%}; {len(m['broken'])} of {m['rows']} rows break a bar" if m['gates'] else f"\n({m['method']}: at worst {m['false_go']:.1%} false GO, {m['false_nogo']:.1%} false NO-GO)")
        return dict(title=self.title, columns=self.columns, methods=res, rows=self.rows)


def summary(section, i):
    "The worst that a method did"
    m = section.methods[i]
    seen = [(labels, Rates(*rates[i])) for labels, *rates in section.rows if rates[i] is not None]
    told = [(r.coverage, labels) for labels, r in seen if r.enough >= CLAIMED]
    seldom = [r.coverage for _, r in seen if r.enough < CLAIMED and r.runs*r.enough >= 100]  # of a handful of evaluations no coverage can be told
    at = {k: max(seen, key=lambda s: getattr(s[1], k)) for k in ('false_go', 'false_nogo')}
    return dict(method=m.name, gates=m.gates, exact=m.exact, smallest=m.smallest, runs=max(r.runs for _, r in seen), rows=len(seen), broken=[[labels, what] for labels, r in seen if m.gates and (what := r.broken(m.exact))],
                **{k: getattr(r, k) for k, (_, r) in at.items()}, **{f'{k}_se': se(ALPHA, r.runs) if math.isfinite(r.runs) else 0. for k, (_, r) in at.items()},
                **{f'{k}_at': labels for k, (labels, _) in at.items()}, 
                coverage=[r[0] for r in (min(told), max(told))], coverage_at=[r[1] for r in (min(told), max(told))], coverage_seldom_enough=min(seldom, default=math.nan))


def shown(r, broken):
    if r is None: return '–'
    if not r.enough: return 'never enough'
    text = ' / '.join(f'{100*v:.1f}' for v in (r.false_go, r.false_nogo, r.coverage)) + (f' ({r.enough:.0%})' if r.enough < .995 else '')
    return text + (' ! ' + ', '.join(broken) if broken else '')


def counted(p, n, runs):
    "Exact, not simulated: the chance of each count is known"
    k = np.arange(n + 1)
    pmf = binom.pmf(k, n, p)
    def rates(bounds):
        (low, high), (low2, high2) = bounds(.9), bounds(.95)
        return Rates(1., pmf[low >= p].sum(), pmf[high < p].sum(), pmf[(low2 <= p) & (p <= high2)].sum(), runs)
    return [rates(b) for b in (lambda level: (k/n, k/n), lambda level: stats.wilson(k, n, level), lambda level: stats.clopper_pearson(k, n, level))]


def independent(ns):
    fewest = f'{stats.n_zero_failures(.95)} answers (at .95)'
    t = Section('A share of independent answers (exact)', ['threshold', 'n'], [Method('point', False), Method('Wilson', False), Method('Clopper-Pearson', exact=True, smallest=fewest)])
    for p in THRESHOLDS:
        for n in ns: t.row((p, n), math.inf, counted, p, n)
    return t.close()


def wrong_answers(world, size, p, rho, rng):
    "Wrong answers in clusters of these sizes: each cluster with its own difficulty, or some clusters right or wrong as a whole"
    if world == 'graded': return rng.binomial(size, rng.beta((1 - p)*(1/rho - 1), p*(1/rho - 1), size.shape))
    return np.where(rng.random(size.shape) < rho, size*(rng.random(size.shape) < 1 - p), rng.binomial(size, 1 - p))


def gaffke_tail(right, size, p):
    "z-value of Gaffke's lower bound at `p`, for many evaluations at once: the bound at some level lies above p when it is below that level's"
    code = (right*100 + size).astype(int)
    kinds = np.unique(code)
    count = np.stack([(code == c).sum(-1) for c in kinds], -1).astype(float)
    z, some = np.full(len(right), math.inf), right.sum(-1) > 0  # nothing right: the bound is 0
    z[some] = stats._signed_root(p, (kinds//100).astype(float), (kinds % 100).astype(float), count[some])
    return z


def clusters_of(sizes, world, rho, p, n, rng, runs):
    "Rates of a share of about `n` answers in clusters, whose truth is `p`"
    size = rng.choice(sizes, (runs, round(n/np.mean(sizes)))).astype(float)
    right = size - wrong_answers(world, size.astype(int), p, rho, rng)
    share, N = right.sum(1)/size.sum(1), size.sum(1)
    cp = lambda n, level: stats.clopper_pearson(share*n, n, 2*level - 1)
    eff = {level: stats._effective_n(right, size, level) for level in (.95, .975)}
    up, down = gaffke_tail(right, size, p), gaffke_tail(size - right, size, 1 - p)
    z = {level: ndtri(1 - level) for level in (.95, .975)}
    gaffke = Rates(1., (up <= z[.95]).mean(), (down <= z[.95]).mean(), 1 - ((up <= z[.975]) | (down <= z[.975])).mean(), runs)
    return [from_bounds(cp(N, .95), cp(N, .975), p), from_bounds(cp(eff[.95], .95), cp(eff[.975], .975), p), gaffke]


def clustered(ns, runs, rng):
    t = Section('A share of clustered answers', ['clusters of', 'world', 'rho', 'threshold', 'n'],
                [Method('rows as if independent', False), Method('Korn-Graubard', False), Method('Gaffke', exact=True, smallest=f'{stats.n_zero_failures(.95)} clusters (at .95)')])
    for name, sizes in SIZES.items():
        for world in ('graded', 'whole'):
            for rho in (.05, .3):
                for p in THRESHOLDS:
                    for n in ns:
                        if round(n/np.mean(sizes)) >= 2: t.row((name, world, rho, p, n), runs, clusters_of, sizes, world, rho, p, n, rng)
    return t.close()


def skewed(rng):
    "Name, draw, true mean, ends of the scale, skewness"
    return [('normal', lambda s: rng.normal(size=s), 0., None), ('uniform', lambda s: rng.random(s), .5, (0, 1)),
            ('F1, nine in ten perfect', lambda s: np.where(rng.random(s) < .9, 1, rng.beta(2, 3, s)), .94, (0, 1)),
            ('rating 1 to 5', lambda s: rng.choice([1., 2, 3, 4, 5], s, p=[.02, .03, .1, .25, .6]), 4.38, (1, 5)),
            ('95 % ones', lambda s: (rng.random(s) < .95)*1., .95, (0, 1)),
            ('exponential', lambda s: rng.exponential(size=s), 1., None), ('lognormal, sigma 1', lambda s: rng.lognormal(0, 1, s), math.exp(.5), None),
            ('t, 3 dof', lambda s: rng.standard_t(3, s), 0., None)]


def plain_t(x, level):
    half = x.std(1, ddof=1)/math.sqrt(x.shape[1])*stdtrit(x.shape[1] - 1, level)
    return x.mean(1) - half, x.mean(1) + half


def mean_of(draw, mu, ends, n, runs):
    x = draw((runs, n))
    t = from_estimates(lambda r, level: stats.mean(r, level=level), x, mu)
    bounded = ends and from_estimates(lambda r, level: stats.mean(r, level=level, bounds=ends), x[:max(200, runs//4)], mu)
    return [from_bounds(plain_t(x, .95), plain_t(x, .975), mu, x.std(1) > 0), t, bounded]


def means(ns, runs, rng):
    t = Section('A mean', ['scores', 'n'], [Method('plain t', False), Method('t', smallest='30 scores, and 35 times the squared skewness'),
                Method('Gaffke, where the ends of the scale are known', exact=True, smallest=f'{stats.n_zero_failures(.95)} scores (at .95 of the scale)')])
    for name, draw, mu, ends in skewed(rng):
        for n in ns: t.row((name, n), runs, mean_of, draw, mu, ends, n)
    return t.close()


def paired_answers(C, m, rate, truth, rng, runs):
    "Answers of two systems, right (1) or wrong (0): they disagree at `rate`, each cluster favours one of the two, and A is ahead by `truth`"
    lead = .5 + truth/rate/2
    tilt = rng.beta(lead/2, (1 - lead)/2, (runs, C, 1))
    d = np.where(rng.random((runs, C, m)) < rate, np.where(rng.random((runs, C, m)) < tilt, 1., -1.), 0.).reshape(runs, -1)
    return (d > 0)*1., (d < 0)*1.


def pair_rates(C, m, rate, truth, rng, runs):
    label, (a, b) = np.repeat(np.arange(C), m) if m > 1 else None, paired_answers(C, m, rate, truth, rng, runs)
    pairs, some = list(zip(a, b)), max(200, runs//4)
    ignoring = from_bounds(*(plain_t(a - b, level) for level in (.95, .975)), truth, (a - b).std(1) > 0)
    return [ignoring, from_estimates(lambda p, level: stats.paired_difference(*p, label, level), pairs, truth), from_estimates(lambda p, level: stats.paired_difference(*p, label, level, bounds=(0, 1)), pairs[:some], truth)]


def pairs(ns, runs, rng):
    t = Section('A against B on the same prompts: better (truth 0), not worse or equivalent by a margin of 5 points (truth -.05)', ['prompts in a cluster', 'disagree', 'truth', 'n'],
                [Method('t, rows as if independent', False), Method('t, on clusters where there are any', smallest='30 prompts or clusters, and 35 times the squared skewness'), Method('Gaffke', exact=True, smallest=f'{stats.n_zero_failures(.95)} prompts or clusters (margin .05)')])
    for m in (1, 5):
        for rate, truth in ((.05, 0.), (.2, 0.), (.2, -.05)):
            for n in ns: t.row((m, rate, truth, n), runs, pair_rates, n//m, m, rate, truth, rng)
    return t.close()


def booted(draw, n, stat, truth, runs):
    x = draw((runs, n))
    each = lambda method: from_estimates(lambda s, level: stats.bootstrap(s[1], stat, method=method, replicates=1000, seed=s[0], level=level), list(enumerate(x)), truth)
    return [each('percentile'), each('BCa')]


def boots(ns, runs, rng):
    t = Section('A bootstrap of any statistic (1,000 replicates)', ['scores', 'statistic', 'n'], [Method('percentile', False), Method('BCa', smallest='100 rows or clusters, and 35 times the squared skewness (of the influence)')])
    kinds = [(name, 'mean', draw, np.mean, mu) for name, draw, mu, _ in skewed(rng)[1:7]] + [('exponential', 'median', lambda s: rng.exponential(size=s), np.median, math.log(2))]
    for name, what, draw, stat, truth in kinds:
        for n in ns: t.row((name, what, n), runs if n < 1000 else runs//4, booted, draw, n, stat, truth)
    return t.close()


def share(k, n, level): return stats.Estimate(k/n, *map(float, stats.clopper_pearson(k, n, 2*level - 1)), n, 'Clopper-Pearson', level)


def judged(p, sens, spec, m, n, rng, runs):
    "`n` answers, scored by a judge that was calibrated on `m` right and `m` wrong ones"
    k = rng.binomial(n, p*sens + (1 - p)*(1 - spec), runs)
    counts = list(zip(k, rng.binomial(m, sens, runs), rng.binomial(m, spec, runs)))
    fix = lambda c, level: estimating.judge_corrected(share(c[0], n, level), estimating.Judge(share(c[1], m, level), share(c[2], m, level)))
    return [from_bounds(stats.clopper_pearson(k, n, .9), stats.clopper_pearson(k, n, .95), p), from_estimates(fix, counts, p)]


def judges(ns, runs, rng):
    t = Section('A judged share', ['threshold', 'sensitivity', 'specificity', 'labels of each kind', 'n'],
                [Method('judge taken at its word', False), Method('corrected', exact=True, smallest=GUESSING)])
    for p in (.7, .9, .95):
        for sens, spec in ((.9, .7), (.95, .95), (.8, .8)):
            for m in (30, 100, 400):
                for n in ns: t.row((p, sens, spec, m, n), runs, judged, p, sens, spec, m, n, rng)
    return t.close()


def world(rng, clusters, repeats, pair, weights, graded, n=240):
    "An evaluation of `n` prompts, or of n/2 conversations of one to three, with any of the complications"
    size = rng.integers(1, 4, n//2) if clusters else np.ones(n, int)
    conv = np.repeat(np.arange(len(size)), size)
    ease = rng.normal(0, 1, len(size))[conv] if clusters else np.zeros(len(conv))
    rare = rng.random(len(conv)) < .4
    ease, weight = ease + 1.6 - .8*rare + rng.normal(0, .7, len(conv)), np.where(rare, .25, 1.)
    k = 3 if repeats else 1
    rows = {'prompt': np.repeat(np.arange(len(conv)), k), 'clusters': np.repeat(conv, k), 'weights': np.repeat(weight, k)}
    noise = lambda: (rng.logistic(size=len(conv)*k) if not graded else rng.normal(0, 1.5, len(conv)*k))
    score = lambda shift: np.repeat(ease, k) + shift - noise() if graded else (noise() < np.repeat(ease, k) + shift)*1.
    return rows, score(0.), score(-.4) if pair else None


def truths(rng, kind, graded, n=4_000_000):
    "True mean (or difference) of `world`, by drawing so many prompts"
    clusters, repeats, pair, weights = kind
    ease = rng.normal(0, 1 if clusters else 0, n) + rng.normal(0, .7, n)
    rare = rng.random(n) < .4
    w = np.where(rare, .25, 1.) if weights else np.ones(n)
    level = ease + 1.6 - .8*rare
    right = (lambda s: level + s) if graded else (lambda s: 1/(1 + np.exp(-level - s)))
    return float(np.average(right(0.) - (right(-.4) if pair else 0.), weights=w))


def judged_as(right, sens, spec, rng):
    return right if right is None else np.where(right > 0, rng.random(len(right)) < sens, rng.random(len(right)) > spec)*1.


def everything(kind, score, n, truth, rng, runs, sens=.92, spec=.88, m=150):
    "`estimate` on worlds of this kind, with a judge calibrated on `m` right and `m` wrong answers"
    def sample():
        rows, x, y = world(rng, *kind, score[0] == 'g', n)
        if score == 'judged': x, y = (judged_as(v, sens, spec, rng) for v in (x, y))
        return x, y, {k: rows[k] for k, on in zip(('clusters', 'prompt', '', 'weights'), kind) if on and k}, rng.binomial(m, sens), rng.binomial(m, spec)
    def make(s, level):
        x, y, kw, a, b = s
        judge = estimating.Judge(share(a, m, level), share(b, m, level)) if score == 'judged' else None
        return estimating.estimate(x, y, judge=judge, level=level, bounds=None if score[0] == 'g' else (0, 1), **kw)
    return from_estimates(make, [sample() for _ in range(runs)], truth)


def in_column(i, *args): return [everything(*args) if j == i else None for j in range(3)]


def combined(runs, rng):
    from itertools import product
    t = Section('Everything at once: 120 conversations or 240 prompts, the last of each kind also other sizes', ['scores', 'complications', 'prompts'],
                [Method('t on clusters (graded, no ends)', smallest='30 prompts or clusters, and 35 times the squared skewness'), Method('Gaffke (right or wrong)', exact=True, smallest=f'{stats.n_zero_failures(.95)} prompts or clusters (at .95)'), Method('Gaffke, judge-corrected', exact=True, smallest=GUESSING)])
    names, place = ('clusters', 'repeats', 'pairing', 'weights'), {'graded': 0, 'right or wrong': 1, 'judged': 2}
    for score, i in place.items():
        for kind in product((False, True), repeat=4):
            truth = truths(rng, kind, score == 'graded')
            label = ' + '.join(n for n, on in zip(names, kind) if on) or 'none'
            for n in (240,) if not all(kind) else (60, 240, 2000):
                t.row((score, label, n), runs if n < 2000 else runs//4, in_column, i, kind, score, n, truth, rng)
    return t.close()


def watched(p, n, rng, runs):
    "Rates of each way of looking after every answer: did a bound ever lie on the wrong side?"
    x = (rng.random((runs, n)) < p)*1.
    def exact(level):
        low, high = stats.clopper_pearson(x.cumsum(1), np.arange(1, n + 1), 2*level - 1)
        return low.max(1), high.min(1)
    def always(method):
        def bounds(level): return np.array([[b[-1] for b in sequential.confidence_sequence(r, method=method, level=level)] for r in x]).T
        return bounds
    return [from_bounds(way(.95), way(.975), p) for way in (exact, always('normal mixture'), always('empirical Bernstein'))]


def first_pass(method, threshold=.95):
    "Right answers in a row after which a sequence clears the threshold"
    return 1 + int(np.argmax(sequential.confidence_sequence(np.ones(5000), method=method)[0] >= threshold))


def peeking(ns, runs, rng):
    t = Section('Looked at after every answer', ['threshold', 'up to n'], [Method('exact bound', False), *(Method(m, exact=True, smallest=f'{first_pass(m)} answers (at .95)') for m in ('normal mixture', 'empirical Bernstein'))])
    for p in THRESHOLDS:
        for n in ns: t.row((p, n), runs, watched, p, n, rng)
    return t.close()


def gap_rates(sizes, p, cluster, rng, runs):
    "Gap and ratio between groups of these sizes; clusters of `cluster` rows, half of them right or wrong as a whole"
    g, truth, samples = np.repeat(np.arange(len(sizes)), sizes), (max(p) - min(p), min(p)/max(p)), []
    c = np.arange(len(g))//cluster
    for i in range(runs):
        right = np.repeat(p, sizes)
        d = (rng.random(len(g)) < right)*1
        if cluster > 1: d = np.where((rng.random(len(g)) < .5)[c], (rng.random(len(g))[c] < right), d)*1
        samples.append(cells.group_metrics(d, d, g, ['selection_rate'], replicates=1000, seed=i, clusters=c if cluster > 1 else None))
    def rates(ratio, true): return from_estimates(lambda gm, level: cells.gap(gm, 'selection_rate', ratio, level), samples, true)
    found = [rates(ratio, true) for ratio, true in zip((False, True), truth)]
    return [*found, None, None] if cluster == 1 else [None, None, *found]


def gaps(runs, rng):
    many = f'{cells.MIN_GROUP} rows in each group'
    t = Section('The largest gap between groups, and the smallest ratio', ['rows of each group', 'rates', 'clusters of'], [Method('difference', exact=True, smallest=many), Method('ratio', exact=True, smallest=many),
                *(Method(f'{k}, clusters', False, True, smallest=f'{cells.MIN_GROUP} clusters in each group') for k in ('difference', 'ratio'))])
    for sizes, p in (([40, 40], [.9, .9]), ([200]*4, [.9]*4), ([200]*4, [.95]*3 + [.85]), ([40, 400, 400], [.97, .95, .95]), ([100, 1000], [.1, .1]), ([500, 500], [.99, .99]), ([2000, 2000], [.95, .9]), ([1500]*8, [.4]*8), ([1500]*8, [.4]*7 + [.35])):
        for cluster in (1, 4): t.row(('/'.join(map(str, sizes)), '/'.join(map(str, p)), cluster), runs, gap_rates, sizes, p, cluster, rng)
    return t.close()


def verdicts(low, high, truth, enough=True):
    "GO and NO-GO rates of gates whose thresholds lie below and above the truth by `NEAR`"
    return [((enough & (low >= truth - d)).mean(), (enough & (high < truth - d)).mean()) for d in NEAR]


def estimated(make, samples, truth):
    es = [make(s, .95) for s in samples]
    return verdicts(np.array([e.low for e in es]), np.array([e.high for e in es]), truth, np.array([e.enough for e in es]))


def share_near(n):
    "Exact: independent answers, thresholds around .95"
    k = np.arange(n + 1)
    low, high = stats.clopper_pearson(k, n, .9)
    return [(pmf[low >= .95].sum(), pmf[high < .95].sum()) for pmf in (binom.pmf(k, n, .95 + d) for d in NEAR)]


def clusters_near(n, p, rng, runs, rho=.3):
    size = rng.choice(SIZES['1 to 4'], (runs, round(n/2.5))).astype(float)
    right = size - wrong_answers('graded', size.astype(int), p, rho, rng)
    z = ndtri(.05)
    return [((gaffke_tail(right, size, p - d) <= z).mean(), (gaffke_tail(size - right, size, 1 - p + d) <= z).mean()) for d in NEAR]


def near(runs, rng):
    "Every kind of gate with the truth a little below its threshold, on it, and a little above"
    print('\n## Near the threshold: GO / NO-GO, in percent, by how many points the truth lies above it\n\n| gate | n | ' + ' | '.join(f'{100*d:+.0f}' for d in NEAR) + ' |\n|---|---|' + '---|'*len(NEAR))
    rows = []
    def row(name, n, found, runs):
        bad = max(go if d < 0 else nogo for d, (go, nogo) in zip(NEAR, found) if d) > ALPHA + 2*se(ALPHA, runs) + 1e-9
        rows.append(dict(gate=name, n=n, runs=runs, verdicts=found))
        print(f'| {name} | {n} | ' + ' | '.join(f'{100*go:.1f} / {100*nogo:.1f}' for go, nogo in found) + f' |{" !" if bad else ""}', flush=True)
    for n in (20, 50, 100, 200, 500, 1000, 2000): row('share of independent answers', n, share_near(n), math.inf)
    for n in (50, 200, 500, 2000): row('share of answers in clusters of 1 to 4', n, clusters_near(n, .95, rng, runs), runs)
    for n in (50, 200, 500, 2000):
        x = np.where(rng.random((runs//2, n)) < .9, 1, rng.beta(2, 3, (runs//2, n)))
        row('mean, F1', n, estimated(lambda x, level: stats.mean(x, level=level, bounds=(0, 1)), x, .94), runs//2)
    for n in (50, 200, 500, 2000):
        both = list(zip(*paired_answers(n, 1, .2, 0., rng, runs//2)))
        row('A less B on the same prompts', n, estimated(lambda p, level: stats.paired_difference(*p, None, level), both, 0.), runs//2)
    for n in (200, 500, 2000):
        x = list(enumerate(rng.exponential(size=(runs//4, n))))
        row('bootstrap of a median', n, estimated(lambda x, level: stats.bootstrap(x[1], np.median, replicates=1000, seed=x[0], level=level), x, math.log(2)), runs//4)
    for n in (300, 2000): row('judged share, 400 labels of each kind', n, judged_near(n, .9, .95, 400, rng, runs//2), runs//2)
    for n in (400, 2000): row('gap of 6 points between two groups', n, gap_near(n//2, (.92, .86), rng, runs//4), runs//4)
    return rows


def judged_near(n, p, quality, m, rng, runs):
    counts = zip(rng.binomial(n, p*quality + (1 - p)*(1 - quality), runs), rng.binomial(m, quality, runs), rng.binomial(m, quality, runs))
    fix = lambda c, level: estimating.judge_corrected(share(c[0], n, level), estimating.Judge(share(c[1], m, level), share(c[2], m, level)))
    return estimated(fix, list(counts), p)


def gap_near(n, rates, rng, runs):
    "A gap has an upper threshold, so GO and NO-GO, and above and below, change places"
    g, right = np.repeat([0, 1], n), np.repeat(rates, n)
    def gap(seed, level):
        d = (np.random.default_rng(seed).random(2*n) < right)*1
        return cells.gap(cells.group_metrics(d, d, g, ['selection_rate'], replicates=1000, seed=0), 'selection_rate', False, level)
    found = estimated(gap, rng.integers(0, 2**32, runs), rates[0] - rates[1])
    return [(nogo, go) for go, nogo in reversed(found)]


def many_gates(n, truth, shared, rng, runs, gates=10):
    "Right answers of `n` rows by each of ten gates; gates that share rows find the same rows hard (correlation of what decides: `shared`)"
    z, out = ndtri(truth), []
    for k in (500,)*(runs//500):
        if not shared: out.append(rng.binomial(n, truth, (k, gates))); continue
        hard = rng.standard_normal((k, n, 1), dtype=np.float32)*np.float32(math.sqrt(shared))
        out.append((hard + rng.standard_normal((k, n, gates), dtype=np.float32)*np.float32(math.sqrt(1 - shared)) < z).sum(1))
    return np.concatenate(out)


def all_gates(runs, rng):
    "A good POC (98 %) against ten hard gates at 95 %, each on n rows: its own rows, or the same rows for all"
    print('\n## A good POC that must pass ten hard gates at once (truth 98 %, thresholds 95 %)\n\n| n | planned power of each | passes all ten, own rows | passes all ten, shared rows | GO although one of the ten is at its threshold |\n|---|---|---|---|---|')
    rows, passes = [], lambda k, n: stats.clopper_pearson(k, n, .9)[0] >= .95
    for n in sorted({100, 200, 400, 700, 1000, 1400, 2000, *(stats.n_proportion(.98, .95, power=w) for w in (.8, .9, .98, .995))}):
        k = np.arange(n + 1)
        power = float(binom.pmf(k, n, .98)[passes(k, n)].sum())
        own, same = (passes(many_gates(n, .98, shared, rng, runs), n) for shared in (0., .5))
        wrong = own[:, 1:].all(1) & passes(rng.binomial(n, .95, len(own)), n)
        rows.append(dict(n=n, power=power, own=own.all(1).mean(), shared=same.all(1).mean(), false_go=wrong.mean(), runs=len(own)))
        print(f'| {n} | {power:.1%} | {own.all(1).mean():.0%} | {same.all(1).mean():.0%} | {wrong.mean():.1%} |', flush=True)
    return rows


def tidy(x):
    "JSON data with rates to a hundredth of a percent, exact ones to twelve digits; NaN and infinity are null"
    if isinstance(x, dict): return {k: tidy(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)): return [tidy(v) for v in x]
    if isinstance(x, (np.floating, float)): return float(f'{x:.6g}') if math.isfinite(x) else None
    return int(x) if isinstance(x, np.integer) else x


def write(path, data):
    "One row of a table to a line"
    text = json.dumps(tidy(data), ensure_ascii=False)
    with open(path, 'w', encoding='utf-8') as f: f.write(text.replace('], [[', '],\n[[').replace('}, {"', '},\n{"') + '\n')


if __name__ == '__main__':
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument('--quick', action='store_true', help='fewer runs and sizes')
    args.add_argument('--seed', type=int, default=0, help='of all draws')
    args.add_argument('--only', nargs='*', help='some sections, such as: independent clustered means')
    args.add_argument('--json', help='file to keep the rates in')
    args = args.parse_args()
    quick, began = args.quick, time.perf_counter()
    few = lambda runs: runs if not quick else max(20, runs//50)
    ns = (20, 50, 100, 200, 500, 1000, 2000)
    some, fewer = ((20, 100, 500), (20, 200)) if quick else ((20, 100, 200, 500, 2000), (20, 100, 300, 2000))
    kinds = dict(independent=lambda rng: independent(ns), clustered=lambda rng: clustered(some if quick else ns, few(2000), rng), means=lambda rng: means(some if quick else ns, few(2000), rng),
                 pairs=lambda rng: pairs(some, few(1000), rng), boots=lambda rng: boots(fewer, few(600), rng), judges=lambda rng: judges((300,) if quick else (50, 300, 2000), few(1000), rng),
                 combined=lambda rng: combined(few(1000), rng), peeking=lambda rng: peeking(fewer, few(1000), rng), gaps=lambda rng: gaps(few(500), rng))
    sections = [run(np.random.default_rng([args.seed, i])) for i, (name, run) in enumerate(kinds.items()) if not args.only or name in args.only]
    close = [] if args.only and 'near' not in args.only else near(400 if quick else 4000, np.random.default_rng([args.seed, len(kinds) + 1]))
    gates = [] if args.only and 'all_gates' not in args.only else all_gates(500 if quick else 4000, np.random.default_rng([args.seed, len(kinds)]))
    if args.json: write(args.json, dict(version=genai_playbook.__version__, seed=args.seed, quick=quick, alpha=ALPHA, claimed=CLAIMED, sections=sections, near=close, all_gates=gates))
    print(f'\n{time.perf_counter() - began:.0f} s')
