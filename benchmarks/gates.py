"""How often does each gate decide wrongly? Simulates every kind of gate with the truth at the threshold, and prints the false-GO rates.

    python benchmarks/gates.py           # some minutes on one core
    python benchmarks/gates.py --quick   # about half a minute

A rate marked `!` is above 5 % by more than two Monte-Carlo standard errors; of rates that are exactly 5 %, one row in forty is marked by chance (in twenty, where the worse
of two sides is shown). Methods named in brackets are shown for comparison and gate nothing. An estimate that says `enough=False` passes nothing.
"""
import argparse
import math
import time

import numpy as np
from scipy.special import ndtri
from scipy.stats import binom

from genai_playbook import cells, estimating, sequential, stats

ALPHA, THRESHOLDS = .05, (.90, .95, .99)
SIZES = {'1 to 4': [1, 2, 3, 4], '10': [10], '1 or 30': [1]*7 + [30]}  # answers in a cluster, each entry equally likely


class Table:
    "Prints rows as they come; remembers the worst rate of each column"
    def __init__(self, title, columns, methods):
        self.methods, self.worst, self.bad = methods, dict.fromkeys(methods, (0., 'every row')), dict.fromkeys(methods, 0)
        print(f'\n## {title}\n\n| ' + ' | '.join([*columns, *methods]) + ' |\n|' + '---|'*(len(columns) + len(methods)))

    def row(self, labels, rates, *runs):
        "`runs`: simulated evaluations behind each rate, or behind all of them; none when exact"
        cells = []
        for m, r, k in zip(self.methods, rates, runs if len(runs) == len(rates) else (runs or (math.inf,))*len(rates)):
            limit = ALPHA + 2*math.sqrt(ALPHA*(1 - ALPHA)/k) + 1e-9
            self.bad[m] += r > limit
            if r > self.worst[m][0]: self.worst[m] = r, ', '.join(map(str, labels))
            cells.append('–' if math.isnan(r) else f'{100*r:.1f}' + (' !' if r > limit else ''))
        print('| ' + ' | '.join([*map(str, labels), *cells]) + ' |', flush=True)

    def close(self):
        print('\nworst: ' + '; '.join(f'{m} {100*r:.1f} % ({at}), too often in {self.bad[m]} rows' for m, (r, at) in self.worst.items()))


def independent(ns):
    "Exact, not simulated: the chance of each count is known"
    t = Table('A share of independent answers: passes wrongly, % (exact)', ['threshold', 'n'], ['(point)', '(Wilson)', 'Clopper-Pearson'])
    for p in THRESHOLDS:
        for n in ns:
            k = np.arange(n + 1)
            pmf = binom.pmf(k, n, p)
            t.row((p, n), [pmf[low >= p].sum() for low in (k/n, stats.wilson(k, n, .9)[0], stats.clopper_pearson(k, n, .9)[0])])
    t.close()


def wrong_answers(world, size, p, rho, rng):
    "Wrong answers in clusters of these sizes: each cluster with its own difficulty, or some clusters right or wrong as a whole"
    if world == 'graded': return rng.binomial(size, rng.beta((1 - p)*(1/rho - 1), p*(1/rho - 1), size.shape))
    return np.where(rng.random(size.shape) < rho, size*(rng.random(size.shape) < 1 - p), rng.binomial(size, 1 - p))


def gaffke_passes(right, size, p):
    "Gaffke's decision for many evaluations at once"
    code = (right*100 + size).astype(int)
    kinds = np.unique(code)
    count = np.stack([(code == c).sum(-1) for c in kinds], -1).astype(float)
    return (stats._signed_root(p, (kinds//100).astype(float), (kinds % 100).astype(float), count) <= ndtri(ALPHA)).mean()


def clustered(ns, runs, rng):
    t = Table('A share of clustered answers: passes wrongly, %', ['clusters of', 'world', 'rho', 'threshold', 'n'], ['(rows as if independent)', '(Korn-Graubard)', 'Gaffke'])
    for name, sizes in SIZES.items():
        for world in ('graded', 'whole'):
            for rho in (.05, .15, .3):
                for p in THRESHOLDS:
                    for n in ns:
                        C = round(n/np.mean(sizes))
                        if C < 2: continue
                        size = rng.choice(sizes, (runs, C)).astype(float)
                        right = size - wrong_answers(world, size.astype(int), p, rho, rng)
                        share, N = right.sum(1)/size.sum(1), size.sum(1)
                        eff = stats._effective_n(right, size, .95)
                        plain, design = stats.clopper_pearson(share*N, N, .9)[0], stats.clopper_pearson(share*eff, eff, .9)[0]
                        t.row((name, world, rho, p, n), [(plain >= p).mean(), (design >= p).mean(), gaffke_passes(right, size, p)], runs)
    t.close()


def skewed(rng):
    "Name, draw, true mean, ends of the scale"
    return [('normal', lambda s: rng.normal(size=s), 0., None), ('uniform', lambda s: rng.random(s), .5, (0, 1)),
            ('F1, nine in ten perfect', lambda s: np.where(rng.random(s) < .9, 1, rng.beta(2, 3, s)), .94, (0, 1)),
            ('rating 1 to 5', lambda s: rng.choice([1., 2, 3, 4, 5], s, p=[.02, .03, .1, .25, .6]), 4.38, (1, 5)),
            ('95 % ones', lambda s: (rng.random(s) < .95)*1., .95, (0, 1)),
            ('exponential', lambda s: rng.exponential(size=s), 1., None), ('lognormal, sigma 1', lambda s: rng.lognormal(0, 1, s), math.exp(.5), None),
            ('t, 3 dof', lambda s: rng.standard_t(3, s), 0., None)]


def gate_rates(estimates, truth):
    "Shares of estimates that wrongly say 'above the truth' and 'below it'"
    return np.mean([(e.enough and e.low > truth, e.enough and e.high < truth) for e in estimates], axis=0)


def means(ns, runs, rng):
    t = Table('A mean: passes wrongly, % (worse side)', ['scores', 'n'], ['(plain t)', 't, where enough', 'Gaffke, where the ends are known'])
    for name, draw, mu, ends in skewed(rng):
        for n in ns:
            x = draw((runs, n))
            m, half = x.mean(1), x.std(1, ddof=1)/math.sqrt(n)*stats_t(n - 1)
            ours = gate_rates([stats.mean(r) for r in x], mu).max()
            bounded = gate_rates([stats.mean(r, bounds=ends) for r in x[:runs//4]], mu).max() if ends else math.nan
            spread = half > 0
            t.row((name, n), [max((spread & (m - half > mu)).mean(), (spread & (m + half < mu)).mean()), ours, bounded], runs, runs, runs//4)
    t.close()


def stats_t(dof):
    from scipy.special import stdtrit
    return stdtrit(dof, 1 - ALPHA)


def pairs(runs, rng):
    t = Table('A against B, equally good, on the same clustered prompts: "better" wrongly, % (worse side)', ['clusters', 'prompts in each', 'discordant'],
              ['(McNemar, rows as if independent)', 'cluster-robust t', 'Gaffke'])
    for C, m in ((30, 10), (100, 5), (400, 3)):
        for rate in (.05, .2):
            tilt = np.clip(.5 + .45*rng.standard_normal((runs, C, 1)), 0, 1)  # each cluster favours one of the two
            d = np.where(rng.random((runs, C, m)) < rate, np.where(rng.random((runs, C, m)) < tilt, 1., -1.), 0.).reshape(runs, -1)
            label, zero = np.repeat(np.arange(C), m), np.zeros(C*m)
            up, down = (d > 0).sum(1), (d < 0).sum(1)
            mcnemar = max((binom.sf(x - 1, up + down, .5) <= ALPHA).mean() for x in (up, down))
            robust = gate_rates([stats.paired_difference(r, zero, label) for r in d], 0).max()
            a, b = (d > 0)*1., (d < 0)*1.
            gaffke = gate_rates([stats.paired_difference(x, y, label, bounds=(0, 1)) for x, y in zip(a[:runs//4], b[:runs//4])], 0).max()
            t.row((C, m, rate), [mcnemar, robust, gaffke], runs, runs, runs//4)
    t.close()


def boots(runs, rng):
    t = Table('A bootstrap: passes wrongly, % (worse side)', ['scores', 'statistic', 'n'], ['(percentile)', 'BCa'])
    for name, draw, mu, _ in skewed(rng)[1:7]:
        for n in (100, 300):
            x = draw((runs, n))
            t.row((name, 'mean', n), [gate_rates([stats.bootstrap(r, method=m, replicates=1000, seed=i) for i, r in enumerate(x)], mu).max() for m in ('percentile', 'BCa')], runs)
    for n in (100, 300):
        x = rng.exponential(size=(runs, n))
        t.row(('exponential', 'median', n), [gate_rates([stats.bootstrap(r, np.median, method=m, replicates=1000, seed=i) for i, r in enumerate(x)], math.log(2)).max() for m in ('percentile', 'BCa')], runs)
    t.close()


def judges(runs, rng):
    "Three hundred answers, scored by a judge that was calibrated on `m` right and `m` wrong ones"
    t = Table('A judged share, truth at the threshold: decides wrongly, %', ['threshold', 'sensitivity', 'specificity', 'm'], ['(judge taken at its word)', 'corrected: passes', 'corrected: fails'])
    share = lambda k, n: stats.Estimate(k/n, *map(float, stats.clopper_pearson(k, n, .9)), n, 'Clopper-Pearson')
    for p in (.7, .9, .95):
        for sens, spec in ((.9, .7), (.95, .95), (.8, .8)):
            for m in (30, 100, 400):
                k = rng.binomial(300, p*sens + (1 - p)*(1 - spec), runs)
                es = [estimating.judge_corrected(share(a, 300), estimating.Judge(share(b, m), share(c, m))) for a, b, c in zip(k, rng.binomial(m, sens, runs), rng.binomial(m, spec, runs))]
                raw = stats.clopper_pearson(k, 300, .9)
                t.row((p, sens, spec, m), [max((raw[0] > p).mean(), (raw[1] < p).mean()), *gate_rates(es, p)], runs)
    t.close()


def world(rng, clusters, repeats, pair, weights, graded):
    "An evaluation: 120 conversations of one to three prompts, or 240 prompts, with any of the complications"
    size = rng.integers(1, 4, 120) if clusters else np.ones(240, int)
    conv = np.repeat(np.arange(len(size)), size)
    ease = rng.normal(0, 1, len(size))[conv] if clusters else np.zeros(len(conv))
    rare = rng.random(len(conv)) < .4
    ease, weight = ease + 1.6 - .8*rare + rng.normal(0, .7, len(conv)), np.where(rare, .25, 1.)
    k = 3 if repeats else 1
    rows = {'prompt': np.repeat(np.arange(len(conv)), k), 'clusters': np.repeat(conv, k), 'weights': np.repeat(weight, k)}
    noise = lambda: (rng.logistic(size=len(conv)*k) if not graded else rng.normal(0, 1.5, len(conv)*k))
    score = lambda shift: np.repeat(ease, k) + shift - noise() if graded else (noise() < np.repeat(ease, k) + shift)*1.
    return rows, score(0.), score(-.4) if pair else None


def truths(rng, kind, n=400_000):
    "True mean (or difference) of `world`, by drawing so many prompts"
    clusters, repeats, pair, weights, graded = kind
    ease = rng.normal(0, 1 if clusters else 0, n) + rng.normal(0, .7, n)
    rare = rng.random(n) < .4
    w = np.where(rare, .25, 1.) if weights else np.ones(n)
    level = ease + 1.6 - .8*rare
    right = (lambda s: level + s) if graded else (lambda s: 1/(1 + np.exp(-level - s)))
    return float(np.average(right(0.) - (right(-.4) if pair else 0.), weights=w))


def judged_as(right, sens, spec, rng):
    return right if right is None else np.where(right > 0, rng.random(len(right)) < sens, rng.random(len(right)) > spec)*1.


def combined(runs, rng):
    "`estimate`, with its complications together: 120 conversations (or 240 prompts), a judge calibrated on 150 right and 150 wrong answers"
    from itertools import product
    t = Table('Everything at once: bound on the wrong side of the truth, % (each side), and coverage of the two-sided 95 % interval', ['complications', 'enough', 'coverage'], ['above', 'below'])
    names, sens, spec, m = ('clusters', 'repeats', 'pairing', 'weights'), .92, .88, 150
    for score in ('right or wrong', 'judged', 'graded, no ends'):
        for kind in product((False, True), repeat=4):
            graded, truth, found = score[0] == 'g', truths(rng, (*kind, score[0] == 'g')), []
            for _ in range(runs):
                rows, x, y = world(rng, *kind, graded)
                if score == 'judged': x, y = (judged_as(v, sens, spec, rng) for v in (x, y))
                kw = {k: rows[k] for k, on in zip(('clusters', 'prompt', '', 'weights'), kind) if on and k} | ({} if graded else dict(bounds=(0, 1)))
                a, b = rng.binomial(m, sens), rng.binomial(m, spec)
                for level in (.95, .975):
                    errors = [stats.proportion([1]*k + [0]*(m - k), level=level) for k in (a, b)] if score == 'judged' else None
                    found.append(estimating.estimate(x, y, judge=errors and estimating.Judge(*errors), level=level, **kw))
            one, two = found[::2], found[1::2]
            label = ' + '.join([score] + [n for n, on in zip(names, kind) if on])
            held = [e.low <= truth <= e.high for e in two if e.enough]
            t.row((label, f'{np.mean([e.enough for e in one]):.0%}', f'{np.mean(held):.1%}' if held else '–'), gate_rates(one, truth), runs)
    t.close()


def peeking(runs, rng):
    t = Table('Looked at after every one of 1,000 answers, truth at the threshold: passes at some time, %', ['threshold'], ['(exact bound)', 'normal mixture', 'empirical Bernstein'])
    for p in THRESHOLDS:
        x = (rng.random((runs, 1000)) < p)*1.
        exact = stats.clopper_pearson(x.cumsum(1), np.arange(1, 1001), .9)[0]
        t.row((p,), [(exact >= p).any(1).mean(), *(np.mean([sequential.confidence_sequence(r, method=m)[0][-1] >= p for r in x]) for m in ('normal mixture', 'empirical Bernstein'))], runs)
    t.close()


def gaps(runs, rng):
    t = Table('The largest gap between groups: bound on the wrong side of the truth, % (worse side)', ['sizes', 'rates'], ['difference', 'ratio'])
    for sizes, p in (([1500]*8, [.4]*8), ([1500]*8, [.4]*7 + [.35]), ([200]*4, [.9]*4), ([200]*4, [.95]*3 + [.85]), ([40, 400, 400], [.97, .95, .95]), ([100, 1000], [.1, .1]), ([100, 1000], [.05, .1]), ([500, 500], [.99, .99])):
        g, found = np.repeat(np.arange(len(sizes)), sizes), []
        for i in range(runs):
            d = (rng.random(len(g)) < np.repeat(p, sizes))*1
            gm = cells.group_metrics(d, d, g, ['selection_rate'], replicates=1000, seed=i)
            found.append([cells.gap(gm, 'selection_rate'), cells.gap(gm, 'selection_rate', ratio=True)])
        diff, ratio = zip(*found)
        t.row((sizes if len(set(sizes)) > 1 else f'{len(sizes)} of {sizes[0]}', p if len(sizes) < 5 else f'{p[0]} … {p[-1]}'), [gate_rates(diff, max(p) - min(p)).max(), gate_rates(ratio, min(p)/max(p)).max()], runs)
    t.close()


def all_gates(runs, rng):
    "A good POC (98 %) against ten hard gates at 95 %, each planned for a power"
    print('\n## A good POC that must pass ten hard gates at once (truth 98 %, thresholds 95 %)\n\n| planned power of each | n of each | passes one | passes all ten | passes some gate wrongly at 95 % |\n|---|---|---|---|---|')
    for power in (.8, .9, .98):
        n = stats.n_proportion(.98, .95, power=power)
        low = stats.clopper_pearson(rng.binomial(n, .98, (runs, 10)), n, .9)[0]
        bad = stats.clopper_pearson(rng.binomial(n, .95, (runs, 1)), n, .9)[0]  # one dimension at the threshold, nine good: it must not become GO
        print(f'| {power} | {n} | {100*(low >= .95).mean():.0f} % | {100*(low >= .95).all(1).mean():.0f} % | {100*(bad >= .95).mean():.1f} % |')


if __name__ == '__main__':
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument('--quick', action='store_true', help='fewer runs and sizes')
    quick = args.parse_args().quick
    began, rng = time.perf_counter(), np.random.default_rng(0)
    ns = (20, 100, 500, 2000) if quick else (20, 50, 100, 200, 500, 1000, 2000)
    independent(ns)
    clustered(ns[1:] if quick else ns, 400 if quick else 4000, rng)
    means((30, 100, 500) if quick else (30, 50, 100, 200, 500, 2000), 400 if quick else 4000, rng)
    pairs(200 if quick else 4000, rng)
    boots(40 if quick else 1000, rng)
    judges(100 if quick else 2000, rng)
    combined(40 if quick else 1000, rng)
    peeking(100 if quick else 2000, rng)
    gaps(50 if quick else 1000, rng)
    all_gates(20_000, rng)
    print(f'\n{time.perf_counter() - began:.0f} s')
