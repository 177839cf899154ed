"Digests, in-toto, DSSE and CycloneDX from every model kind; the official schema judges the bill of materials"
import copy
import json

import pytest

from genai_playbook.card import load_card
from genai_playbook.errors import PlaybookError
from genai_playbook.evidence import FAIL, INSUFFICIENT, NOT_TESTED, PASS, Gate
from genai_playbook.lineage import check_training, envelope, lineage_of, ml_bom, model_files, open_envelope, result_statement as statement_of, training_record

CARD = 'poc: mine\noutcome: {{promise: it works}}\nmodel: {model}\ndata: {{evaluation: rows.csv{more}}}\n'
MODELS = dict(python='{kind: python, target: "answers:echo"}', openai='{kind: openai, base_url: "http://127.0.0.1:9/v1", model: m}', recorded='{kind: recorded, path: log.csv}')


def gate(code='SUC01', verdict=PASS, value=.95, hard=True, n=100):
    return Gate(code, 'success', 'a gate', 'share', value, value-.01, value+.01, .95, n, 'share', .9, '>=', verdict, hard, 'exact', 'c1').to_dict()


def evidence(*gates):
    return dict(gates=list(gates), started='2026-03-02T09:00:00+00:00', finished='2026-03-02T09:05:00+00:00', poc=dict(name='mine', promise='it works'),
                decision=dict(verdict='GO', headline='GO, 1 of 12'), chapters=[dict(name='success', notebook='01_success.ipynb', status='done'), dict(name='load', notebook='', status='broke')])


@pytest.fixture
def card(tmp_path):
    def write(model='python', more=''):
        (tmp_path/'answers.py').write_text('def echo(prompt): return prompt\n')
        (tmp_path/'rows.csv').write_text('id,prompt,reference\n1,hello,hello\n2,ciao,ciao\n')
        (tmp_path/'log.csv').write_text('id,prompt,answer\n1,hello,hello\n2,ciao,ciao\n')
        (tmp_path/'poc.yaml').write_text(CARD.format(model=MODELS[model], more=more))
        return load_card(tmp_path)
    return write


def valid(bom):
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator
    return JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bom))


GATES = [gate(), gate('SUC02', FAIL, .5), gate('LAT01', INSUFFICIENT, .9), gate('BIA01', NOT_TESTED, float('nan'), n=0)]


@pytest.mark.parametrize('model', MODELS)
def test_the_bill_of_materials_is_valid_for_every_model_kind(card, model):
    for gates in [], GATES: assert valid(ml_bom(evidence(*gates), lineage_of(card(model)), '2026-09-01T00:00:00+00:00')) is None
    bom = ml_bom(evidence(*GATES), lineage_of(card(model)))
    assert bom['metadata']['component']['type'] == 'machine-learning-model'
    claims = {c['bom-ref']: c for c in bom['declarations']['claims']}
    assert 'evidence' in claims['claim/SUC01'] and 'counterEvidence' in claims['claim/SUC02'] and len(claims) == 4
    assert [m['slice'] for m in bom['metadata']['component']['modelCard']['quantitativeAnalysis']['performanceMetrics']] == ['SUC01', 'SUC02', 'LAT01']


def test_the_bundled_demo_is_valid_and_has_weights_tokenizer_and_training():
    lin = lineage_of(load_card('demo'))
    bom = ml_bom(evidence(*GATES), lin)
    assert valid(bom) is None and {'weights/model.safetensors', 'tokenizer/tokenizer.json', 'config/config.json', 'data/evaluation', 'data/training'} <= {c['bom-ref'] for c in bom['components']}
    broken = copy.deepcopy(bom)
    broken['declarations']['claims'][0]['colour'] = 'blue'
    assert valid(broken) is not None  # the judge is strict


def test_references_of_a_bill_of_materials_lead_somewhere():
    bom = ml_bom(evidence(*GATES), lineage_of(load_card('demo')))
    refs = {c['bom-ref'] for c in bom['components']} | {'model', 'assessor'} | {r['bom-ref'] for r in bom['definitions']['standards'][0]['requirements']}
    d = bom['declarations']
    refs |= {x['bom-ref'] for k in ('claims', 'evidence') for x in d[k]}
    for c in d['claims']: assert {c['target'], *c.get('evidence', ()), *c.get('counterEvidence', ())} <= refs
    for m in d['attestations'][0]['map']: assert {m['requirement'], *m.get('claims', ()), *m.get('counterClaims', ())} <= refs
    assert all(s['ref'] in refs for s in bom['metadata']['component']['modelCard']['modelParameters']['datasets'])


@pytest.mark.parametrize('gates, result', [([gate()], 'PASSED'), ([gate(), gate('LAT01', INSUFFICIENT)], 'WARNED'), ([gate(), gate('SUC02', FAIL, hard=False)], 'WARNED'), (GATES, 'FAILED'), ([], 'WARNED')])
def test_statement(gates, result):
    s = statement_of(evidence(*gates), lineage_of(load_card('demo')))
    p = s['predicate']
    assert p['result'] == result and sorted(p['passedTests']+p['warnedTests']+p['failedTests']) == sorted(g['code'] for g in gates)
    assert all(set(x) == {'name', 'digest'} and x['digest'] for x in s['subject']+p['configuration'])


def test_a_changed_envelope_is_refused():
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519
    s = statement_of(evidence(gate()), lineage_of(load_card('demo')))
    for key in ec.generate_private_key(ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate():
        env = json.loads(json.dumps(envelope(s, key)))
        assert open_envelope(env, key.public_key()) == s
        for bad in {}, env | dict(payload='!'), env | dict(signatures=[]), env | dict(payloadType='text/plain'), env | dict(signatures=[dict(sig='AAAA')]), dict(env, payload=env['payload'][:-8]):
            with pytest.raises(PlaybookError): open_envelope(bad, key.public_key())
        with pytest.raises(PlaybookError): open_envelope(env, ed25519.Ed25519PrivateKey.generate().public_key())


def test_what_is_known_of_training(card):
    assert training_record(card()) == {}
    (card().folder/'train.csv').write_text('prompt,answer\na,b\nc,d\n')
    rec = training_record(card(more=', training: train.csv'), dict(licence='CC-BY-4.0', personal_data=''))
    assert rec['rows'] == 2 and rec['licence'] == 'CC-BY-4.0' and 'personal_data' not in rec and len(rec['sha256']) == 64
    assert check_training(card()) is None


@pytest.mark.parametrize('name, rows', [('demo', 81_200), ('demo-hardened', 80_000), ('demo-regressed', 81_200)])
def test_the_record_of_the_demos_counts_right(name, rows):
    assert training_record(load_card(name))['rows'] == rows


@pytest.mark.slow
@pytest.mark.parametrize('name', ['demo', 'demo-hardened', 'demo-regressed'])
def test_generator_and_seed_make_the_rows_again(name): assert check_training(load_card(name)) is True


def test_files_that_answer_nothing_do_not_count(tmp_path):
    for n in 'model.safetensors', 'README.md', 'tokenizer.json', '.hidden', 'my_config.json': (tmp_path/n).write_text(n)
    assert {r: list(f) for r, f in model_files(tmp_path).items()} == dict(weights=['model.safetensors'], tokenizer=['tokenizer.json'])
