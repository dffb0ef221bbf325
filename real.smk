# The notebooks on the models of real parts: `make real`, which assembles these first.
import os
import platform

from xmem_utils import fingerprint, params, paths
from xmem_utils.real import name_of

PROFILE = str(paths.REPO / "profiles" / "real.yaml")
NOBODY, KNOWS = name_of(known=False), name_of(known=True)
# Of each notebook: what it is given beside the profile, and which of its figures and tables are kept.
STUDY = {
    "03_gap_analysis": ([f"model={KNOWS}"], ["gap_matrix", "gap_curves", "gaps", "transfers", "gap_ranks", "gap_lengths"]),
    "04_capability": ([f"models={NOBODY},{KNOWS}", "knowledge=false"], ["capability", "capability_changes"]),
    "05_unlearning": ([f"model={KNOWS}", "methods=GradDiff,SimNPO,IDK"], ["unlearning_headline", "unlearning_matrix"]),
    "06_multihop": ([f"model={KNOWS}"], ["multihop", "multihop_claim", "multihop_gates"]),
    "07_mitigation": ([f"model={KNOWS}", "methods=captions; self-labelled"], ["mitigation", "mitigation_tests"]),
}
DONE, DRAWN = f"{paths.DATA}/done/real", f"{paths.DATA}/drawn/real"
SIZE, CODE = params.profile_named(PROFILE).model_dump_json(), fingerprint.package()
os.environ.update(XMEM_COMPILE="1")
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(paths.DATA / "compiled" / platform.node()))


NOTEBOOKS = str(config.get("notebooks") or " ".join(STUDY)).split()
if unknown := sorted(set(NOTEBOOKS) - set(STUDY)):
    raise WorkflowError(f"NOTEBOOKS={' '.join(unknown)}: expected some of {', '.join(STUDY)}")


wildcard_constraints:
    notebook="|".join(STUDY),
    k=r"\d+",


rule all:
    input:
        expand(f"{DONE}/{{notebook}}", notebook=NOTEBOOKS),


# Both sources of a replicate; every notebook begins with these.
rule train:
    output:
        touch(f"{DONE}/train-{{model}}-{{k}}"),
    params:
        size=SIZE,
        code=CODE,
    threads: 1
    priority: 1
    shell:
        "XMEM_THREADS=1 python -m xmem_utils train 02_training -p profile={PROFILE:q} -p model={wildcards.model}"
        " --shard {wildcards.k}/2"


rule draw:
    input:
        notebook="notebooks/{notebook}.ipynb",
        trained=expand(f"{DONE}/train-{{model}}-{{k}}", model=[NOBODY, KNOWS], k=[1, 2]),
    output:
        touch(f"{DONE}/{{notebook}}"),
    params:
        size=SIZE,
        code=CODE,
        given=lambda wildcards: [word for own in STUDY[wildcards.notebook][0] for word in ("-p", own)],
        kept=lambda wildcards: STUDY[wildcards.notebook][1],
        aside=lambda wildcards: f"{DRAWN}/{wildcards.notebook}",
        executed=lambda wildcards: f"{paths.EXECUTED}/real/{wildcards.notebook}.ipynb",
    benchmark:
        f"{paths.DATA}/times/real/{{notebook}}.tsv"
    threads: 1
    shell:
        "rm -rf {params.aside:q} && XMEM_FIGURES={params.aside:q} XMEM_THREADS=1 python -m xmem_utils run"
        " {wildcards.notebook} -p profile={PROFILE:q} {params.given:q} --out {params.executed:q} &&"
        " for name in {params.kept}; do for file in {params.aside:q}/$name.*;"
        ' do cp "$file" {paths.HOME}/figures/real_"$(basename "$file")"; done; done'
