#!/bin/bash
# Snakemake runs this inside the new environment, in the folder where it was started. It copies the .yaml and this
# script to a folder of its own, so paths are relative to the repository (or to MOESAIC_SOURCE), not to this file.
set -e
source="${MOESAIC_SOURCE:-.}"
if [ ! -f "$source/envs/cpu.txt" ]; then
    echo "--sdm conda needs moesaic's source: start in a clone of it, or set MOESAIC_SOURCE to one" >&2
    exit 1
fi
python -m pip install -c "$source/envs/cpu.txt" "$source[science]"
