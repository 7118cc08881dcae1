#!/bin/bash
# sbatch configs/slurm/extract.sh slides.csv study [--encoder resnet50 …]     an array: a GPU and every n-th slide each
#SBATCH --job-name=extract-features
#SBATCH --array=1-4
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=16
#SBATCH --mem=64G
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail
slides=$1 study=$2
shift 2
exec extract-features "$study/patches" --slides "$slides" --out "$study/features" \
    --part "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" "$@"
