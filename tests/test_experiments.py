"Experiments on logs that nobody would write on purpose"
import numpy as np
import pandas as pd
import pytest

from genai_playbook.errors import PlaybookError
from genai_playbook.experiments import DONT, KEEP_RUNNING, SHIP, Metric, analyse, read_assignments, required_users


def log(users=2000, effect=0., rows=3, seed=0, arms=('A', 'B')):
    "Users who come back, a share that arm B raises, and a time that it does not"
    rng = np.random.default_rng(seed)
    arm, base = rng.integers(0, len(arms), users), rng.normal(size=users)
    u = np.r_[np.arange(users), rng.integers(0, users, users*(rows - 1))]
    at = pd.Timestamp('2026-05-01', tz='UTC') + pd.to_timedelta(np.sort(rng.random(len(u)))*14, unit='D')
    solved = (rng.random(len(u)) < .6 + effect*(arm[u] > 0))*1
    return pd.DataFrame(dict(user=[f'u{i}' for i in u], arm=np.array(arms)[arm[u]], at=at, solved=solved, seconds=10 + base[u] + rng.normal(size=len(u)), before=base[u]))


@pytest.mark.parametrize('effect, verdict', [(.12, SHIP), (-.12, DONT), (0., KEEP_RUNNING)])
def test_the_three_verdicts(effect, verdict):
    e = analyse(log(effect=effect), 'solved', 'A', guardrails=[Metric('seconds', better='lower')])
    assert e.verdict == verdict, e.because
    assert (e.n_to_go == 0) == (verdict != KEEP_RUNNING)
    assert e.winner == ('B' if verdict == SHIP else None)
    assert list(e.rows['metric']) == ['solved', 'seconds']


@pytest.mark.parametrize('kind', ['csv', 'jsonl'])
def test_files_say_what_the_frame_says(tmp_path, kind):
    frame = log(600, .3)
    path = tmp_path/f'log.{kind}'
    if kind == 'csv': frame.to_csv(path, index=False)
    else: path.write_text(frame.to_json(orient='records', lines=True, date_format='iso', date_unit='us'), encoding='utf-8')
    assert analyse(path, 'solved', 'A').rows.round(9).equals(analyse(frame, 'solved', 'A').rows.round(9))


def test_bad_logs_are_refused_in_one_sentence():
    for change, says in [(lambda f: f.drop(columns='arm'), 'no column `arm`'), (lambda f: f.iloc[:0], 'no rows'), (lambda f: f.assign(user=None), 'has no user')]:
        with pytest.raises(PlaybookError, match=says): read_assignments(change(log(50)))
    with pytest.raises(PlaybookError, match='effect must be'): required_users(0, sd=1)
