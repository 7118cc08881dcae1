#!/bin/bash
# sbatch configs/slurm/tile.sh slides.csv study [--mpp 0.5 …]     an array: each job tiles every n-th slide
#SBATCH --job-name=tile-slides
#SBATCH --array=1-16
#SBATCH --cpus-per-task=8
#SBATCH --mem=24G
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail
slides=$1 study=$2
shift 2
exec tile-slides "$slides" --out "$study/patches" \
    --part "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" --workers "$SLURM_CPUS_PER_TASK" "$@"
