#!/bin/bash
# sbatch configs/slurm/train.sh slides.csv tumour study [--head needle …]     one job: a run, then its heatmaps
#SBATCH --job-name=train-mil
#SBATCH --cpus-per-task=16
#SBATCH --mem=64G
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail
slides=$1 target=$2 study=$3
shift 3
train-mil "$study/features" --labels "$slides" --target "$target" --out "$study/run" "$@"
exec export-heatmaps "$study/run" "$study/features" --slides "$slides" --out "$study/heatmaps"
