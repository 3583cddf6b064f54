"""gke.sh and gke.yaml on a stand-in for kubectl."""

import pytest
import yaml
from support.launch_site import (
    KUBECTL,
    TRAIN,
    until,
)

CLUSTER = ("--image=site/cvsa:1", "--bucket=pictures", "--name=cub", "--pods=2", "--gpus=4")
STATE = 'kubectl get jobset cub --ignore-not-found --output=jsonpath={.status.conditions[?(@.status=="True")].type}'
APPLY = "kubectl apply --filename=-"
CODES = (
    "kubectl get pods --selector=jobset.sigs.k8s.io/jobset-name=cub --output=jsonpath="
    '{.items[*].status.containerStatuses[?(@.name=="train")].state.terminated.exitCode}'
)


@pytest.fixture
def cluster(site):
    site.stand_in(kubectl=KUBECTL)
    return site


def test_gke_applies_and_waits(cluster):
    cluster.write(states=["", "", "StartupPolicyCompleted", "Completed"])
    done = cluster.run("gke.sh", *CLUSTER, *TRAIN)
    assert done.returncode == 0
    assert done.stderr == "the log: kubectl logs --follow --container=train job/cub-train-0\n"
    assert cluster.record() == [STATE, APPLY, STATE, STATE, STATE]


def test_gke_gives_back_the_code_of_the_pod_that_failed(cluster):
    cluster.write(states=["", "Failed"], codes=["0 42 3 137"])
    done = cluster.run("gke.sh", *CLUSTER, *TRAIN, "--delete")
    assert done.returncode == 3
    assert done.stderr.endswith("error: failed with exit code 3; see kubectl describe jobset cub\n")
    assert cluster.record() == [STATE, APPLY, STATE, CODES, "kubectl delete jobset cub"]


def test_gke_failure_without_a_pod_is_a_failure(cluster):
    cluster.write(states=["", "Failed"], codes=[])
    assert cluster.run("gke.sh", *CLUSTER, *TRAIN).returncode == 1


def test_gke_starts_what_had_ended_again(cluster):
    cluster.write(states=["Failed", "", "Completed"])
    assert cluster.run("gke.sh", *CLUSTER, *TRAIN).returncode == 0
    assert cluster.record() == [STATE, "kubectl delete jobset cub", APPLY, STATE, STATE]


def test_gke_without_jobset_in_the_cluster(cluster):
    done = cluster.run("gke.sh", *CLUSTER, *TRAIN)
    assert done.returncode == 2
    assert done.stderr.startswith("error: kubectl does not reach a cluster with JobSet: https://jobset.sigs.k8s.io/")
    assert cluster.record() == [STATE]


def test_gke_can_be_left_and_goes_on(cluster):
    cluster.write(states=[""])
    process = cluster.start("gke.sh", *CLUSTER, *TRAIN)
    until(lambda: cluster.record().count(STATE) > 2)
    process.terminate()
    assert process.communicate(timeout=20)[1].endswith("The training goes on; the same command waits for it again.\n")
    assert process.returncode == 130
    assert "kubectl delete jobset cub" not in cluster.record()


def test_gke_dry_run(cluster):
    shown = cluster.run("gke.sh", "--dry-run", *CLUSTER, *TRAIN, "--delete")
    lines = shown.stdout.splitlines()
    state = STATE.replace("--output=", "'--output=") + "'"
    assert lines[:2] == [state, APPLY]
    assert lines[-2:] == [state, "kubectl delete jobset cub"]
    assert yaml.safe_load("\n".join(lines[2:-2]))["kind"] == "JobSet"
    assert shown.returncode == 0
    assert cluster.record() == []


@pytest.fixture
def jobset(cluster):
    cluster.write(states=["Completed"])
    odd = '--config.init_from=a "b" \\ & ${NAME}'
    cluster.run("gke.sh", *CLUSTER, *TRAIN, odd, "--accelerator=nvidia-l4", "--service-account=trainer")
    return yaml.safe_load((cluster.folder / "applied.yaml").read_text()), odd


def test_gke_pods_get_the_training_command(jobset):
    manifest, odd = jobset
    (train,) = manifest["spec"]["replicatedJobs"]
    job = train["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    assert (job["completionMode"], job["completions"], job["parallelism"]) == ("Indexed", 2, 2)
    assert container["command"] == ["python", "-m", "cvsa_jax.main"]
    # JobSet's host name of a pod: <jobset>-<replicated job>-<job>-<pod>.<jobset>
    assert container["args"] == [
        *TRAIN,
        odd,
        f"--coordinator={manifest['metadata']['name']}-{train['name']}-0-0.{manifest['metadata']['name']}:12321",
        "--num_processes=2",
        "--process_id=$(JOB_COMPLETION_INDEX)",
    ]
    assert container["image"] == "site/cvsa:1"
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 4}


def test_gke_pods_share_the_bucket_and_have_time_to_save(jobset):
    manifest, _ = jobset
    template = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    pod = template["spec"]
    assert template["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
    assert pod["volumes"][0]["csi"]["volumeAttributes"]["bucketName"] == "pictures"
    assert pod["containers"][0]["volumeMounts"][0] == {"name": "bucket", "mountPath": "/bucket"}
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-l4"}
    assert pod["serviceAccountName"] == "trainer"
    assert pod["terminationGracePeriodSeconds"] >= 60


@pytest.mark.parametrize(
    ("code", "evicted", "action"),
    (
        (42, False, "RestartJobSetAndIgnoreMaxRestarts"),
        (42, True, "RestartJobSetAndIgnoreMaxRestarts"),
        (143, True, "RestartJobSetAndIgnoreMaxRestarts"),
        (1, False, "FailJobSet"),
        (2, False, "FailJobSet"),
        (137, False, "FailJobSet"),
    ),
)
def test_gke_restarts_after_an_interruption_alone(jobset, code, evicted, action):
    """The rules read as Kubernetes and JobSet document them: the first that fits counts."""
    spec = jobset[0]["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # pod failure policies need it
    assert job["backoffLimit"] == 0
    reason = "BackoffLimitExceeded"
    for rule in job["podFailurePolicy"]["rules"]:
        codes, conditions = rule.get("onExitCodes"), rule.get("onPodConditions", ())
        if codes:
            assert (codes["containerName"], codes["operator"]) == ("train", "In")
        if (codes and code in codes["values"]) or (
            evicted and {"type": "DisruptionTarget", "status": "True"} in conditions
        ):
            assert rule["action"] == "FailJob"
            reason = "PodFailurePolicy"
            break
    rules = spec["failurePolicy"]["rules"]
    assert next(r["action"] for r in rules if reason in r.get("onJobFailureReasons", [reason])) == action
