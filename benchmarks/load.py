"""How much the load client costs and how true it is, against a server on loopback that says when it wrote what

    python benchmarks/load.py                    # ours; guidellm (0.8) and aiperf (0.13) beside it where they are on the PATH
    python benchmarks/load.py --rounds 3 --streams 16 64 256 --seconds 8

Server: 50 ms to the first token, 10 ms between tokens, 32 tokens, one event per token (benchmarks/load_server.py), on a core of its own where there are two.
CPU-seconds are those of the client, reading included, for 1,000 requests. An error is the quantile we report less that of the server's own log, in ms, with mixed delays
(20 to 100 ms, 5 to 15 ms): for TTFT from the moment we sent. On a busy machine CPU-seconds still hold and times do not, so every figure is the best of `--rounds`."""
import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np

from genai_playbook.arrivals import Closed, constant
from genai_playbook.loadgen import endpoint, run_load

HERE = Path(__file__).parent


class KnownServer:
    "The server as a process, on the last core"
    def __init__(self, *args):
        self.process = subprocess.Popen([sys.executable, HERE/'load_server.py', *map(str, args)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | dict(PYTHONPATH=os.pathsep.join([str(HERE.parent), os.environ.get('PYTHONPATH', '')])))
        self.url = f'http://127.0.0.1:{int(self.process.stdout.readline())}/v1'
        if hasattr(os, 'sched_setaffinity') and len(cores := sorted(os.sched_getaffinity(0))) > 1:
            os.sched_setaffinity(self.process.pid, cores[-1:])

    def __enter__(self): return self

    def __exit__(self, *exc):
        self.process.stdin.close()
        self.process.wait(5)

    def log(self, last: int):
        "Rows of the last answers: request there, first token written, last token written, tokens"
        with urllib.request.urlopen(self.url.removesuffix('/v1')+'/log') as r: return np.array(json.load(r)[-last:], float)


def client_cores():
    "All but the last core, for this process and the clients it starts"
    if hasattr(os, 'sched_setaffinity') and len(cores := sorted(os.sched_getaffinity(0))) > 1: os.sched_setaffinity(0, cores[:1])


def mixed(seed=0):
    rng = np.random.default_rng(seed)
    return [json.dumps(dict(ttft=float(rng.uniform(.02, .1)), gap=float(rng.uniform(.005, .015)))) for _ in range(64)]


def cpu(server, streams, seconds):
    "CPU-seconds per 1,000 requests, requests per second, memory"
    rec = run_load(endpoint(server.url, 'known'), ['Hello'], Closed(streams, seconds=seconds, spread=.5))
    c = rec.meta['clients'][0]
    assert set(rec.faults()) == {'answered'}, rec.faults()
    return dict(cpu=1e3*(c['cpu_sending']+c['cpu_reading'])/len(rec), reading=1e3*c['cpu_reading']/len(rec), rate=len(rec)/seconds, memory=c['memory_mb'])


def truth(server, streams, n):
    "Errors in ms against the server's log, mixed delays"
    rec = run_load(endpoint(server.url, 'known'), mixed(), Closed(streams, requests=n, spread=.5))
    log, d = server.log(n), rec.requests()
    q = lambda x, p: float(np.quantile(x, p))*1e3
    ttft, true = (d['first_token']-d['sent']).to_numpy(), (log[:, 1]-log[:, 0])/1e9
    each, real = ((d['last']-d['first_token'])/(d['tokens']-1)).to_numpy(), (log[:, 2]-log[:, 1])/1e9/(log[:, 3]-1)
    return dict(ttft_p50=q(ttft, .5)-q(true, .5), ttft_p99=q(ttft, .99)-q(true, .99), token_p50=q(each, .5)-q(real, .5), token_p99=q(each, .99)-q(real, .99))


def arrivals(server, rate, seconds):
    "Deviation of sent from scheduled in ms"
    d = run_load(endpoint(server.url, 'known'), ['Hello'], constant(rate, seconds)).requests()
    late = (d['sent']-d['scheduled'])*1e3
    return dict(p50=float(late.quantile(.5)), p99=float(late.quantile(.99)))


def start_up(server):
    "Seconds from a new Python to the recording of one request of 1 ms, less that request"
    code = f'from genai_playbook.loadgen import *; from genai_playbook.arrivals import Closed; run_load(endpoint({server.url!r}, "known"), [{json.dumps(dict(ttft=.001, n=1))!r}], Closed(1, requests=1, spread=.001), processes=0)'
    begin = time.perf_counter()
    subprocess.run([sys.executable, '-c', code], check=True, env=os.environ | dict(PYTHONPATH=os.pathsep.join([str(HERE.parent), os.environ.get('PYTHONPATH', '')])))
    return time.perf_counter()-begin


def memory(server, n):
    rec = run_load(endpoint(server.url, 'known'), ['Hello'], Closed(256, requests=n, spread=.5))
    return rec.meta['clients'][0]['memory_mb']


def run_other(name, server, streams, n, folder):
    "CPU-seconds of another tool for n requests"
    url, tokenizer = server.url.removesuffix('/v1'), HERE.parent/'genai_playbook/data/demo/model'
    commands = dict(guidellm=['guidellm', 'run', '--backend', f'kind=openai_http,target={url},model=known', '--profile', f'kind=concurrent,streams={streams}', '--constraint', f'kind=max_requests,count={n}',
                              '--data', 'kind=synthetic_text,prompt_tokens=8,output_tokens=32', '--tokenizer', f'kind=hf_auto,model={tokenizer}', '--disable-console', '--output', f'kind=json,path={folder}/out.json'],
                    aiperf=['aiperf', 'profile', '--model', 'known', '--url', url, '--endpoint-type', 'chat', '--streaming', '--concurrency', streams, '--request-count', n,
                            '--tokenizer', tokenizer, '--synthetic-input-tokens-mean', 8, '--ui', 'simple'])
    before = os.times()
    subprocess.run(list(map(str, commands[name])), cwd=folder, capture_output=True, check=True, env=os.environ | dict(HOME=str(folder)))
    after = os.times()
    return after.children_user+after.children_system-before.children_user-before.children_system


def other(name, server, streams, few=200, more=1000):
    "What another tool takes for 1,000 requests more, and for starting; or why that is not known"
    if not shutil.which(name): return f'{name}: not installed'
    with tempfile.TemporaryDirectory() as folder:
        answered = len(json.loads(urllib.request.urlopen(server.url.removesuffix('/v1')+'/log').read()))
        try: a, b = (run_other(name, server, streams, n, folder) for n in (few, few+more))
        except subprocess.CalledProcessError as e: return f'{name}: failed with {e.returncode}: {(e.stderr or e.stdout).decode(errors="replace")[-300:]}'
        answered = len(json.loads(urllib.request.urlopen(server.url.removesuffix('/v1')+'/log').read()))-answered
    if answered < 2*few+more: return f'{name}: the server answered {answered} of {2*few+more} requests; no figure'
    return f'{name}, {streams} streams: {1e3*(b-a)/more:.2f} CPU-s for 1,000 requests more, {a-few*(b-a)/more:.1f} CPU-s to start and to end'


def best(rounds, fn, *args):
    found = [fn(*args) for _ in range(rounds)]
    if not isinstance(found[0], dict): return min(found)
    return {k: (max if k == 'rate' else min)((f[k] for f in found), key=abs) for k in found[0]}


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument('--rounds', type=int, default=3)
    args.add_argument('--streams', type=int, nargs='+', default=[16, 64, 256])
    args.add_argument('--seconds', type=float, default=8.)
    args.add_argument('--out', type=Path, help='CSV to add the figures to')
    a, rows = args.parse_args(), []
    client_cores()
    def show(what, value, bar=''):
        rows.append((what, round(value, 3), bar))
        print(f'{what:<58}{value:>9.3f}  {bar}', flush=True)
    print(f'load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; best of {a.rounds}')
    with KnownServer() as server:
        show('start-up, s', best(a.rounds, start_up, server), 'at most .6')
        for s in a.streams:
            b = best(a.rounds, cpu, server, s, a.seconds)
            show(f'CPU-seconds per 1,000 requests, {s} streams', b['cpu'], 'at most .7' if s >= 64 else '')
            show('  of these reading', b['reading'])
            show('  requests per second', b['rate'])
        show('memory for 10,000 requests, MB', memory(server, 10_000), 'at most 100')
        for s in (64, 256):
            for k, v in best(a.rounds, truth, server, s, 2000).items(): show(f'error of {k}, {s} streams of mixed delays, ms', v, dict(ttft_p50='at most 1.5', ttft_p99='at most 1', token_p99='at most .05 with kernel stamps').get(k, ''))
        for r, bar in ((100, 3), (500, 5)):
            for k, v in best(a.rounds, arrivals, server, r, 4).items(): show(f'arrivals at {r}/s, deviation {k}, ms', v, f'at most {bar}' if k == 'p99' else '')
        for name in ('guidellm', 'aiperf'): print(other(name, server, 64))
    if a.out:
        with open(a.out, 'w', newline='') as f: csv.writer(f).writerows([('what', 'value', 'bar'), *rows])


if __name__ == '__main__': main()
