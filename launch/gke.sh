#!/usr/bin/env bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/common.sh

usage='usage: launch/gke.sh --image=… --bucket=… --config=… --workdir=/bucket/… [--config.x=…] [options]

Trains on the GPUs of a Kubernetes cluster with JobSet, by launch/gke.yaml, and waits for the end. After Ctrl-C the same
command waits for it again; Kubernetes itself starts it again after an interruption. The cluster is the one that kubectl
is set to.

  --image=…             built from launch/Dockerfile
  --bucket=…            of Google Cloud Storage: the folder /bucket in the pods, for the workdir and the data
  --name=cvsa           of the JobSet
  --pods=1              how many, one on each node
  --gpus=8              of each node
  --accelerator=…       the node label cloud.google.com/gke-accelerator, by default nvidia-h100-80gb
  --service-account=…   of Kubernetes, with access to the bucket; default by default
  --delete              delete the JobSet at the end, whatever the end was
  --dry-run             only print the commands, as if all went well'
valued='image bucket name pods gpus accelerator service_account' switches='delete dry_run'
image='' bucket='' name=cvsa pods=1 gpus=8 accelerator=nvidia-h100-80gb service_account=default delete=''
parse "$@"
[[ $image && $bucket ]] || wrong '--image and --bucket are needed'
whole pods 1
whole gpus 1
needs kubectl 'install it, https://kubernetes.io/docs/tasks/tools, and connect it to the cluster'

trap 'echo "The training goes on; the same command waits for it again." >&2; exit 130' INT TERM

# shellcheck disable=SC2016
manifest() {
    local text argument list=''
    for argument in "${train[@]}"; do
        argument=${argument//\\/\\\\}
        list+=$'\n'"                    - \"${argument//\"/\\\"}\""
    done
    text=$(<launch/gke.yaml)
    text=${text//'${NAME}'/"$name"}
    text=${text//'${IMAGE}'/"$image"}
    text=${text//'${PODS}'/"$pods"}
    text=${text//'${GPUS}'/"$gpus"}
    text=${text//'${ACCELERATOR}'/"$accelerator"}
    text=${text//'${SERVICE_ACCOUNT}'/"$service_account"}
    text=${text//'${BUCKET}'/"$bucket"}
    # Last, so that nothing in an argument is taken for a name to fill in.
    text=${text//$'\n                    - ${TRAIN}'/"$list"}
    echo "$text"
}

# The JobSet's conditions that are true.
state() {
    run kubectl get jobset "$name" --ignore-not-found \
        --output='jsonpath={.status.conditions[?(@.status=="True")].type}'
}

ended() {
    [[ " $now " == *' Completed '* || " $now " == *' Failed '* ]]
}

now=$(state) || die 'kubectl does not reach a cluster with JobSet: https://jobset.sigs.k8s.io/docs/installation'
# What has ended would stay so.
! ended || run kubectl delete jobset "$name"
run kubectl apply --filename=- < <(manifest)
[[ ! $dry_run ]] || manifest
echo "the log: kubectl logs --follow --container=train job/$name-train-0" >&2
while now=$(state) && [[ ! $dry_run ]] && ! ended; do
    sleep "${POLL_SECONDS:-30}"
done

code=0
if [[ " $now " == *' Failed '* ]]; then
    codes=$(kubectl get pods --selector="jobset.sigs.k8s.io/jobset-name=$name" \
        --output='jsonpath={.items[*].status.containerStatuses[?(@.name=="train")].state.terminated.exitCode}')
    for code in $codes 1; do
        ((code == 0 || code == INTERRUPTED)) || break
    done
    echo "error: failed with exit code $code; see kubectl describe jobset $name" >&2
fi
[[ ! $delete ]] || run kubectl delete jobset "$name"
exit "$code"
