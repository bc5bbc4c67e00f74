# What the job scripts share; they source this file. It activates the environment, runs commands one after the other,
# and puts a job that nears its time limit back into the queue. Nothing in it has to be changed.

MAX_REQUEUES=${MAX_REQUEUES:-50}  # against a job whose first epoch takes longer than its time limit

if [ -n "${ACTIVATE:-}" ] && [ -f "$ACTIVATE" ]; then
  set +u  # these scripts may use names that are not set
  . "$ACTIVATE"
  set -u
fi
PYTHON=${PYTHON:-python}
if ! "$PYTHON" -c 'import brainlib' 2>/dev/null; then
  echo "$PYTHON has no brainlib: set ACTIVATE to the activation script of the environment that has it" >&2
  exit 1
fi
# Threads as the processors that SLURM gave, not as those of the whole machine.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}

# The number that scontrol knows: of one task of an array, not of the whole array.
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
  JOB=${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}
else
  JOB=${SLURM_JOB_ID:?this script runs under SLURM: give it to sbatch}
fi

requeue() {
  if [ "${SLURM_RESTART_COUNT:-0}" -ge "$MAX_REQUEUES" ]; then
    echo "job $JOB nears its time limit and was requeued $MAX_REQUEUES times already: not again" >&2
    return 0  # "return" alone would be that of the command that the signal interrupted
  fi
  echo "job $JOB nears its time limit: back into the queue, to go on from the last finished epoch"
  scontrol requeue "$JOB" || echo "job $JOB could not be requeued" >&2  # SLURM now ends what runs here
}
trap requeue USR1

# Run a command so that bash can hear the signal meanwhile.
run() {
  local child status=0
  echo "+ $*"
  "$@" &
  child=$!
  wait "$child" || status=$?
  while kill -0 "$child" 2>/dev/null; do  # it was the signal that ended the waiting, not the command
    status=0
    wait "$child" || status=$?
  done
  return "$status"
}

# The number of this task's combination among N; without an array, the numbers of all.
share() {
  if [ -z "${SLURM_ARRAY_TASK_ID:-}" ]; then
    seq 0 "$(($1 - 1))"
  elif [ "$SLURM_ARRAY_TASK_ID" -lt "$1" ]; then
    echo "$SLURM_ARRAY_TASK_ID"
  else
    echo "nothing to do: there are $1 combinations, sbatch --array=0-$(($1 - 1)) is enough" >&2
  fi
}
