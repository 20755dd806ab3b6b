"""Recording the routing of a Hugging Face MoE model, from the command line or from one's own loop.

>>> from planner.record import Recorder
>>> with Recorder(model) as recorder:
...     for batch in batches:
...         model(**batch)
...         recorder.add(batch["attention_mask"], domain="code")
>>> recorder.save("trace.npz")
"""

from planner.errors import MissingEnvironmentError

try:
    import torch as _torch  # noqa: F401 - only to say what is missing before anything else is tried
except ImportError as error:
    raise MissingEnvironmentError(f"recording needs torch ({error})", hint="pip install 'ep-plan[record]'") from None

from planner.record.recorder import Recorder

__all__ = ["Recorder"]
