"""Two processes that score together get the scores of one."""

from pathlib import Path

import numpy as np
from helpers import run_hosts, tiny

from neojax.evaluate.score import score
from neojax.models import Transformer

HOST = """
import json, sys
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize("localhost:" + sys.argv[2], 2, int(sys.argv[1]))
sys.path.insert(0, sys.argv[3])
from helpers import layout_of, tiny
from neojax.evaluate.score import score
from neojax.models import Transformer

layout = layout_of("data:2, model:2", "batch:data, heads:model, mlp:model, vocab:model", "embd:data")
model = Transformer(tiny(n_layer=2), layout).init(0)
found = score(model, json.loads(sys.argv[4]), json.loads(sys.argv[5]))
print(json.dumps([[each.logprobs.tolist(), each.is_greedy.tolist()] for each in found]))
"""


def test_two_processes_score_as_one():
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 61, n).tolist() for n in (3, 24, 1, 1, 60, 9)]
    contexts = [[5, 6], [7], [1, 2, 3], [1, 2, 3], [4], [1, 2]]
    wanted = score(Transformer(tiny(n_layer=2)).init(0), texts, contexts)
    for host in run_hosts(HOST, 2, Path(__file__).parents[1], texts, contexts, timeout=240):
        for (logprobs, greedy), each in zip(host, wanted, strict=True):
            np.testing.assert_allclose(logprobs, each.logprobs, atol=1e-5)
            assert greedy == each.is_greedy.tolist()
