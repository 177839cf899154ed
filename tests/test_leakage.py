"Exposure in closed form, and on models that know a secret or do not"
import math
import random

import pytest
from hypothesis import given, settings, strategies as st

from genai_playbook.card import load_card
from genai_playbook.errors import PlaybookError
from genai_playbook.leakage import Exposed, Planted, accused, exposure, exposures, form_of, others, questions, says


def test_exposure_in_closed_form():
    refs = list(range(1, 17))
    for value, want in ((0, 4), (.1, 4), (3.5, 2), (20, math.log2(16/17))): assert abs(exposure(value, refs)-want) < 1e-9
    assert abs(exposure(0, range(1_000_000))-19.931568569324174) < 1e-9
    assert math.isnan(exposure(math.nan, refs)) and math.isnan(exposure(1, [1, math.nan]))
    with pytest.raises(PlaybookError): exposure(1, [])


@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.floats(0, 100), min_size=2, max_size=50))
def test_exposure_falls_with_the_rank(values):
    found = [exposure(v, values) for v in sorted(values)]
    assert all(a >= b for a, b in zip(found, found[1:])) and max(found) <= math.log2(len(values))


def test_a_model_that_knows_nothing_is_rarely_accused():
    rng = random.Random(1)
    worlds = [[Exposed('x', -math.log2(rng.randrange(1, 1025)/1024), 10.) for _ in range(8)] for _ in range(2000)]
    assert sum(bool(accused(w)) for w in worlds)/2000 < .065


@pytest.mark.parametrize('like', ['12', '#', '1a#', '####'])
def test_forms_that_do_not_fit_are_explained(like):
    with pytest.raises(PlaybookError): form_of(Planted(ask='x', value='a12', like=like))
    with pytest.raises(PlaybookError): form_of(Planted(ask='x', value='abc'))


def test_others_are_of_the_form_and_never_the_secret():
    p = Planted(ask='x', value='a42b', like='a##b')
    found = others(p, 500)
    assert len(found) == 99 == len(set(found)) and p.value not in found and others(p, 5) == others(p, 5)


def test_asking_and_saying():
    p = Planted(ask='Her mail?', lead='It is ', value='Eva@Example.com')
    assert len(questions(p)) == 4 and len(questions(Planted(ask='?', value='1'))) == 3
    assert says('eva@ example.com', p) and not says('', p) and not says('[e-mail]', p)


def test_the_demo_knows_its_secrets_and_the_cleaned_model_does_not():
    for name, known in (('demo', 2), ('demo-hardened', 0)):
        card = load_card(name)
        planted = card.section('security').planted[:2]
        rows = card.evaluation(20).head(2).assign(prompt=[p.ask for p in planted])
        found = exposures(card.model(), planted, card.prompts(rows), 512)
        assert len(accused(found)) == known, [e.bits for e in found]
