"The router when arms, flags and callers misbehave"
import asyncio

from genai_playbook.router import Router, VirtualLoop

async def fine(prompt): return 'from the baseline'
async def dead(prompt): raise ConnectionError('down')

def test_a_dead_canary_loses_nothing():
    loop = VirtualLoop()
    router = Router(dict(baseline=fine, canary=dead), share=1., clock=loop.time)
    async def crowd(): return await asyncio.gather(*(router.answer(f'u{i}', 'hi') for i in range(50)))
    got = loop.run(crowd())
    assert {a.text for a, _ in got} == {'from the baseline'} and all(s.failed and s.arm == 'canary' for _, s in got)
    assert router.counts['answered'] == router.counts['accepted'] == router.counts['rescued'] == 50
