"The canary judge on bad input"
import numpy as np, pytest

from genai_playbook.canary import CanaryJudge, Limit, Seen
from genai_playbook.errors import PlaybookError

FAILED = [Limit('failed', .01)]

def fed(judge, baseline, canary, n=1000):
    "A judge that saw n requests an arm, failing with these chances"
    dice = np.random.default_rng(0)
    for i in range(n):
        for arm, p in (('baseline', baseline), ('canary', canary)): judge.see(Seen(i, arm, f'{arm} {i}', bool(dice.random() < p)))
    return judge

def test_one_arm_without_traffic_waits():
    judge = CanaryJudge(FAILED)
    for i in range(100): judge.see(Seen(i, 'canary', f'u{i}', True))
    verdict = judge.verdict()
    assert verdict.action == 'wait' and 'no traffic in baseline' in verdict.because.lower() and verdict.rows[0]['state'] == 'no data'

def test_three_times_the_errors_roll_back():
    verdict = fed(CanaryJudge(FAILED, share=.5), .02, .06).verdict()
    assert verdict.action == 'rollback' and 'failed is worse' in verdict.because.lower()

def test_an_unknown_arm_is_refused():
    with pytest.raises(PlaybookError, match='baseline'): CanaryJudge(FAILED).see(Seen(0, 'blue'))
