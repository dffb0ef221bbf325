"""Small commands: `python -m xmem_utils manifest`."""

from __future__ import annotations

import argparse
import json

from xmem_utils import paths
from xmem_utils.experiment import persona_spec
from xmem_utils.params import PROFILES
from xmem_utils.personas.dataset import build, content_fingerprint, known_figures

MANIFEST_PROFILES = ("quick", "standard")


def write_manifest() -> None:
    """Draw the personas of the quick and standard profiles anew and record their fingerprints."""
    entries = {}
    for name in MANIFEST_PROFILES:
        for seed in PROFILES[name].seeds:
            spec = persona_spec(PROFILES[name], seed)
            entries[spec.slug] = {"fingerprint": content_fingerprint(build(spec, known_figures()))}
            print(spec.slug, entries[spec.slug]["fingerprint"])
    paths.MANIFEST.write_text(json.dumps(entries, indent=1) + "\n")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m xmem_utils", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("manifest", help="rewrite data/personas_manifest.json after changing the generator")
    parser.parse_args()
    write_manifest()


if __name__ == "__main__":
    main()
