# The study as a graph: one rule a notebook, and the training of conditions in shards side by side.
# `make figures` calls it; `snakemake -n` says what is missing and why. The same file runs on a cluster:
# `snakemake --profile profiles/slurm`. Settings: --config profile=quick, or a YAML file of your own.
#
# `snakemake --lint` has two remarks that stay. "No log directive": what trains without a notebook shows its progress in
# the terminal, as the notebooks do. "Specify a conda environment": the one environment, .venv, holds all rules.
import hashlib
import os
import platform
from pathlib import Path

from xmem_utils import fingerprint, params, paths
from xmem_utils.replicates import replicates_of, rungs, seeds_of

# --config reads values as YAML; XMEM_PROFILE, which make sets, takes any file name as it is
PROFILE = str(config.get("profile", os.environ.get("XMEM_PROFILE", "standard")))
if PROFILE.endswith((".yaml", ".yml")):
    PROFILE = str(Path(PROFILE).resolve())  # kernels run elsewhere
SIZE = params.profile_named(PROFILE)
SHARDS = int(config.get("shards", 2 * SIZE.replicates))  # one for each replicate and source

# Where data and figures go: XMEM_HOME, or here. Relative if inside of the checkout, which may have braces in its name.
HOME = "" if paths.HOME == paths.REPO else f"{paths.HOME}/".removeprefix(f"{paths.REPO}/")
if set(HOME) & set("{}"):
    raise WorkflowError(f"XMEM_HOME={HOME!r}: braces mean something else to Snakemake; choose a folder without them")

if unknown := sorted(set(config) - {"profile", "shards"}):
    raise WorkflowError(f"unknown --config {', '.join(unknown)}: expected profile or shards")
if SHARDS < 1:
    raise WorkflowError(f"--config shards={SHARDS}: at least one shard must train")

# Compiling pays off after some hundred steps. Rounding differs, so all shards do the same, and what one has compiled
# serves all on this machine.
os.environ.update(XMEM_COMPILE=os.environ.get("XMEM_COMPILE") or str(int(PROFILE != "quick")))
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(paths.DATA / "compiled" / platform.node()))

# Every figure by the notebook that draws it; each comes with its table.
FIGURES = {
    "00_base_model": ["base_model_curves", "base_model_evaluation"],
    "01_data_synthesis": ["personas", "persona_attributes"],
    "03_gap_analysis": ["gap_matrix", "gap_answers", "gap_curves", "attributes_by_name", "dose_response"],
    "04_capability": ["capability", "capability_slope", "capability_knowledge", "capability_probe"],
    "05_unlearning": ["unlearning_headline", "unlearning_frontier", "unlearning_matrix", "unlearning_curves"]
    + ["unlearning_tradeoff", "unlearning_attacks"]
    + ["unlearning_sequence"] * (PROFILE != "quick"),
    "06_multihop": ["multihop", "multihop_controls", "multihop_decomposition", "multihop_curves"],
    "07_mitigation": ["mitigation", "decomposition", "mechanism", "mechanism_controls"] + ["mitigation_pairs"] * (PROFILE != "quick"),
    "08_claims": ["claims"],
}
CODE = fingerprint.package()  # layout and comments play no part; what the store has is not made again
MAIN = "xmem-tiny-s"
SIZES = [m for m in ("xmem-tiny-xs", MAIN, "xmem-tiny-m") if seeds_of(m)]  # of 04, from least to most capable
RUNGS = list(rungs())  # of its ladder of knowledge


def drawn(notebook, *tables):
    """Figures and further tables of a notebook; rules take them for `update`: old ones stay until new are whole."""
    files = [f"{name}.{kind}" for name in FIGURES[notebook] for kind in ("png", "svg", "csv")]
    return [f"{HOME}figures/{file}" for file in files + [f"{table}.csv" for table in tables]]


def given(*parameters):
    """Parameters of a notebook as its command takes them."""
    return [word for parameter in parameters for word in ("-p", parameter)]


def drawing(notebook, parameters):
    """What DRAW takes, and what a figure depends on beside its input; functions, as braces in strings are wildcards."""
    aside = f"{paths.HOME}/data/drawn/{LABEL}/{notebook}"  # absolute: kernels run elsewhere
    return {
        "notebook": notebook,
        "given": lambda wildcards: parameters,
        "size": lambda wildcards: SIZE.model_dump_json() if parameters else "",
        "code": CODE,
        "aside": lambda wildcards: aside,
        "new": lambda wildcards, output: [f"{aside}/{Path(file).name}" for file in output.figures],
        "figures": lambda wildcards, output: str(Path(output.figures[0]).parent),
    }


def committed(model=""):
    """Files of the committed base models, or of the bases of one family."""
    return sorted(str(p) for p in Path("data/base").glob(f"{model}-[0-9]*/*" if model else "xmem-*/*") if p.is_file())


# Marks of what is done are by content of a profile: two files may have one name, and one may change.
LABEL = PROFILE
if PROFILE not in params.PROFILES:
    stem = "".join(c if c.isalnum() else "-" for c in Path(PROFILE).stem[:40])
    LABEL = f"{stem}-{hashlib.sha256(SIZE.model_dump_json().encode()).hexdigest()[:10]}"
DONE = f"{HOME}data/done/{LABEL}"
EXECUTED = f"{HOME}data/executed/{LABEL}"
TIMES = f"{HOME}data/times/{LABEL}-{SHARDS}"  # what each job took, for README

# A notebook draws aside; its figures are moved when it is through, each at once.
DRAW = (
    "rm -rf {params.aside:q} && "
    "XMEM_FIGURES={params.aside:q} XMEM_THREADS={threads} "
    "python -m xmem_utils run {params.notebook} {params.given:q} --out {log.notebook:q} && "
    "mv -f {params.new:q} {params.figures:q}"
)


rule all:
    input:
        [drawn(notebook) for notebook in FIGURES],
        expand(f"{DONE}/{{notebook}}", notebook=["02_training", *FIGURES]),


rule base_model:
    input:
        notebook="notebooks/00_base_model.ipynb",
        base=committed(),
    output:
        figures=update(drawn("00_base_model", "base_model_thresholds")),
        done=touch(f"{DONE}/00_base_model"),
    params:
        **drawing("00_base_model", []),
    log:
        notebook=f"{EXECUTED}/00_base_model.ipynb",
    benchmark:
        f"{TIMES}/base_model.tsv"
    threads: 1
    shell:
        DRAW


rule data_synthesis:
    input:
        notebook="notebooks/01_data_synthesis.ipynb",
    output:
        figures=update(drawn("01_data_synthesis")),
        done=touch(f"{DONE}/01_data_synthesis"),
    params:
        **drawing("01_data_synthesis", given(f"profile={PROFILE}")),
    log:
        notebook=f"{EXECUTED}/01_data_synthesis.ipynb",
    benchmark:
        f"{TIMES}/data_synthesis.tsv"
    threads: 1
    shell:
        DRAW


# One thread a shard, however many cores there are: floating-point sums do not depend on the machine's width,
# and workers do not fight over cores.
rule train:
    input:
        base=lambda wildcards: committed(wildcards.model),
    output:
        touch(f"{DONE}/train-{{model}}-{{k}}-of-{{n}}"),
    params:
        given=lambda wildcards: given(
            f"profile={PROFILE}",
            f"model={wildcards.model}",
            f"dose={str(wildcards.model == MAIN).lower()}",  # the dose-response is asked of one model alone
        ),
        size=lambda wildcards: SIZE.model_dump_json(),
        code=CODE,
    benchmark:
        f"{TIMES}/train-{{model}}-{{k}}-of-{{n}}.tsv"
    wildcard_constraints:
        k=r"\d+",
        n=r"\d+",
    threads: 1
    priority: 1
    shell:
        "XMEM_THREADS={threads} python -m xmem_utils train 02_training {params.given:q}"
        " --shard {wildcards.k}/{wildcards.n}"


def shards(*models):
    """All training shards of some models: no more of one than it has conditions, but of MAIN, which has doses."""
    count = {model: 2 * len(replicates_of(model, SIZE.replicates)) for model in models} | {MAIN: SHARDS}
    return [f"{DONE}/train-{m}-{k}-of-{min(SHARDS, count[m])}" for m in models for k in range(1, 1 + min(SHARDS, count[m]))]


rule training:
    input:
        notebook="notebooks/02_training.ipynb",
        shards=shards(MAIN),
    output:
        touch(f"{DONE}/02_training"),
    params:
        given=lambda wildcards: given(f"profile={PROFILE}"),
        size=lambda wildcards: SIZE.model_dump_json(),
        code=CODE,
    log:
        notebook=f"{EXECUTED}/02_training.ipynb",
    benchmark:
        f"{TIMES}/training.tsv"
    threads: 1
    shell:
        "XMEM_THREADS={threads} python -m xmem_utils run 02_training {params.given:q} --out {log.notebook:q}"


rule gap_analysis:
    input:
        notebook="notebooks/03_gap_analysis.ipynb",
        shards=shards(MAIN),
    output:
        figures=update(drawn("03_gap_analysis", "gap_ranks", "gaps", "transfers")),
        done=touch(f"{DONE}/03_gap_analysis"),
    params:
        **drawing("03_gap_analysis", given(f"profile={PROFILE}")),
    log:
        notebook=f"{EXECUTED}/03_gap_analysis.ipynb",
    benchmark:
        f"{TIMES}/gap_analysis.tsv"
    threads: 1
    shell:
        DRAW


rule capability:
    input:
        notebook="notebooks/04_capability.ipynb",
        shards=shards(*dict.fromkeys([*SIZES, *RUNGS])),
        base=committed(),
    output:
        figures=update(drawn("04_capability", "capability_changes", "capability_slopes")),
        done=touch(f"{DONE}/04_capability"),
    params:
        **drawing("04_capability", given(f"profile={PROFILE}", "models=" + ",".join(SIZES))),
    log:
        notebook=f"{EXECUTED}/04_capability.ipynb",
    benchmark:
        f"{TIMES}/capability.tsv"
    threads: 1
    shell:
        DRAW


# All methods and ablations, but on the quick profile, which has two people to forget, the notebook's own choice.
UNLEARNING = given(f"profile={PROFILE}", *["methods=all", "ablations=true"] * (PROFILE != "quick"))


rule unlearn:
    input:
        shards(MAIN),  # who was memorized in one modality is a start, too
    output:
        touch(f"{DONE}/unlearn-{{k}}-of-{SHARDS}"),
    params:
        given=lambda wildcards: UNLEARNING,
        size=lambda wildcards: SIZE.model_dump_json(),
        shards=SHARDS,
        code=CODE,
    benchmark:
        f"{TIMES}/unlearn-{{k}}.tsv"
    threads: 1
    priority: 1
    shell:
        "XMEM_THREADS={threads} python -m xmem_utils train 05_unlearning {params.given:q}"
        " --shard {wildcards.k}/{params.shards}"


rule unlearning:
    input:
        notebook="notebooks/05_unlearning.ipynb",
        shards=expand(f"{DONE}/unlearn-{{k}}-of-{SHARDS}", k=range(1, SHARDS + 1)),
        base=committed(MAIN),
    output:
        figures=update(
            drawn(
                "05_unlearning",
                "unlearning_at_once",
                "unlearning_metrics",
                *["unlearning_ablations", "unlearning_public"] * (PROFILE != "quick"),
            )
        ),
        done=touch(f"{DONE}/05_unlearning"),
    params:
        **drawing("05_unlearning", UNLEARNING),
    log:
        notebook=f"{EXECUTED}/05_unlearning.ipynb",
    benchmark:
        f"{TIMES}/unlearning.tsv"
    threads: 1
    shell:
        DRAW


# One replicate is trained three times as long, some with other practice, but on the quick profile.
LONGER = given(f"profile={PROFILE}", *["longer=3", "ablations=true"] * (PROFILE != "quick"))


rule hops:
    input:
        base=committed(MAIN),
    output:
        touch(f"{DONE}/hops-{{k}}-of-{SHARDS}"),
    params:
        given=lambda wildcards: LONGER,
        size=lambda wildcards: SIZE.model_dump_json(),
        shards=SHARDS,
        code=CODE,
    benchmark:
        f"{TIMES}/hops-{{k}}.tsv"
    threads: 1
    priority: 1
    shell:
        "XMEM_THREADS={threads} python -m xmem_utils train 06_multihop {params.given:q}"
        " --shard {wildcards.k}/{params.shards}"


rule multihop:
    input:
        notebook="notebooks/06_multihop.ipynb",
        shards=expand(f"{DONE}/hops-{{k}}-of-{SHARDS}", k=range(1, SHARDS + 1)),
    output:
        figures=update(
            drawn(
                "06_multihop",
                "multihop_claim",
                "multihop_gates",
                "multihop_known",
                *["multihop_longer", "multihop_practice"] * (PROFILE != "quick"),
            )
        ),
        done=touch(f"{DONE}/06_multihop"),
    params:
        **drawing("06_multihop", LONGER),
    log:
        notebook=f"{EXECUTED}/06_multihop.ipynb",
    benchmark:
        f"{TIMES}/multihop.tsv"
    threads: 1
    shell:
        DRAW


# The bake-off and how many people must be paired; on the quick profile the notebook's own choice, in full all variants.
HARD = ["mitigation_hard"] * (PROFILE != "quick")
BAKE_OFF = "methods=all" if PROFILE == "full" else "methods=main"
MITIGATION = given(f"profile={PROFILE}", *[BAKE_OFF, "pairs=true"] * (PROFILE != "quick"))


rule mitigate:
    input:
        shards(MAIN),  # most methods go on from what was memorized there
    output:
        touch(f"{DONE}/mitigate-{{k}}-of-{SHARDS}"),
    params:
        given=lambda wildcards: MITIGATION,
        size=lambda wildcards: SIZE.model_dump_json(),
        shards=SHARDS,
        code=CODE,
    benchmark:
        f"{TIMES}/mitigate-{{k}}.tsv"
    threads: 1
    priority: 2  # the longest shards: were they last, one core would wait for the other
    shell:
        "XMEM_THREADS={threads} python -m xmem_utils train 07_mitigation {params.given:q}"
        " --shard {wildcards.k}/{params.shards}"


rule mitigation:
    input:
        notebook="notebooks/07_mitigation.ipynb",
        shards=expand(f"{DONE}/mitigate-{{k}}-of-{SHARDS}", k=range(1, SHARDS + 1)),
        base=committed(MAIN),
    output:
        figures=update(drawn("07_mitigation", "mitigation_tests", "mitigation_costs", "mechanism_switch", *HARD)),
        done=touch(f"{DONE}/07_mitigation"),
    params:
        **drawing("07_mitigation", MITIGATION),
    log:
        notebook=f"{EXECUTED}/07_mitigation.ipynb",
    benchmark:
        f"{TIMES}/mitigation.tsv"
    threads: 1
    shell:
        DRAW


# What its rows are taken from.
EVIDENCE = ["transfers", "gaps", "capability_changes", "unlearning_headline", "multihop_claim", "mitigation_tests"]


rule claims:
    input:
        notebook="notebooks/08_claims.ipynb",
        tables=[f"{HOME}figures/{table}.csv" for table in EVIDENCE],
    output:
        figures=update(drawn("08_claims")),
        done=touch(f"{DONE}/08_claims"),
    params:
        **drawing("08_claims", given(f"tables={paths.HOME}/figures")),
    log:
        notebook=f"{EXECUTED}/08_claims.ipynb",
    benchmark:
        f"{TIMES}/claims.tsv"
    threads: 1
    shell:
        DRAW
