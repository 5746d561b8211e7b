#!/bin/bash
# The whole paper as a chain of jobs: prepare, GANs, synthetic patches, U-Nets, scores, report. Called again it submits
# what is not finished and not in the queue; a stage that fails cancels those after it, and the next call names it.
#
#     slurm/pipeline.sh [--dry-run] [--until STAGE] [SETTINGS]
#
# SETTINGS: a file with lines like the next ones, for what is different from them.
WORK=work
COHORT=pegasus                   # data.name; its folder is WORK/COHORT
DATA=(data=pegasus)              # for every command that reads the cohort; PREPARE: for its making alone
VARIANTS=(gp sn sn_mp c_sn_mp)   # GANs, each with every seed
SEEDS=(1 2 3)
SOURCES=(real synthetic both)    # U-Nets: one on real, one on each GAN's patches, one on both, each with every seed
UNET_SEEDS=(1 2 3)
PREPARE=() GAN=() GENERATE=(num_patches=11750) UNET=() SEGMENT=() # settings of one command
MEDICALNET=''                    # its weights, to score patches against held-out ones; empty: not scored
SBATCH_PREPARE=() SBATCH_GAN=() SBATCH_UNET=() SBATCH_EVALUATE=() # for sbatch: --partition, --account, --gres, --time

set -euo pipefail
stages=(prepare train_gan generate train_unet evaluate report)
is_dry='' until=report settings=''
while [ $# -gt 0 ]; do
    case $1 in
        --dry-run) is_dry=yes ;;
        --until) until=${2:-} && shift ;;
        -*) echo "error: $1: know only --dry-run and --until STAGE" >&2 && exit 2 ;;
        *) settings=$(realpath -- "$1") ;;
    esac
    shift
done
[[ " ${stages[*]} " == *" $until "* ]] || { echo "error: --until $until: choose from ${stages[*]}" >&2 && exit 2; }
cd "$(dirname -- "${BASH_SOURCE[0]}")/.."
# shellcheck source=/dev/null
[ -z "$settings" ] || . "$settings"
[ -n "$is_dry" ] || command -v sbatch >/dev/null || { echo "error: no sbatch here: log in where Slurm is" >&2 && exit 2; }
home=$(realpath -m -- "$WORK/pipeline")
export VESSELGAN_FAILURES=$home/failures.txt
if [ -s "$VESSELGAN_FAILURES" ]; then
    sed 's/^/last time: /' "$VESSELGAN_FAILURES"
    [ -n "$is_dry" ] || rm "$VESSELGAN_FAILURES"
fi

# key="value" as Hydra reads it back, whatever the value is.
setting() { printf '%s="%s"' "$1" "${2//\"/\\\"}"; }

# Words as a shell reads them back.
show() {
    local word
    for word in "$@"; do [[ $word =~ ^[][[:alnum:]_=./,:+@%-]+$ ]] && printf ' %s' "$word" || printf ' %s' "${word@Q}"; done
    echo
}

# task STAGE PRODUCT WORD...: one more task of the stage, done when PRODUCT is there.
declare -A count=() waiting=() job=()
task() {
    local stage=$1 product=$2 number=${count[$1]:-0}
    count[$stage]=$((number + 1))
    [ ! -e "$product" ] || return 0
    waiting[$stage]+=${waiting[$stage]:+,}$number
    [ -z "$is_dry" ] || { echo -n "  $stage $number:" && show "${@:3}" && return 0; }
    mkdir -p -- "$home/$stage" && printf '%s\n' "${@:3}" >"$home/$stage/$number"
}

# stage NAME TEMPLATE AFTER SBATCH-OPTION...: submit what waits; AFTER: the stages that it needs.
stage() {
    local name=$1 template=$2 number='' needs='' before
    [[ -z "${is_over:-}" ]] || return 0
    [ "$name" != "$until" ] || is_over=yes
    if [ -z "${waiting[$name]:-}" ]; then echo "$name: finished (${count[$name]})" && return 0; fi
    [ ! -f "$home/$name.job" ] || number=$(squeue --noheader --format=%F --jobs="$(<"$home/$name.job")" 2>/dev/null | head -n 1)
    for before in $3; do needs+=${job[$before]:+:${job[$before]}}; done
    local command=(sbatch --parsable --job-name="$name" --array="${waiting[$name]}" --output="$home/logs/%x-%A_%a.out")
    command+=(${needs:+"--dependency=afterok$needs" --kill-on-invalid-dep=yes} "${@:4}" "slurm/$template.sbatch")
    command+=(--tasks "$home/$name")
    if [ -n "$number" ]; then
        echo "$name: in the queue already, job $number"
    elif [ -n "$is_dry" ]; then
        echo -n "$name:" && show "${command[@]}" && number="<$name>"
    else
        mkdir -p -- "$home/logs"
        number=$("${command[@]}") && number=${number%%;*} && echo "$number" >"$home/$name.job"
        echo "$name: job $number, tasks ${waiting[$name]} of ${count[$name]}${needs:+, after$needs}"
    fi
    job[$name]=$number
}

# What the road is made of.
cohort=$WORK/$COHORT
where=("$(setting work_dir "$WORK")" "${DATA[@]}")
made=$cohort/cohort.json
for part in gan/train unet/train unet/validation; do [ -e "$cohort/shards/$part/manifest.json" ] || made=''; done
task prepare "$made" "${where[@]}" "${PREPARE[@]}"
gans=()
for variant in "${VARIANTS[@]}"; do
    for seed in "${SEEDS[@]}"; do
        run=$WORK/runs/$variant-seed-$seed
        gans+=("$run")
        task train_gan "$run/finished.json" --run_dir "$run" "variant=$variant" "${where[@]}" "${GAN[@]}" "train.seed=$seed"
        commands=(generate "$(setting run "$run")" "${GENERATE[@]}")
        if [ -n "$MEDICALNET" ]; then
            commands+=('' evaluate evaluate=image "name=${run##*/}" "$(setting image.synthetic "$run/synthetic")")
            commands+=("$(setting image.weights "$MEDICALNET")" "${where[@]}")
            commands+=("$(setting out "$WORK/results/image-${run##*/}.json")")
        fi
        task generate "$run/synthetic/manifest.json" "${commands[@]}"
    done
done
for source in "${SOURCES[@]}"; do
    froms=("${gans[@]}")
    [ "$source" != real ] || froms=('')
    for from in "${froms[@]}"; do
        for seed in "${UNET_SEEDS[@]}"; do
            name=$source${from:+-${from##*/}}-unet-$seed
            run=$WORK/runs/unet-$name
            words=(--run_dir "$run" "data.source=$source" "${where[@]}" "${UNET[@]}" "unet.seed=$seed")
            task train_unet "$run/finished.json" "${words[@]}" ${from:+"$(setting synthetic "$from/synthetic")"}
            words=(segment "$(setting run "$run")" split=test "${where[@]}" "${SEGMENT[@]}")
            words+=("$(setting out "$run/predictions")" '' evaluate evaluate=segmentation "name=$name" split=test)
            words+=("$(setting predictions "$run/predictions")" "${where[@]}")
            task evaluate "$WORK/results/$name.json" "${words[@]}" "$(setting out "$WORK/results/$name.json")"
        done
    done
done
task evaluate "$WORK/results/threshold.json" evaluate evaluate=threshold name=threshold split=test "${where[@]}" \
    "$(setting out "$WORK/results/threshold.json")"
[ "${#waiting[@]}" -eq 0 ] && page=$WORK/report/index.html || page=''
printf -v runs ',"%s"' "${gans[@]//\"/\\\"}"
task report "$page" report "${where[@]}" "runs=[${runs:1}]"

stage prepare prepare '' "${SBATCH_PREPARE[@]}"
stage train_gan train_gan prepare "${SBATCH_GAN[@]}"
stage generate evaluate train_gan "${SBATCH_EVALUATE[@]}"
stage train_unet train_unet 'prepare generate' "${SBATCH_UNET[@]}"
stage evaluate evaluate 'train_unet generate' "${SBATCH_EVALUATE[@]}"
stage report evaluate 'train_gan generate train_unet evaluate' "${SBATCH_EVALUATE[@]}"
