"""What notebook 90 measures: the study's own parts beside what one would pick instead, on the same work in one run.

Ratios are the result: both sides ran minutes apart on one machine. TRL is compared when it is installed
(`pip install trl`). Every benchmark yields rows of one table.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import yaml
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from datasets import Dataset
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageTextToText, Trainer, TrainingArguments

from xmem_utils import paths
from xmem_utils.memorization.evaluation import Evaluation
from xmem_utils.memorization.experiment import Memorization
from xmem_utils.params import MODALITIES, Profile
from xmem_utils.personas.checks import portrait_rate
from xmem_utils.personas.dataset import PersonaSpec, load_personas, names_of, to_views
from xmem_utils.progress import note
from xmem_utils.score import exact_match, greedy_answers, ranked
from xmem_utils.train import Training, memorize, memorizing_steps
from xmem_utils.vlm.adapters import adapt, for_evaluation
from xmem_utils.vlm.batches import Example, answer_tokens, collate, encode, with_answer
from xmem_utils.vlm.forward import forward
from xmem_utils.vlm.lean import lean
from xmem_utils.vlm.load import VLM, resolve_model
from xmem_utils.vlm.precision import bf16_pays, mixed_precision

SEED = 950  # people of the benchmarks: no reported number of the study uses them
TRAINING = Training()  # as the study trains: five passes over the views, which the vision tower sees once
SMALL = Profile(
    personas=20, replicates=1, train_views=4, test_views=2, epochs=2, dose_views=(1, 2, 3, 4), resamples=100
)
SHARDS = Profile(personas=100, replicates=1, train_views=8, test_views=4, epochs=5, resamples=100)


def seconds(work: Callable[[], object]) -> float:
    """Wall time of a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def row(benchmark: str, contender: str, value: float, unit: str) -> dict[str, object]:
    """One line of the table, said as soon as it is known."""
    note(f"{benchmark}: {contender} {value:.3g} {unit}")
    return {"benchmark": benchmark, "contender": contender, "value": value, "unit": unit}


# -- training ------------------------------------------------------------------------------------


def rival_losses(kind: str, vlm: VLM, examples: list[Example], folder: str) -> tuple[list[float], float]:
    """Losses by step and seconds of `transformers.Trainer` or TRL's `SFTTrainer` on the work of `memorize`.

    The same LoRA from the same seed, batches in the same order, the same optimizer and learning rates; the
    rest is theirs: precision as they set it (bf16 where the name says so), pictures through the vision tower
    at every step, the model's own loss.
    """
    set_seed(TRAINING.seed)
    plain = AutoModelForImageTextToText.from_pretrained(resolve_model(vlm.name), dtype="auto")
    model = adapt(plain, TRAINING.rank)
    pad_id = vlm.processor.tokenizer.pad_token_id
    steps = memorizing_steps(examples, TRAINING)
    batches = DataLoader(steps, batch_size=None, collate_fn=lambda s: collate(s.batch["names"], pad_id, side="left"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1.0, weight_decay=0.0)
    rates = LambdaLR(optimizer, lambda k: steps[min(k, len(steps) - 1)].learning_rate)
    settings = dict(
        output_dir=folder, per_device_train_batch_size=TRAINING.batch_size, num_train_epochs=1, logging_steps=1,
        max_grad_norm=1.0, report_to="none", save_strategy="no", use_cpu=True,
        remove_unused_columns=False, disable_tqdm=True, seed=TRAINING.seed,
    )  # fmt: skip
    if "bf16" in kind:
        settings["bf16"] = True
    if kind.startswith("TRL"):
        from trl import SFTConfig, SFTTrainer

        base, arguments = SFTTrainer, SFTConfig(
            **settings, dataset_kwargs={"skip_prepare_dataset": True}, gradient_checkpointing=False
        )  # fmt: skip
        extra = {"processing_class": vlm.processor}
    else:
        base, arguments, extra = Trainer, TrainingArguments(**settings), {}

    class Same(base):
        def get_train_dataloader(self):
            return self.accelerator.prepare(batches)

        def log(self, logs, *rest, **more):
            if "loss" in logs:
                losses.append(logs["loss"])

    losses: list[float] = []
    trainer = Same(
        model=model, args=arguments, data_collator=batches.collate_fn,
        train_dataset=Dataset.from_dict({"row": range(len(examples))}),
        optimizers=(optimizer, rates), **extra,
    )  # fmt: skip
    spent = seconds(trainer.train)
    AcceleratorState._reset_state(True)  # one process, several precisions
    return losses, spent


def training(vlm: VLM, dataset, count: int) -> Iterable[dict[str, object]]:
    """Examples a second, and how far each contender's losses are from ours."""
    epochs = TRAINING.epochs
    rivals = ["transformers.Trainer + PEFT"]
    rivals += [f"{rivals[0]}, bf16"] if bf16_pays(vlm.device) else []
    rivals += ["TRL SFTTrainer"] if find_spec("trl") else []
    for modality in MODALITIES:
        views = to_views(dataset, "train", modality)[:count]
        name = f"training from {modality}"
        memorize(vlm, encode(vlm, views[:8]), TRAINING).unload()  # warm
        losses: list[float] = []

        def on_step(model: nn.Module, step: int, steps: int, loss: float, losses: list[float] = losses) -> None:
            losses.append(loss)

        began = time.perf_counter()
        # the pass through the vision tower counts
        memorize(vlm, encode(vlm, views), TRAINING, on_step).unload()
        yield row(name, "ours", epochs * len(views) / (time.perf_counter() - began), "examples/s")
        for rival in rivals:
            with tempfile.TemporaryDirectory() as folder:
                theirs, spent = rival_losses(rival, vlm, encode(vlm, views, features=False), folder)
            yield row(name, rival, epochs * len(views) / spent, "examples/s")
            difference = np.abs(np.subtract(losses, theirs)).max() / max(losses)
            yield row(f"{name}: loss differs at most by", rival, difference, "of the first loss")


def memorizing(vlm: VLM, dataset) -> Iterable[dict[str, object]]:
    """Seconds to memorize the standard profile's 100 personas from 8 views each, encoding included."""
    for modality in MODALITIES:
        views = to_views(dataset, "train", modality)
        memorize(vlm, encode(vlm, views[:8]), TRAINING).unload()  # compiles
        spent = seconds(lambda v=views: memorize(vlm, encode(vlm, v), TRAINING).unload())
        yield row(f"memorizing {len(views)} views from {modality}, {TRAINING.epochs:g} epochs", "ours", spent, "s")


# -- recall --------------------------------------------------------------------------------------


def recall(vlm: VLM, dataset, count: int) -> Iterable[dict[str, object]]:
    """Views a second: exact match against decoding; all-name ranking, after names were memorized from pictures, against
    a pass a name."""
    names = names_of(dataset)
    for modality in MODALITIES:
        examples = encode(vlm, to_views(dataset, "test", modality))[:count]
        # decoding sees the pictures, as it would elsewhere; ours has their features from the first evaluation on
        plain = encode(vlm, to_views(dataset, "test", modality), features=False)[:count]
        few_count = max(8, count // 10)
        few = examples[:few_count]
        exact_match(vlm, few)
        name = f"recall asked in {modality}"
        yield row(name, "ours", len(examples) / seconds(lambda e=examples: exact_match(vlm, e)), "views/s")
        batched = seconds(lambda e=plain: greedy_answers(vlm, e, max_new_tokens=4))
        yield row(name, "generate, batched", len(examples) / batched, "views/s")
        single = seconds(lambda e=plain, n=few_count: [greedy_answers(vlm, [x], max_new_tokens=4) for x in e[:n]])
        yield row(name, "generate, one by one", len(few) / single, "views/s")
    model = memorize(vlm, encode(vlm, to_views(dataset, "train", "image")), TRAINING)
    with for_evaluation(model):
        for modality in MODALITIES:
            views = to_views(dataset, "test", modality)[:count]
            examples, true = encode(vlm, views), np.array([[v.persona] for v in views])
            ranked(vlm, examples[:8], names, true[:8], model)
            name = f"ranking {len(names)} names, asked in {modality}"
            spent = seconds(lambda e=examples, t=true: ranked(vlm, e, names, t, model))
            yield row(name, "ours", len(examples) / spent, "views/s")
            asked = [[with_answer(x, answer) for x in examples[:8]] for answer in answer_tokens(vlm, names)]
            each = seconds(lambda a=asked: [exact_match(vlm, e, model) for e in a])
            yield row(name, "one pass a name", 8 / each, "views/s")
    model.unload()


def portraits() -> Iterable[dict[str, object]]:
    """Portraits a second."""
    yield row("portraits at 64 px, one core", "ours", portrait_rate(), "1/s")


# -- the machine ---------------------------------------------------------------------------------


def arithmetic(vlm: VLM, dataset) -> Iterable[dict[str, object]]:
    """Multiply-adds a second of a training step, and of the machine's own matrix product."""
    bf16 = bf16_pays(vlm.device)
    side = 1024
    a, b = (torch.randn(side, side, dtype=torch.bfloat16 if bf16 else torch.float32) for _ in range(2))
    products = 20
    a @ b
    rate = products * side**3 / seconds(lambda: [a @ b for _ in range(products)])
    yield row("multiply-adds", f"matrix product, {'bf16' if bf16 else 'float32'}", rate / 1e9, "G/s")
    # what is compiled shows a counter nothing
    with training_step(vlm, dataset, plain=True) as step, FlopCounterMode(display=False) as counter:
        step()
    with training_step(vlm, dataset) as step:
        repeats = 5
        spent = seconds(lambda: [step() for _ in range(repeats)]) / repeats
    yield row("multiply-adds", "ours, a training step", counter.get_total_flops() / 2 / spent / 1e9, "G/s")


@contextlib.contextmanager
def training_step(vlm: VLM, dataset, plain: bool = False) -> Iterator[Callable[[], None]]:
    """Forward and backward pass of `memorize` on one batch of descriptions, or the `plain` one without its speed."""
    examples = encode(vlm, to_views(dataset, "train", "text")[: TRAINING.batch_size])
    batch = collate(examples, vlm.processor.tokenizer.pad_token_id, side="left")
    model, bf16 = adapt(vlm.model, TRAINING.rank).train(), bf16_pays(vlm.device)

    def step() -> None:
        with mixed_precision(vlm.device, bf16):
            said = forward(model, batch, keep=4)
        F.cross_entropy(said.logits.flatten(0, 1).float(), said.labels.flatten()).backward()

    try:
        with contextlib.nullcontext() if plain else lean(model, torch.bfloat16 if bf16 else torch.float32):
            step()  # compiles
            yield step
    finally:
        model.unload()


KINDS = {
    "matrix products": r"aten::(mm|bmm|addmm)$",
    "attention": r"scaled_dot_product",
    "casts and copies": r"aten::(copy_|_to_copy|clone|contiguous|cat)$",
    "compiled, element by element": r"CompiledFxGraph",
    "element by element": r"aten::(mul|add|add_|div|sub|neg|pow|rsqrt|gelu|gelu_backward|mean|sum|where|fill_)$",
}


def step_profile(vlm: VLM, dataset, steps: int = 10) -> pd.DataFrame:
    """Where the time of a training step goes: share by kind of operation, of the time inside operations."""
    with training_step(vlm, dataset) as step, profile(activities=[ProfilerActivity.CPU]) as recorded:
        for _ in range(steps):
            step()
    spent = {event.key: event.self_cpu_time_total for event in recorded.key_averages()}
    total = sum(spent.values())
    shares = {kind: sum(t for key, t in spent.items() if re.search(name, key)) / total for kind, name in KINDS.items()}
    shares["all else (dispatch, autograd, masks)"] = 1 - sum(shares.values())
    return pd.DataFrame({"of a training step": shares.keys(), "share": shares.values()})


# -- scale ---------------------------------------------------------------------------------------


def growth(vlm: VLM, sizes: Iterable[int]) -> Iterable[dict[str, object]]:
    """Seconds to memorize (four views each) and to evaluate (two test views each, one a modality), by personas."""
    for people in sizes:
        dataset, _ = load_personas(PersonaSpec(personas=people, seed=SEED, train_views=4, test_views=1))
        examples = encode(vlm, to_views(dataset, "train", "text"))
        began = time.perf_counter()
        model = memorize(vlm, examples, TRAINING)
        yield row(SCALED[0], f"{people} personas", time.perf_counter() - began, "s")
        evaluation = Evaluation(vlm, dataset)
        spent = seconds(lambda e=evaluation, m=model: e.records(m))
        yield row(SCALED[1], f"{people} personas", spent, "s")
        model.unload()


def workers(counts: Iterable[int], profile: Profile = SHARDS) -> Iterable[dict[str, object]]:
    """Wall seconds of the training shards of a small study by number of workers, each in an empty home."""
    for count in counts:
        with tempfile.TemporaryDirectory() as home:
            file = Path(home) / "profile.yaml"
            file.write_text(yaml.safe_dump(profile.model_dump(mode="json")))
            command = [sys.executable, "-m", "snakemake", "--cores", str(count), "--until", "train",
                       "--config", f"profile={file}", f"shards={2 * profile.replicates}"]  # fmt: skip
            environment = {**os.environ, "XMEM_HOME": home}
            began = time.perf_counter()
            subprocess.run(command, cwd=paths.REPO, env=environment, check=True, capture_output=True)
            yield row("training shards", f"{count} worker(s)", time.perf_counter() - began, "s")


def conditions(vlm: VLM, counts: Iterable[int], profile: Profile = SMALL) -> Iterable[dict[str, object]]:
    """Seconds by number of conditions."""
    for count in counts:
        with tempfile.TemporaryDirectory() as home:
            runs, paths.RUNS = paths.RUNS, Path(home)
            try:
                study = Memorization(vlm, profile, TRAINING.rank, TRAINING.learning_rate)
                wanted = [study.condition(s, SEED, n) for n in range(1, 5) for s in MODALITIES][:count]
                study.evaluation_of(SEED)
                spent = seconds(lambda s=study, w=wanted: [s.run(c) for c in w])
            finally:
                paths.RUNS = runs
        yield row("conditions on 20 personas", f"{count} condition(s)", spent, "s")


# -- all of it -----------------------------------------------------------------------------------

SCALED = ("memorizing 4 views each", "records, 2 test views each", "conditions on 20 personas", "training shards")


def people():
    """The standard profile's 100 people, of a seed of their own."""
    return load_personas(PersonaSpec(personas=100, seed=SEED, train_views=8, test_views=4))[0]


def table_of(rows: Iterable[dict[str, object]]) -> pd.DataFrame:
    """The table; ratio is ours over the contender, or each of a growing series over the first."""
    table = pd.DataFrame(rows)
    ours = table[table["contender"].str.startswith("ours")].set_index("benchmark")["value"]
    table["ours / this"] = table["benchmark"].map(ours) / table["value"]
    first = table.groupby("benchmark")["value"].transform("first")
    scaled = table["benchmark"].isin(SCALED)
    table.loc[scaled, "ours / this"] = float("nan")
    table["times the first"] = (table["value"] / first).where(scaled)
    return table


def draw(table: pd.DataFrame) -> Figure:
    """Left: how many times as fast ours is; right: what the study costs as it grows."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6), width_ratios=[3, 2])
    ratios = table[table["ours / this"].notna() & ~table["contender"].str.startswith("ours")]
    ratios = ratios[~ratios["benchmark"].str.contains("differs|multiply-adds")]
    labels = ratios["benchmark"] + "\nagainst " + ratios["contender"]
    left.barh(labels, ratios["ours / this"], color="#009E73", edgecolor="black", linewidth=0.5)
    for y, value in enumerate(ratios["ours / this"]):
        words = f"{value:.0f} x" if value >= 10 else f"{value:.1f} x"
        left.annotate(words, (value, y), (3, 0), textcoords="offset points", va="center", fontsize=7)
    left.axvline(1, color="0.3", ls=":")
    left.set_xscale("log")
    left.xaxis.set_major_formatter("{x:g}")
    left.invert_yaxis()
    left.tick_params(axis="y", labelsize=7)
    left.set(title="Ours, times as fast", xlabel="ratio (log scale)")
    left.grid(axis="y", visible=False)
    for benchmark, marker in zip(SCALED[:3], "osD", strict=True):
        rows = table[table["benchmark"] == benchmark]
        size = rows["contender"].str.extract(r"(\d+)")[0].astype(int)
        right.plot(size / size.iloc[0], rows["times the first"], marker=marker, label=benchmark)
    right.plot([1, 8], [1, 8], color="0.4", ls=":", label="in proportion")
    right.set(title="Cost as the study grows", xlabel="times as many personas or conditions",
              ylabel="times the seconds", xscale="log", yscale="log")  # fmt: skip
    for axis in (right.xaxis, right.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    right.set_xticks([1, 2, 4, 8])
    right.legend(fontsize=8)
    figure.tight_layout()
    return figure
