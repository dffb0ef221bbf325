"""Ask a trained model who is shown, browse people, compare what is stored: in Python, or in JupyterLab (notebook 09).

from xmem_utils.explore import ask, stored
run = stored()[0]  # the latest training
ask(run, "A woman with short black hair and round glasses.")
"""

from xmem_utils.explore.models import Answer, Stored, ask, people_of, stored
from xmem_utils.explore.widgets import asking, browsing, cards, comparing, curves, table_of

__all__ = [
    "Answer",
    "Stored",
    "ask",
    "asking",
    "browsing",
    "cards",
    "comparing",
    "curves",
    "people_of",
    "stored",
    "table_of",
]
