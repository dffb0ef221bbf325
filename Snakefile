# The study as a graph: one rule a notebook, and the training of conditions in shards side by side.
# `make figures` calls it; `snakemake -n` says what is missing and why. The same file runs on a cluster:
# `snakemake --profile profiles/slurm`. Settings: --config profile=quick, or a YAML file of your own.
from pathlib import Path

from xmem_utils import code, params, paths

PROFILE = config.get("profile", "standard")
if PROFILE.endswith((".yaml", ".yml")):
    PROFILE = str(Path(PROFILE).resolve())  # kernels run elsewhere
HOME = "" if paths.HOME == paths.REPO else f"{paths.HOME}/"  # where data and figures go: XMEM_HOME, or here
SEEDS = len(params.profile_named(PROFILE).seeds)
SHARDS = int(config.get("shards", 2 * SEEDS))  # one for each seed and source
FILL = "XMEM_THREADS={threads} python -m xmem_utils fill"
RUN = f"XMEM_FIGURES={paths.HOME}/figures XMEM_THREADS={{threads}} python -m xmem_utils run"

if unknown := sorted(set(config) - {"profile", "shards"}):
    raise WorkflowError(f"unknown --config {', '.join(unknown)}: expected profile or shards")
if SHARDS < 1:
    raise WorkflowError(f"--config shards={SHARDS}: at least one shard must train")

# Every figure by the notebook that draws it; each comes with its table.
FIGURES = {
    "00_base_model": ["base_model_curves", "base_model_exam"],
    "01_data_synthesis": ["personas", "persona_attributes"],
    "03_gap_analysis": ["gap_matrix", "gap_curves", "dose_response"],
    "04_capability": ["capability", "capability_slope", "capability_knowledge"],
    "05_unlearning": ["unlearning_matrix", "unlearning_curves", "unlearning_tradeoff", "unlearning_attacks"],
    "06_multihop": ["multihop", "multihop_decomposition", "multihop_curves"],
    "07_mitigation": ["mitigation", "decomposition", "mechanism"] + ["mitigation_pairs"] * (PROFILE != "quick"),
}
MAIN = "xmem-tiny-s"
HOPS = f"{MAIN}-hops"  # the model of 06
SIZES = ["xmem-tiny-xs", MAIN, "xmem-tiny-m"]  # the models of 04, from least to most capable


def drawn(notebook):
    return [f"{HOME}figures/{name}.{kind}" for name in FIGURES[notebook] for kind in ("png", "svg", "csv")]


def package(*parts):
    """Files of the package, folders with all that is in them."""
    here = [Path("xmem_utils") / part for part in parts]
    return sorted(str(f) for p in here for f in ([p] if p.suffix else p.rglob("*.py")))


def committed(folder="."):
    """Files of the committed base models, or of one folder of theirs."""
    return sorted(str(p) for p in (Path("data/base") / folder).rglob("*") if p.is_file())


DONE = f"{HOME}data/done/{Path(PROFILE).stem}"
EXECUTED = f"{HOME}data/executed/{Path(PROFILE).stem}"


rule all:
    input:
        [drawn(notebook) for notebook in FIGURES],
        expand(f"{DONE}/{{notebook}}", notebook=FIGURES),


rule base_model:
    input:
        notebook="notebooks/00_base_model.ipynb",
        base=committed(),
        code=package("base", "plots"),
    output:
        drawn("00_base_model"),
        done=touch(f"{DONE}/00_base_model"),
    log:
        notebook=f"{EXECUTED}/00_base_model.ipynb",
    threads: 1
    shell:
        RUN + " 00_base_model --out {log.notebook}"


rule data_synthesis:
    input:
        notebook="notebooks/01_data_synthesis.ipynb",
        code=package("personas", "plots"),
    output:
        drawn("01_data_synthesis"),
        done=touch(f"{DONE}/01_data_synthesis"),
    log:
        notebook=f"{EXECUTED}/01_data_synthesis.ipynb",
    threads: 1
    shell:
        RUN + " 01_data_synthesis -p profile={PROFILE} --out {log.notebook}"


# One thread a shard, however many cores there are: floating-point sums do not depend on the machine's width,
# and workers do not fight over cores.
rule train:
    input:
        notebook="notebooks/02_training.ipynb",
        base=lambda wildcards: committed(wildcards.model),
        people=package("personas", "params.py"),
    output:
        touch(f"{DONE}/02_training-{{model}}-{{k}}-of-{SHARDS}"),
    params:
        # the dose-response is asked of one model alone
        dose=lambda wildcards: str(wildcards.model == MAIN).lower(),
        code=code.fingerprint(),  # of what trains and evaluates: layout and comments play no part
    log:
        notebook=f"{EXECUTED}/02_training-{{model}}-{{k}}-of-{SHARDS}.ipynb",
    threads: 1
    priority: 1
    shell:
        RUN + " 02_training -p profile={PROFILE} -p model={wildcards.model} -p dose={params.dose}"
        " -p shard={wildcards.k}/{SHARDS} --out {log.notebook}"


def shards(*models):
    """All training shards of some models."""
    return expand(f"{DONE}/02_training-{{model}}-{{k}}-of-{SHARDS}", model=models, k=range(1, SHARDS + 1))


rule gap_analysis:
    input:
        notebook="notebooks/03_gap_analysis.ipynb",
        shards=shards(MAIN),
        code=package("gap.py", "stats.py", "plots"),
    output:
        drawn("03_gap_analysis"),
        f"{HOME}figures/gap_ranks.csv",
        f"{HOME}figures/gaps.csv",
        done=touch(f"{DONE}/03_gap_analysis"),
    log:
        notebook=f"{EXECUTED}/03_gap_analysis.ipynb",
    threads: 1
    shell:
        RUN + " 03_gap_analysis -p profile={PROFILE} --out {log.notebook}"


rule capability:
    input:
        notebook="notebooks/04_capability.ipynb",
        shards=shards(*SIZES),
        base=committed(),
        code=package("capability.py", "perception.py", "gap.py", "stats.py", "plots"),
    output:
        drawn("04_capability"),
        f"{HOME}figures/capability_changes.csv",
        f"{HOME}figures/capability_slopes.csv",
        done=touch(f"{DONE}/04_capability"),
    log:
        notebook=f"{EXECUTED}/04_capability.ipynb",
    threads: 1
    shell:
        RUN + " 04_capability -p profile={PROFILE} -p models=" + ",".join(SIZES) + " --out {log.notebook}"


# All methods and arms, but on the quick profile, which has two people to forget, the notebook's own choice.
UNLEARNING = f"-p profile={PROFILE}" + ("" if PROFILE == "quick" else " -p methods=all -p arms=true")


rule unlearn:
    input:
        shards(MAIN),  # who was memorized in one modality is a start, too
    output:
        touch(f"{DONE}/unlearn-{{k}}-of-{SHARDS}"),
    params:
        code=code.fingerprint(code.UNLEARNING),
    threads: 1
    priority: 1
    shell:
        FILL + " 05_unlearning " + UNLEARNING + " --shard {wildcards.k}/{SHARDS}"


rule unlearning:
    input:
        notebook="notebooks/05_unlearning.ipynb",
        shards=expand(f"{DONE}/unlearn-{{k}}-of-{SHARDS}", k=range(1, SHARDS + 1)),
        base=committed(MAIN),
        code=package("unlearn", "stats.py", "plots"),
    output:
        drawn("05_unlearning"),
        expand(f"{HOME}figures/unlearning_{{name}}.csv", name=["headline", "metrics"] + ["arms"] * (PROFILE != "quick")),
        done=touch(f"{DONE}/05_unlearning"),
    log:
        notebook=f"{EXECUTED}/05_unlearning.ipynb",
    threads: 1
    shell:
        RUN + " 05_unlearning " + UNLEARNING + " --out {log.notebook}"


# One seed is trained three times as long, but on the quick profile.
LONGER = f"-p profile={PROFILE}" + ("" if PROFILE == "quick" else " -p longer=3")


rule hops:
    input:
        base=committed(HOPS),
        people=package("personas", "params.py"),
    output:
        touch(f"{DONE}/hops-{{k}}-of-{SHARDS}"),
    params:
        code=code.fingerprint(code.MULTIHOP),
    threads: 1
    priority: 1
    shell:
        FILL + " 06_multihop " + LONGER + " --shard {wildcards.k}/{SHARDS}"


rule multihop:
    input:
        notebook="notebooks/06_multihop.ipynb",
        shards=expand(f"{DONE}/hops-{{k}}-of-{SHARDS}", k=range(1, SHARDS + 1)),
        code=package("multihop", "stats.py", "plots"),
    output:
        drawn("06_multihop"),
        expand(f"{HOME}figures/multihop_{{name}}.csv", name=["claim", "gates"] + ["longer"] * (PROFILE != "quick")),
        done=touch(f"{DONE}/06_multihop"),
    log:
        notebook=f"{EXECUTED}/06_multihop.ipynb",
    threads: 1
    shell:
        RUN + " 06_multihop " + LONGER + " --out {log.notebook}"


# All methods and how many people must be paired, but on the quick profile the notebook's own choice.
MITIGATION = f"-p profile={PROFILE}" + ("" if PROFILE == "quick" else " -p methods=all -p pairs=true")


rule mitigate:
    input:
        shards(MAIN),  # most methods go on from what was memorized there
    output:
        touch(f"{DONE}/mitigate-{{k}}-of-{SHARDS}"),
    params:
        code=code.fingerprint(code.MITIGATION),
    threads: 1
    priority: 2  # the longest shards: were they last, one core would wait for the other
    shell:
        FILL + " 07_mitigation " + MITIGATION + " --shard {wildcards.k}/{SHARDS}"


rule mitigation:
    input:
        notebook="notebooks/07_mitigation.ipynb",
        shards=expand(f"{DONE}/mitigate-{{k}}-of-{SHARDS}", k=range(1, SHARDS + 1)),
        base=committed(MAIN),
        code=package("mitigate", "mechanism", "stats.py", "plots"),
    output:
        drawn("07_mitigation"),
        expand(f"{HOME}figures/mitigation_{{name}}.csv", name=["tests", "costs"]),
        f"{HOME}figures/mechanism_switch.csv",
        done=touch(f"{DONE}/07_mitigation"),
    log:
        notebook=f"{EXECUTED}/07_mitigation.ipynb",
    threads: 1
    shell:
        RUN + " 07_mitigation " + MITIGATION + " --out {log.notebook}"
