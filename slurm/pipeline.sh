#!/bin/bash
# The whole paper as a chain of jobs: prepare, GANs, studies, reports. Called again it submits what is not finished and
# not in the queue; a stage that fails cancels those after it, and the next call names it.
#
#     slurm/pipeline.sh [--dry-run] [--until STAGE] [SETTINGS]
#
# SETTINGS: a file with lines like the next ones, for what is different from them; slurm/phantom.settings and
# slurm/pairs.settings are examples. --dry-run submits nothing and sums GPU-hours and starts.
WORK=work
NAME=paper                           # of the chain; several with VARIANTS of their own may share WORK
COHORT=pegasus                       # data.name; its folder is WORK/COHORT
DATA=(data=pegasus)                  # for every command that reads the cohort; data.root=DIR belongs to PREPARE
TEST_COHORTS=()                      # folders of further cohorts, prepared before, on which the U-Nets are tested too
VARIANTS=(gp sn sn_mp c_sn_mp)       # GANs, each with every seed; 'dpgan variant.dp.noise_multiplier=0.5' is one too
SEEDS=(1 2 3)                        # of the GANs; the GANs of one seed are one study: the paper's tables, once
PREPARE=() GAN=() STUDY=()           # settings of one command; of the U-Nets too: STUDY=('seeds=[1,2,3]')
IMAGE=()                             # of evaluate=image: (image.weights=FILE); empty: patches are not scored by it
CARD=                                # of launch/plan.py (A100), to estimate the GANs' hours in --dry-run
PYTHON=(.venv/bin/python)            # for that estimate
SBATCH_PREPARE=() SBATCH_GAN=() SBATCH_STUDY=() SBATCH_REPORT=() # for sbatch: --partition, --account, --gres, --time

set -euo pipefail
stages=(prepare train_gan study report)
is_dry='' until=report settings='' is_over=''
die() { echo "error: $1" >&2 && exit "${2:-2}"; }
while [ $# -gt 0 ]; do
    case $1 in
        --dry-run) is_dry=yes ;;
        --until) [ $# -gt 1 ] || die "--until: name one of ${stages[*]}" && until=$2 && shift ;;
        -*) die "$1: know only --dry-run and --until STAGE" ;;
        *) [ -f "$1" ] || die "$1: no such file of settings" && settings=$(realpath -- "$1") ;;
    esac
    shift
done
[[ " ${stages[*]} " == *" $until "* ]] || die "--until $until: choose from ${stages[*]}"
cd "$(dirname -- "${BASH_SOURCE[0]}")/.."
# SEEDS=1 would change the first of three seeds alone, and SEED=(1) nothing.
check_settings() {
    local before name attributes
    local lists=' DATA TEST_COHORTS VARIANTS SEEDS PREPARE GAN STUDY IMAGE PYTHON '
    lists+='SBATCH_PREPARE SBATCH_GAN SBATCH_STUDY SBATCH_REPORT '
    before=" $(compgen -A variable | tr '\n' ' ') BASH_REMATCH PIPESTATUS REPLY "
    # shellcheck disable=SC2086
    unset $lists
    # shellcheck source=/dev/null
    . "$settings" >/dev/null
    for name in $(compgen -A variable | grep '^[A-Z]'); do
        attributes=$(declare -p "$name") && attributes=${attributes#declare -} && attributes=${attributes%% *}
        if [[ $lists == *" $name "* ]]; then
            [[ $attributes == *a* ]] || die "$settings: $name is a list: $name=(...)"
        elif [[ $before != *" $name "* && $attributes != *x* ]]; then
            die "$settings: $name is no setting of slurm/pipeline.sh; write a variable of your own in lower case"
        fi
    done
}
[ -z "$settings" ] || (check_settings) || exit $?
# shellcheck source=/dev/null
[ -z "$settings" ] || . "$settings"
[ -n "$is_dry" ] || command -v sbatch >/dev/null || die "no sbatch here: log in where Slurm is"
home=$(realpath -m -- "$WORK/pipeline/$NAME")

# All of one's jobs, since of a job that Slurm has forgotten it tells as of a controller that is down: exit 1.
queue=$(squeue --noheader --user="$(id -un)" --format=%F 2>&1) || {
    [ -n "$is_dry" ] || die "what is in the queue is not known, so nothing was submitted: ${queue##*$'\n'}" 6
    echo "note: what is in the queue is not known: ${queue##*$'\n'}" >&2 && queue=''
}
export VESSELGAN_FAILURES=$home/failures
mapfile -t failures < <(cat -- "$VESSELGAN_FAILURES"/* 2>/dev/null)
[ "${#failures[@]}" -eq 0 ] || printf 'last time: %s\n' "${failures[@]}"
[ -n "$is_dry" ] || rm -rf -- "$VESSELGAN_FAILURES"

# key="value" and key=["value",...] as Hydra reads them back, whatever the values are.
setting() { printf '%s="%s"' "$1" "${2//\"/\\\"}"; }
list() {
    local key=$1 value text=''
    for value in "${@:2}"; do text+=",\"${value//\"/\\\"}\""; done
    printf '%s=[%s]' "$key" "${text:1}"
}

# Words as a shell reads them back.
show() {
    local word
    for word in "$@"; do
        [[ $word =~ ^[][[:alnum:]_=./,:+@%-]+$ ]] && printf ' %s' "$word" || printf ' %s' "${word@Q}"
    done
    echo
}

# task STAGE PRODUCT WORD...: one more task of the stage, done when PRODUCT is there.
declare -A count=() waiting=() words_of=() job=()
task() {
    local stage=$1 product=$2 number=${count[$1]:-0}
    count[$stage]=$((number + 1))
    [ ! -e "$product" ] || return 0
    waiting[$stage]+=${waiting[$stage]:+ }$number
    words_of[$stage $number]=$(printf '%s\n' "${@:3}")
}

# What became of a job, as far as Slurm still knows.
end_of() {
    local state
    state=$(sacct --noheader --allocations --parsable2 --format=State --jobs="$1" 2>/dev/null | grep .) ||
        state=$(scontrol show job --oneliner "$1" 2>/dev/null | grep -o 'JobState=[^ ]*') || state=UNKNOWN
    echo "${state#*=}"
}

# Find the stage's last submission in the queue, or say how its tasks ended that are neither finished nor reported.
look_back() {
    local name=$1 number='' folder='' task log
    { read -r number && read -r folder; } 2>/dev/null <"$home/$name.job" || return 0
    [[ $'\n'$queue$'\n' != *$'\n'$number$'\n'* ]] || job[$name]=$number
    for task in ${waiting[$name]}; do
        log=$home/logs/$name-${number}_$task.out
        if [ "$(cat -- "$folder/$task" 2>/dev/null)" != "${words_of[$name $task]}" ]; then
            [ -n "${job[$name]:-}" ] || continue
            # What comes after would find less than it needs.
            is_over=yes && echo "$name: task $task is not what job $number does; call again when that has ended"
        elif [[ -z ${job[$name]:-} && -f $log && ${failures[*]} != *"(job ${number}_$task,"* ]]; then
            echo "last time: error: stage $name (job ${number}_$task) ended as $(end_of "${number}_$task"), see $log"
        fi
    done
}

# submit NAME WORD...: the stage's waiting tasks, their words in a folder that no later call writes to.
submit() {
    local name=$1 folder task
    mkdir -p -- "$home/logs"
    folder=$(mktemp -d -- "$home/$name.XXXXXX")
    for task in ${waiting[$name]}; do printf '%s\n' "${words_of[$name $task]}" >"$folder/$task"; done
    job[$name]=$("${@:2}" "$folder") || {
        rm -r -- "$folder"
        die "stage $name was refused by sbatch (above); the stages before it stay in the queue: mend it and call again"
    }
    job[$name]=${job[$name]%%;*}
    printf '%s\n' "${job[$name]}" "$folder" >"$home/$name.job"
}

# asked OPTION TEMPLATE SBATCH-OPTION...: what sbatch is given for it, else what the template asks for.
asked() {
    local value word before='' short=''
    case $1 in time) short=-t ;; nodes) short=-N ;; ntasks) short=-n ;; gpus) short=-G ;; esac
    value=$(sed -n "s/^#SBATCH --$1=//p" "slurm/$2.sbatch")
    for word in "${@:3}"; do
        if [[ $before == "--$1" || -n $short && $before == "$short" ]]; then
            value=$word
        elif [[ $word == --"$1"=* ]]; then
            value=${word#*=}
        elif [[ -n $short && $word == "$short"?* ]]; then
            value=${word#"$short"}
        fi
        before=$word
    done
    echo "$value"
}

# count_of GRES: the GPUs of `gpu:[TYPE:]NUMBER`, and of `gpu` and `gpu:TYPE`, among resources with commas between.
count_of() {
    local item
    for item in ${1//,/ }; do
        [[ ! $item =~ ^(gres/)?gpu(:[^:]+)?:([0-9]+)$ ]] || { echo "${BASH_REMATCH[3]}"; return; }
        [[ ! $item =~ ^(gres/)?gpu(:|$) ]] || { echo 1; return; }
    done
    echo 0
}

# gpus_of TEMPLATE SBATCH-OPTION...: all GPUs of the job.
gpus_of() {
    local total nodes tasks each
    total=$(asked gpus "$@") each=$(asked gpus-per-task "$@")
    nodes=$(asked nodes "$@") && nodes=${nodes%%-*}
    if [ -n "$total" ]; then
        count_of "gpu:$total"
    elif [ -n "$each" ]; then
        tasks=$(asked ntasks "$@") each=$(count_of "gpu:$each")
        [ -n "$tasks" ] || tasks=$(($(asked ntasks-per-node "$@") * ${nodes:-1}))
        echo $((each * tasks))
    else
        each=$(asked gpus-per-node "$@")
        each=${each:+gpu:$each}
        echo $(($(count_of "${each:-$(asked gres "$@")}") * ${nodes:-1}))
    fi
}

# Hours of one GPU that a GAN of these words takes; nothing where plan knows no answer.
declare -A known=()
estimate() {
    local words=() word json='' shards=$WORK/$COHORT/shards/gan/train/manifest.json text
    for word in "$@"; do
        [[ $word != preset=* ]] || return 0
        [[ $word != variant[.=]* && $word != train.* || $word == train.seed=* ]] || words+=("$word")
    done
    text=${words[*]}
    if [ -z "${known[$text]+yes}" ]; then
        known[$text]=''
        [ ! -f "$shards" ] || json=$(tr -d '[:space:]' <"$shards")
        [[ ! $json =~ \"patch_shape\":(\[[0-9,]+\]) ]] || words+=("patch_shape=${BASH_REMATCH[1]}")
        [[ ! $json =~ \"count\":([0-9]+),\"subjects\" ]] || words+=("num_pairs=${BASH_REMATCH[1]}")
        json=$(PYTHONPATH=$PWD "${PYTHON[@]}" launch/plan.py "${words[@]}" --json) || true
        [[ ! $json =~ \"hours_by_card\":[^}]*\""$CARD"\":\ ([0-9.]+) ]] || known[$text]=${BASH_REMATCH[1]}
        [ -n "${known[$text]}" ] || echo "note: launch/plan.py knows no hours of $CARD for: $text" >&2
    fi
    hours=${known[$text]}
}

# sum_up NAME TEMPLATE SBATCH-OPTION...: the stage's GPU-hours, estimated or by its time limit, and the starts it takes.
gpu_hours=0
sum_up() {
    local name=$1 task hours lines='' gpus limit command
    limit=$(asked time "${@:2}") gpus=$(gpus_of "${@:2}")
    for task in ${waiting[$name]}; do
        hours=''
        mapfile -t command <<<"${words_of[$name $task]}"
        [[ -z $CARD || $name != train_gan ]] || estimate "${command[@]}"
        lines+="${hours:--}"$'\n'
    done
    lines=$(awk -v gpus="$gpus" -v limit="$limit" -v card="$CARD" '
        function many(n, noun) { return n " " noun (n == 1 ? "" : "s") }
        BEGIN {
            n = split(limit, d, "-"); k = split(d[n], t, ":")
            if (n > 1) most = 24 * d[1] + t[1] + t[2] / 60 + t[3] / 3600
            else most = k == 1 ? t[1] / 60 : k == 2 ? t[1] / 60 + t[2] / 3600 : t[1] + t[2] / 60 + t[3] / 3600
        }
        $1 == "-" { bound += gpus * most; tasks++ }
        $1 != "-" && NF { about += $1; left = $1 / (gpus ? gpus : 1); tasks++
            for (starts++; left > most; left -= most) starts++ }
        END {
            text = many(tasks, "task") " of " many(gpus, "GPU") ", limit " limit
            if (about) text = text sprintf(": about %.1f GPU-hours of %s, %s", about, card, many(starts, "start"))
            if (bound) text = text sprintf(": at most %.1f GPU-hours at each start", bound)
            printf "%.1f\n%s\n", about + bound, text
        }' <<<"$lines")
    echo "  $name: ${lines#*$'\n'}"
    gpu_hours=$(awk -v a="$gpu_hours" -v b="${lines%%$'\n'*}" 'BEGIN { printf "%.1f", a + b }')
}

# stage NAME TEMPLATE SBATCH-OPTION...: submit what waits, to begin after all before it.
after=''
stage() {
    local name=$1 task command
    [ -z "$is_over" ] || return 0
    [ "$name" != "$until" ] || is_over=yes
    if [ -z "${waiting[$name]:-}" ]; then echo "$name: finished (${count[$name]})" && return 0; fi
    look_back "$name"
    if [ -n "${job[$name]:-}" ]; then
        after+=:${job[$name]}
        echo "$name: in the queue already, job ${job[$name]}" && return 0
    fi
    command=(sbatch --parsable --job-name="$name" --array="${waiting[$name]// /,}" --output="$home/logs/%x-%A_%a.out")
    command+=(${after:+"--dependency=afterok$after" --kill-on-invalid-dep=yes} "${@:3}" "slurm/$2.sbatch" --tasks)
    if [ -z "$is_dry" ]; then
        submit "$name" "${command[@]}"
        echo "$name: job ${job[$name]}, tasks ${waiting[$name]// /,} of ${count[$name]}${after:+, after$after}"
        after+=:${job[$name]}
        return 0
    fi
    after+=":<$name>"
    echo -n "$name:" && show "${command[@]}" "$home/$name.XXXXXX"
    for task in ${waiting[$name]}; do
        mapfile -t command <<<"${words_of[$name $task]}"
        echo -n "  $name $task:" && show "${command[@]}"
    done
    sum_up "$name" "${@:2}"
}

# dpgan-noise_multiplier-0.5 of dpgan variant.dp.noise_multiplier=0.5.
name_of() {
    local name=$1 word key
    for word in "${@:2}"; do key=${word%%=*} && name+=-${key##*.}-${word#*=}; done
    echo "${name//[^[:alnum:]._-]/-}"
}

# The stages of the pipeline.
where=("$(setting work_dir "$WORK")" "${DATA[@]}")
made=$WORK/$COHORT/cohort.json
for part in gan/train unet/train unet/validation; do [ -e "$WORK/$COHORT/shards/$part/manifest.json" ] || made=''; done
task prepare "$made" "${where[@]}" "${PREPARE[@]}"
declare -A num_of=() is_there=()
for entry in "${VARIANTS[@]}"; do
    read -r variant _ <<<"$entry"
    num_of[$variant]=$((${num_of[$variant]:-0} + 1))
done
for seed in "${SEEDS[@]}"; do
    study=$WORK/studies/$NAME-seed-$seed out=$WORK/report/$NAME-seed-$seed runs=() images=()
    page=$study/report/index.html scored=$out/index.html
    for entry in "${VARIANTS[@]}"; do
        read -ra own <<<"$entry"
        run=$WORK/runs/$(name_of "${own[@]}")-seed-$seed
        [ -z "${is_there[$run]:-}" ] || die "${run##*/}: VARIANTS and SEEDS name this GAN twice"
        is_there[$run]=yes runs+=("$run")
        words=(--run_dir "$run" "variant=${own[0]}" "${where[@]}" "${GAN[@]}" "${own[@]:1}" "train.seed=$seed")
        task train_gan "$run/finished.json" "${words[@]}"
        [[ -e $run/finished.json && $page -nt $run/finished.json ]] || page=''
        [ "${#IMAGE[@]}" -gt 0 ] || continue
        # As the study calls its GANs: after the variant where that tells them apart.
        gan=${own[0]} && [ "${num_of[$gan]}" = 1 ] || gan+=-${run##*/}
        image=$study/results/image-${run##*/}.json && [ -e "$image" ] || scored=''
        images+=(evaluate evaluate=image "$(setting name "$gan")" "${where[@]}" "${IMAGE[@]}")
        images+=("$(setting image.synthetic "$study/gans/$gan/synthetic")" "$(setting out "$image")" '')
    done
    named=$(list runs "${runs[@]}")
    words=("name=$NAME-seed-$seed" "$named" "$(list test_cohorts "${TEST_COHORTS[@]}")" "${where[@]}" "${STUDY[@]}")
    task study "$page" "${words[@]}"
    [[ -n $page && $scored -nt $page ]] || scored=''
    words=(report "$(setting results "$study/results")" "$named" "$(list cohorts "${TEST_COHORTS[@]}")" "${where[@]}")
    task report "$scored" "${images[@]}" "${words[@]}" "$(setting error_maps "$study/errors")" "$(setting out "$out")"
done

stage prepare prepare "${SBATCH_PREPARE[@]}"
stage train_gan train_gan "${SBATCH_GAN[@]}"
stage study study "${SBATCH_STUDY[@]}"
stage report evaluate "${SBATCH_REPORT[@]}"
[ -z "$is_dry" ] || echo "sum: $gpu_hours GPU-hours"
