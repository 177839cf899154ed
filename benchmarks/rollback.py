"""How soon a bad release is rolled back, whom it hits, and how often a good one is thrown out

    python benchmarks/rollback.py --virtual                # 2,000 runs without a fault, and the grid, in virtual time
    python benchmarks/rollback.py --virtual --json genai_playbook/data/rollback.json     # keep the runs without a fault in the package
    python benchmarks/rollback.py --real --repeats 20      # the grid on two real servers (demo and demo-regressed); hours on two cores, so begin with --repeats 2

Router and judge are those of a service in all of it. In virtual time the versions are invented (2 % errors, one answer in ten wrong, 50 ms), so the numbers depend on no machine. On real servers the rate is
40 % of what the machine answers at most, and the candidate gets as many requests a second as 10 % of 200 are, where the machine allows it. Bounds are one-sided at 95 % each."""
import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

from genai_playbook.canary import DEFAULT_LIMITS
from genai_playbook.card import load_card
from genai_playbook.drill import (drill_table, false_rollbacks, grader, most_at_once, no_fault_settings, real_drill, real_switches,
                                  rehearsals, traffic_of, version_of, without_fault)
from genai_playbook.load import on_cores
from genai_playbook.release_faults import RELEASE_FAULTS, BadRelease
from genai_playbook.rollback import Section, in_time, real_plan
from genai_playbook.serve import split_cores

SHARES = .1, .18, .5, 1.


def virtual(args):
    with ProcessPoolExecutor(args.jobs) as pool: runs = list(pool.map(without_fault, range(args.runs), chunksize=10))
    print(f'{len(runs):,} runs without a fault: {false_rollbacks(runs)._repr_markdown_()}')
    if args.json: args.json.write_text(json.dumps(dict(settings=no_fault_settings(.1, DEFAULT_LIMITS, 200.), runs=runs), separators=(',', ':')).replace('],[', '],\n[')+'\n', encoding='utf8')
    if args.repeats: print(drill_table(rehearsals(SHARES, args.repeats)).round(2).to_markdown())


def real(args):
    card, cores = load_card('demo'), split_cores()
    good, bad = version_of(card, cores[1]), version_of(load_card('demo-regressed'), cores[1])
    traffic = traffic_of(card, 400)
    grade = grader(card, traffic.references)
    try:
        plan = real_plan(most_at_once([good, bad], traffic), Section(), args.seconds)
        print(f'{plan.rate:.0f} requests/s, {plan.share:.0%} to the candidate')
        todo = [(k, s, good, {}) for k in RELEASE_FAULTS for s in SHARES] + [('demo-regressed', 1., bad, {}), ('no fault', 0., good, dict(seconds=10.)), ('errors, promoted', .5, good, dict(promoted=True))]
        rows = []
        with on_cores(cores[0]):
            for i in range(args.repeats):
                for name, share, version, more in todo:
                    run = real_drill(good, version, traffic, grade, BadRelease(name.split(',')[0] if name.split(',')[0] in RELEASE_FAULTS else '', share, i), replace(plan, **more), seed=i)
                    rows.append(run.to_dict() | dict(kind=name, severity=share, end=more.get('seconds', args.seconds)))
            back, asked = real_switches(good, good, traffic, plan.rate, 60)
        print(drill_table(rows).round(2).to_markdown())
        print(f'switches within 250 ms: {in_time(back, asked, .25)._repr_markdown_()}; the slowest {max(back):.3f} s; {sum(not a.arm for a in asked)} of {len(asked)} dropped')
    finally:
        good.stop()
        bad.stop()


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--virtual', action='store_true')
    p.add_argument('--real', action='store_true')
    p.add_argument('--runs', type=int, default=2000, help='without a fault, in virtual time')
    p.add_argument('--repeats', type=int, default=20, help='of each fault at each severity; 0: none')
    p.add_argument('--jobs', type=int, default=2)
    p.add_argument('--seconds', type=float, default=20., help='that a real drill may take')
    p.add_argument('--json', type=Path, help='where the runs without a fault are kept')
    args = p.parse_args()
    if args.virtual: virtual(args)
    if args.real: real(args)
