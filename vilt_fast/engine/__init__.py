"""Throughput and serving: batches filled by tokens, preparation beside compute, CUDA graphs, results in order.

    >>> from vilt_fast.engine import Engine
    >>> with Engine(model, processor) as engine:
    ...     answers = engine.answer(["a.jpg", "b.jpg"], "how many red circles are there ?")

`pipeline` has the threads and knows nothing of models; `base`, `images` and `texts` are what they do for ours, `vilt`,
`vit` and `visual_bert` where these differ; `vilt_fast.frozen` runs the batches.
"""

from vilt_fast.engine.engine import Engine, Stats
from vilt_fast.engine.results import Answer, Classified, Filled

__all__ = ["Answer", "Classified", "Engine", "Filled", "Stats"]
