"""What is exported loads without the study's own code, and says what it is."""

import subprocess
import sys

import mlcroissant
import numpy as np
import pytest
from datasets import load_dataset
from huggingface_hub import DatasetCard, ModelCard
from transformers import AutoModelForImageTextToText, AutoProcessor

from xmem_utils import paths
from xmem_utils.explore import stored
from xmem_utils.export import export, hub
from xmem_utils.memorization.experiment import Memorization
from xmem_utils.params import Profile, profile_named
from xmem_utils.personas.dataset import load_personas, persona_spec
from xmem_utils.unlearning.experiment import Unlearning

PROFILE = Profile(personas=4, replicates=1, train_views=2, test_views=1, epochs=2, dose_views=(2,), resamples=100)


@pytest.fixture(scope="module")
def folder(vlm, own_store, tmp_path_factory):
    study = Memorization(vlm, PROFILE, 4, 2e-3)
    unlearning = Unlearning(study)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xmem_utils.unlearning.experiment.check_memorized", lambda run: None)  # nothing is claimed of it
        unlearning.run(unlearning.condition("GradDiff", {"learning_rate": 1e-3, "retain_weight": 1.0, "steps": 1.0},
                                            "text", 11, forget=(0,)))  # fmt: skip
        patch.setattr(hub, "profile_named", lambda name: profile_named("quick"))
        patch.setattr(hub, "replicates_of", lambda family, count: (11, 12))
        made = tmp_path_factory.mktemp("export") / "hub"
        export(made, stored())
    return made


def test_people_load_as_a_dataset(folder):
    people, _ = load_personas(persona_spec(profile_named("quick"), 12))
    found = load_dataset(str(folder / "dataset"), "replicate-12")
    assert found["test"]["name"] == people["test"]["name"] and found["train"].features == people["train"].features
    np.testing.assert_array_equal(np.asarray(found["train"][0]["image"]), np.asarray(people["train"][0]["image"]))
    card = DatasetCard.load(folder / "dataset" / "README.md")
    assert card.data.license == "mit" and "Not for** the recognition of real" in card.text


def test_croissant_finds_the_same_rows(folder):
    described = mlcroissant.Dataset(jsonld=str(folder / "dataset" / "croissant.json"))
    assert not described.metadata.ctx.issues.errors
    rows = described.records("replicate-11-test-rows")
    first, people = next(iter(rows)), load_personas(persona_spec(profile_named("quick"), 11))[0]
    assert first["replicate-11-test-rows/name"].decode() == people["test"][0]["name"]
    assert first["replicate-11-test-rows/image"].size == people["test"][0]["image"].size


def test_every_base_loads_and_says_what_it_can_do(folder):
    bases = sorted(path.name for path in (folder / "models").iterdir())
    assert bases == sorted(path.name for path in paths.BASE_MODELS.glob("xmem-*"))
    model = AutoModelForImageTextToText.from_pretrained(folder / "models" / "xmem-tiny-s-11")
    AutoProcessor.from_pretrained(folder / "models" / "xmem-tiny-s-11")
    assert sum(p.numel() for p in model.parameters()) > 1e6
    card = ModelCard.load(folder / "models" / "xmem-tiny-s-11" / "README.md")
    assert "| alignment probe | 0.30 | 0.33 |" in card.text and card.data.pipeline_tag == "image-text-to-text"


def test_an_adapter_loads_as_its_card_says(folder):
    """By the code of the card, in a process that has none of ours."""
    [adapter] = [path for path in (folder / "adapters").iterdir() if "GradDiff" in path.name]
    code = ModelCard.load(adapter / "README.md").text.split("```python\n")[1].split("```")[0]
    assert "before-1" in code and (adapter / "before-1" / "adapter_model.safetensors").is_file()
    code = code.replace('"xmem-tiny-s-11"', f'"{folder}/models/xmem-tiny-s-11"').replace(
        f'"{adapter.name}', f'"{adapter}'
    )
    ours = "[m for m in sys.modules if m.startswith('xmem_utils')]"
    script = f"import sys\n{code}\nassert not {ours}\nprint(type(model).__name__)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "PeftModel" in done.stdout and "missing" not in done.stderr.lower()


def test_nothing_is_laid_over_an_earlier_export(folder):
    with pytest.raises(FileExistsError, match="is not empty: give a new folder"):
        export(folder)
