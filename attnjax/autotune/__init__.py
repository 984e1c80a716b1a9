"""Block sizes, measured on the device at hand and kept in a file.

    found = attnjax.autotune.measure(q, k, v, mask=attnjax.Causal())
    attnjax.autotune.save("blocks.json", found)

    with attnjax.autotune.use("blocks.json"):
        train()

A table holds where a call is traced: use it around the first call of a jitted function. It serves
calls of the kind that was measured, on the kind of device that it was measured on; all others get
the defaults, and `attnjax.explain` says which.
"""

from attnjax.autotune.files import load, save, use
from attnjax.autotune.measuring import Measurement, measure
from attnjax.ops.tuning import Table

__all__ = ["Measurement", "Table", "load", "measure", "save", "use"]
