"Attribution: against brute force, against captum, and what must not be shown"
import math
from dataclasses import replace

import numpy as np
import pytest

from genai_playbook.attribution import (Attribution, answer_value, attribution_html, checked, faithfulness, integrated_gradients, leave_one_out, log_likelihoods, occlusion, split_units,
                                        token_value, told)
from genai_playbook.errors import PlaybookError
from genai_playbook.local_model import TransformersModel
from genai_playbook.models import Answer, PythonModel


@pytest.fixture(scope='module')
def tiny(tiny_model):
    model = TransformersModel(tiny_model, max_new_tokens=6, dtype='float32', device='cpu')
    return model, model.answer(['track my parcel'])[0]


@pytest.fixture(scope='module')
def case(tiny):
    model, answer = tiny
    m, ids = model.loaded, model._encode('track my parcel')
    target = m.tok('we pay', add_special_tokens=False).input_ids    # what a random model says are bytes that need not survive being decoded; any target can be attributed
    return replace(told(model, 'track my parcel', answer), ids=ids, target=target)


def brute(t, hidden=None, instead=None):
    "Log-probability of the target by one plain forward pass for each token: no batch, no cache"
    import torch
    net, ids, total = t.model.loaded.net, list(t.ids), 0.
    if hidden is not None: ids[hidden] = instead
    with torch.no_grad():
        for k, target in enumerate(t.target): total += net(input_ids=torch.tensor([ids + t.target[:k]])).logits[0, -1].float().log_softmax(-1)[target].item()
    return total


def test_batches_agree_with_brute_force(case):
    f = brute(case)
    keep = np.ones((len(case.free), len(case.ids)), bool)
    keep[np.arange(len(case.free)), case.free] = False
    for batch in (1, 3, 64):
        assert log_likelihoods(case, np.ones((1, len(case.ids)), bool), batch=batch)[0] == pytest.approx(f, abs=1e-4)
        found = f - log_likelihoods(case, keep, instead=50, batch=batch)
        assert found == pytest.approx([f - brute(case, i, 50) for i in case.free], abs=1e-4)


def captum_scores(case, **flags):
    import torch
    from captum.attr import FeatureAblation, LLMAttribution, TextTokenInput
    m = case.model.loaded
    text = m.tok.decode(case.ids)
    x = TextTokenInput(text, m.tok, baselines=50, skip_tokens=[])
    assert x.inp_tensor[0].tolist() == case.ids
    found = LLMAttribution(FeatureAblation(m.net), m.tok).attribute(x, target=torch.tensor(case.target), **flags)
    return found.seq_attr.numpy().astype(float)


SAFE = dict(use_cached_outputs=False, forward_in_tokens=False)


@pytest.mark.filterwarnings('ignore')
def test_captum_with_the_safe_flags_is_shown(case):
    pytest.importorskip('captum')
    good = checked(case, captum_scores(case, **SAFE), 'captum', instead=50)
    assert good.shown and good.residual < 1e-3


@pytest.mark.filterwarnings('ignore')
def test_captum_with_its_defaults_is_caught(case):
    "captum 0.9 on transformers >= 5.3 is wrong from the second target token on, without a word; if it is mended one day, both ways agree"
    pytest.importorskip('captum')
    default, safe = captum_scores(case), captum_scores(case, **SAFE)
    off = np.abs(default - safe).max()
    assert checked(case, default, 'captum by default', instead=50).shown == (off <= .01)
    from importlib.metadata import version
    if version('captum').startswith('0.9.') and tuple(map(int, version('transformers').split('.')[:2])) >= (5, 3): assert off > .05


def test_damage_is_not_shown(case):
    lied = replace(case, answer=replace(case.answer, logprob=-9., tokens_out=len(case.target)))
    a = leave_one_out(lied)
    assert not a.shown and 'Not shown' in attribution_html(a) and case.model.loaded.tok.decode([case.ids[5]]) + '</span>' not in attribution_html(a)
    lost = replace(case, answer=replace(case.answer, tokens_out=99))
    assert leave_one_out(lost).residual == math.inf
    with pytest.raises(PlaybookError, match='every token'): checked(case, [1.], 'short')


def test_first_token_hidden_gives_numbers(case):
    "A query that sees nothing must not poison the others"
    keep = np.ones((1, len(case.ids)), bool)
    keep[0, 0] = False
    assert np.isfinite(log_likelihoods(case, keep)).all() and np.isfinite(log_likelihoods(case, ~np.ones((1, len(case.ids)), bool))).all()


def test_integrated_gradients_add_up_or_stay_hidden(case):
    pytest.importorskip('captum')
    a = integrated_gradients(case, tolerance=.05)
    assert a.shown == (a.residual <= .05)
    never = integrated_gradients(case, tolerance=-1., steps=4, most=4)
    assert not never.shown and 'sum' in attribution_html(never)


def test_no_answer_no_model():
    with pytest.raises(PlaybookError, match='occlusion'): told(PythonModel(str), 'hi', Answer('x'))
    with pytest.raises(PlaybookError, match='no answer'): occlusion(PythonModel(lambda p: 1/0), 'a b')


def test_a_model_that_changes_its_mind_is_not_explained():
    said = iter(range(10_000))
    assert not occlusion(PythonModel(lambda p: f'{next(said)} {"x"*next(said)}'), 'one two three').shown


def test_black_box_that_breaks_without_a_word():
    def answer(p):
        if 'id' not in p: raise ValueError('no id')
        return 'fine'
    a = occlusion(PythonModel(answer), 'my id 7')
    assert a.shown and a.top(1)[0][0] == 'id ' and a.top(1)[0][1] == 1.


@pytest.mark.parametrize('text', ['', ' ', 'one', 'a  b\n\nc ', 'Is it? Yes! No.\nLast', '…', 'ünï côdé \U0001f600'])
@pytest.mark.parametrize('unit', ['word', 'sentence'])
def test_pieces_give_the_text_back(text, unit):
    if text.strip(): assert ''.join(split_units(text, unit)) == text
    else: assert split_units(text, unit) == [text]


def test_html_of_hostile_pieces():
    a = Attribution(['<script>x</script>', '"><b onload=1>'], np.array([1., -1.]), '<img src=x>', 'm<i>', 'nats', 0., .1)
    html = attribution_html(a)
    assert '<script' not in html and '<b ' not in html and '<img' not in html and 'dotted' in html
    assert not Attribution(['a'], np.array([math.nan]), 'x', 'm', 'nats', 0., .1).shown
    assert '<sup>' not in attribution_html(Attribution(['a'], np.array([0.]), 'x', 'm', 'nats', 0., .1))


def test_faithful_orders_beat_random_and_random_does_not():
    weights = np.array([3., 0, 0, 1, 0, 0, 0, 2, 0, 0])
    value = lambda keep: keep@weights/weights.sum()
    assert faithfulness(value, weights, orders=50).gain > .2
    assert abs(np.mean([faithfulness(value, np.random.default_rng(k).random(10), orders=50, seed=k).gain for k in range(60)])) < .05
    assert abs(faithfulness(lambda keep: np.ones(len(keep)), weights).gain) < 1e-12
    with pytest.raises(PlaybookError): faithfulness(value, np.full(10, math.nan))


def test_values_lie_between_0_and_1(case):
    keep = np.random.default_rng(0).random((9, len(case.ids))) > .4
    v = token_value(case)(keep)
    assert ((0 <= v) & (v <= 1)).all()
    box = PythonModel(lambda p: 'yes')
    assert list(answer_value(box, ['a ', 'b'], 'yes')(np.array([[True, True], [False, False]]))) == [1., 0.]


def test_long_prompts_hide_neighbours_together(case):
    short = leave_one_out(case, most=3)
    seen = [s for s in short.scores if np.isfinite(s)]
    assert len(set(np.round(seen, 9))) <= 3 and len(seen) == len(case.free)
    a, b = leave_one_out(case), leave_one_out(case, most=10_000)
    assert np.array_equal(a.scores, b.scores, equal_nan=True)
