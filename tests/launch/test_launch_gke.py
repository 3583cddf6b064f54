"""gke.sh and gke.yaml on a stand-in for kubectl."""

import pytest
import yaml
from support.launch_site import (
    KUBECTL,
    TRAIN,
    until,
)

CLUSTER = ("--image=site/cvsa:1", "--bucket=pictures", "--name=cub", "--pods=2", "--gpus=4")


@pytest.fixture
def cluster(site):
    site.stand_in(kubectl=KUBECTL)
    return site


def verbs(site) -> list[str]:
    """What kubectl was asked to do, but for the looks at the state."""
    return [line.split()[1] for line in site.record() if " get " not in line]


def test_gke_applies_and_waits_for_the_end(cluster):
    cluster.write(states=["", "", "StartupPolicyCompleted", "Completed"])
    done = cluster.run("gke.sh", *CLUSTER, *TRAIN)
    assert done.returncode == 0
    assert done.stderr == "the log: kubectl logs --follow --container=train job/cub-train-0\n"
    assert verbs(cluster) == ["apply"]
    assert (cluster.folder / "states").read_text() == "Completed\n"


def test_gke_returns_the_code_of_the_pod_that_failed(cluster):
    cluster.write(states=["", "Failed"], codes=["0 42 3 137"])
    done = cluster.run("gke.sh", *CLUSTER, *TRAIN, "--delete")
    assert done.returncode == 3
    assert done.stderr.endswith("error: failed with exit code 3; see kubectl describe jobset cub\n")
    assert verbs(cluster) == ["apply", "delete"]


def test_gke_failure_without_a_pod_is_a_failure(cluster):
    cluster.write(states=["", "Failed"], codes=[])
    assert cluster.run("gke.sh", *CLUSTER, *TRAIN).returncode == 1


def test_gke_replaces_a_jobset_that_has_ended(cluster):
    cluster.write(states=["Failed", "", "Completed"])
    assert cluster.run("gke.sh", *CLUSTER, *TRAIN).returncode == 0
    assert verbs(cluster) == ["delete", "apply"]


def test_gke_needs_jobset_in_the_cluster(cluster):
    done = cluster.run("gke.sh", *CLUSTER, *TRAIN)
    assert done.returncode == 2
    assert done.stderr.startswith("error: kubectl does not reach a cluster with JobSet: https://jobset.sigs.k8s.io/")
    assert verbs(cluster) == []


def test_gke_training_outlives_the_script(cluster):
    cluster.write(states=[""])
    process = cluster.start("gke.sh", *CLUSTER, *TRAIN)
    until(lambda: "apply" in verbs(cluster) and " get " in cluster.record()[-1])
    process.terminate()
    assert process.communicate(timeout=60)[1].endswith("The training goes on; the same command waits for it again.\n")
    assert process.returncode == 130
    assert verbs(cluster) == ["apply"]


def test_gke_dry_run(cluster):
    shown = cluster.run("gke.sh", "--dry-run", *CLUSTER, *TRAIN, "--delete")
    lines = shown.stdout.splitlines()
    state = (
        "kubectl get jobset cub --ignore-not-found "
        """'--output=jsonpath={.status.conditions[?(@.status=="True")].type}'"""
    )
    assert lines[:2] == [state, "kubectl apply --filename=-"]
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
        pytest.param(42, False, "RestartJobSetAndIgnoreMaxRestarts", id="interrupted"),
        pytest.param(143, True, "RestartJobSetAndIgnoreMaxRestarts", id="evicted"),
        pytest.param(1, False, "FailJobSet", id="failed"),
        pytest.param(137, False, "FailJobSet", id="killed"),
    ),
)
def test_gke_restarts_only_after_an_interruption(jobset, code, evicted, action):
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
