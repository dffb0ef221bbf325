import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

from xmem_utils import paths
from xmem_utils.personas.dataset import PersonaSpec, build
from xmem_utils.personas.public_figures import known_in
from xmem_utils.vlm.load import load_vlm, resolve_model
from xmem_utils.vlm.threads import set_threads

set_threads()
# A shell starts what it sends to the background deaf to Ctrl-C, and processes that a test starts would inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def vlm():
    return load_vlm("xmem-tiny-s-11")


@pytest.fixture(scope="session")
def known(vlm):
    """The public figures of that base."""
    return known_in(resolve_model(vlm.name))


@pytest.fixture(scope="session")
def five():
    """Five personas whom nothing else uses, four training and two test views each."""
    return build(PersonaSpec(personas=5, seed=991, train_views=4, test_views=2))


@pytest.fixture(scope="module")
def own_store(tmp_path_factory):
    """Runs and personas of a module's tests, apart from all others."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RUNS", "PERSONAS"):
            patch.setattr(paths, name, folder / name.lower())
        yield folder


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items):
    """Side by side, what shares a fixture stays together: a module, a family of models; the corpus, for its report."""
    for item in items:
        folder = item.path.parent.name
        family = item.callspec.params.get("family", "") if hasattr(item, "callspec") else ""
        item.add_marker(pytest.mark.xdist_group("hostile" if folder == "hostile" else f"{item.path.stem}{family}"))
