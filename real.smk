# The notebooks on the models of real parts: `make real`, which assembles these first.

import os
import platform

from xmem_utils import fingerprint, params, paths
from xmem_utils.real import taught_to
from xmem_utils.real.study import HOPS, PROFILE, SHORTER, STUDY, TRAINED

DONE, DRAWN, FIGURES = (str(folder) for folder in (paths.DATA / "done/real", paths.DATA / "drawn/real", paths.HOME / "figures"))
SIZE = "".join(params.profile_named(profile).model_dump_json() for profile in (PROFILE, SHORTER, HOPS))
SIZE += (paths.REAL / "unlearning_settings.csv").read_text()
CODE, TAUGHT = fingerprint.package(), taught_to(False, True)

# As in the Snakefile: all shards round alike, and what one has compiled serves all on this machine.
os.environ.update(XMEM_COMPILE=os.environ.get("XMEM_COMPILE") or "1")
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(paths.DATA / "compiled" / platform.node()))

NOTEBOOKS = str(config.get("notebooks") or " ".join(STUDY)).split()
if unknown := sorted(set(NOTEBOOKS) - set(STUDY)):
    raise WorkflowError(f"NOTEBOOKS={' '.join(unknown)}: expected some of {', '.join(STUDY)}")
if set(DONE) & set("{}"):
    raise WorkflowError(f"{DONE!r}: braces mean something else to Snakemake; choose a folder without them")


def given(parameters):
    """Parameters of a notebook as its command takes them."""
    return [word for parameter in parameters for word in ("-p", parameter)]


def trained(*work):
    """Both shards of some of TRAINED."""
    return [f"{DONE}/{name}-{k}" for name in work for k in (1, 2)]


wildcard_constraints:
    notebook="|".join(STUDY),
    work="|".join(TRAINED),
    k=r"\d+",


rule all:
    input:
        expand(f"{DONE}/{{notebook}}", notebook=NOTEBOOKS),


rule train:
    input:
        lambda wildcards: trained(*TRAINED[wildcards.work].after),
    output:
        touch(f"{DONE}/{{work}}-{{k}}"),
    params:
        size=lambda wildcards: SIZE,
        code=CODE,
        taught=TAUGHT,
        notebook=lambda wildcards: TRAINED[wildcards.work].notebook,
        given=lambda wildcards: given(TRAINED[wildcards.work].given),
    benchmark:
        f"{paths.DATA}/times/real/{{work}}-{{k}}.tsv"
    threads: 1
    priority: 1
    shell:
        "XMEM_THREADS=1 python -m xmem_utils train {params.notebook} {params.given:q} --shard {wildcards.k}/2"


rule draw:
    input:
        notebook="notebooks/{notebook}.ipynb",
        trained=lambda wildcards: trained(*STUDY[wildcards.notebook].after),
    output:
        touch(f"{DONE}/{{notebook}}"),
    params:
        size=lambda wildcards: SIZE,
        code=CODE,
        taught=TAUGHT,
        given=lambda wildcards: given(STUDY[wildcards.notebook].given),
        kept=lambda wildcards: STUDY[wildcards.notebook].kept,
        aside=lambda wildcards: f"{DRAWN}/{wildcards.notebook}",
        figures=lambda wildcards: FIGURES,
        executed=lambda wildcards: f"{paths.EXECUTED}/real/{wildcards.notebook}.ipynb",
    benchmark:
        f"{paths.DATA}/times/real/{{notebook}}.tsv"
    threads: 1
    shell:
        "rm -rf {params.aside:q} && mkdir -p {params.figures:q} && XMEM_FIGURES={params.aside:q} XMEM_THREADS=1"
        " python -m xmem_utils run {wildcards.notebook} {params.given:q} --out {params.executed:q} &&"
        " for name in {params.kept}; do for file in {params.aside:q}/$name.*;"
        ' do cp "$file" {params.figures:q}/real_"$(basename "$file")" || exit 1; done; done'
