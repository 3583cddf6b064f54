"""tpu_pod.sh and tpu_host.sh on a stand-in for Google Cloud, whose hosts are folders."""

import re
import shutil
import signal

import pytest
from support.launch_site import (
    GCLOUD,
    GCSFUSE,
    MOUNTPOINT,
    TPU,
    TRAIN,
    UV,
    until,
)

NEW = (*TPU, "--type=v6e-16", "--runtime=v2-alpha-tpuv6e", "--spot")
BUCKET = (TRAIN[0], "--workdir=gs://bucket/runs/x", "--config.views.source_area=(0.2, 0.3)")
HOSTS = ("0", "1")
PYTHON = "JAX_PLATFORMS=tpu,cpu python"


def host_training(host) -> str:
    return (
        f"{PYTHON} -m cvsa_jax.main --config=configs/folder.py:small "
        f"--workdir=SITE/hosts/{host}/gcs/bucket/runs/x --config.views.source_area=(0.2, 0.3)"
    )


@pytest.fixture
def cloud(site):
    if not (shutil.which("flock") and shutil.which("setsid")):
        pytest.skip("the hosts of a TPU run Linux")
    site.stand_in(gcloud=GCLOUD, uv=UV, gcsfuse=GCSFUSE, mountpoint=MOUNTPOINT)
    site.write(grant=["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"])
    return site


def trainings(site, host: str) -> list[str]:
    """The training commands that a host ran."""
    return [line for line in site.record(host) if line.startswith(PYTHON)]


def calls(site, words: str) -> int:
    """How many commands for Google Cloud hold these words."""
    return sum(f" {words} " in f"{line} " for line in site.record())


def test_tpu_is_created_trains_on_all_hosts_and_is_deleted(cloud):
    cloud.write(ends_0=[0], ends_1=[0])
    done = cloud.run("tpu_pod.sh", *NEW, *BUCKET, "--delete")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "training 0\n"  # the log of the first host
    assert done.stderr.splitlines() == ["waiting for cub: WAITING_FOR_RESOURCES ", "waiting for cub: PROVISIONING "]
    for host in HOSTS:
        installed, *_, mounted, trained = cloud.record(host)
        assert installed.startswith("uv venv ")
        assert mounted.startswith("gcsfuse ") and mounted.endswith(" bucket ~/gcs/bucket")
        assert trained == host_training(host)
    assert not (cloud.folder / "queue").exists()  # deleted
    assert not list(cloud.folder.glob("cvsa_jax.*"))


def test_tpu_that_exists_is_used_and_kept_and_its_data_is_copied_once(cloud):
    cloud.run("gcloud compute tpus queued-resources create cub")
    (cloud.folder / "record").unlink()
    (cloud.repository / "maps").mkdir()
    cloud.write(ends_0=[0, 0], ends_1=[0, 0], queue=["ACTIVE"])
    command = ("tpu_pod.sh", *TPU, *BUCKET, "--data=gs://bucket/birds,maps")
    for _ in range(2):
        done = cloud.run(*command)
        assert done.returncode == 0, done.stderr
        assert done.stderr.splitlines()[-1].startswith("cub still exists and is billed")
    assert calls(cloud, "create") == calls(cloud, "delete") == 0
    assert calls(cloud, "scp maps") == 1
    for host in HOSTS:
        assert trainings(cloud, host) == [host_training(host)] * 2
        assert [line.split()[3] for line in cloud.record(host) if "storage cp" in line] == ["gs://bucket/birds"]
        assert sorted(folder.name for folder in (cloud.folder / f"hosts/{host}/cvsa_jax/data").iterdir()) == [
            ".copied-birds",
            ".copied-maps",
            "birds",
            "maps",
        ]


def test_tpu_restarts_an_interrupted_training(cloud):
    cloud.write(ends_0=[42, 0], ends_1=[42, 0], grant=["ACTIVE"])
    done = cloud.run("tpu_pod.sh", *NEW, *BUCKET)
    assert done.returncode == 0, done.stderr
    assert "interrupted: restart 1 of at most 100\n" in done.stderr
    for host in HOSTS:
        assert trainings(cloud, host) == [host_training(host)] * 2


def test_tpu_taken_away_is_requested_again(cloud):
    cloud.write(ends_0=["taken", 0], ends_1=["hang", 0], grant=["ACTIVE"])
    done = cloud.run("tpu_pod.sh", *NEW, *BUCKET)
    assert done.returncode == 0, done.stderr
    assert "the TPU was taken away: restart 1 of at most 100\n" in done.stderr
    assert calls(cloud, "create") == 2
    assert calls(cloud, "delete") == 1
    for host in HOSTS:
        assert trainings(cloud, host) == [host_training(host)] * 2


def test_tpu_taken_away_too_often_ends_the_script(cloud):
    cloud.write(ends_0=["taken"], ends_1=["taken"], grant=["ACTIVE"])
    done = cloud.run("tpu_pod.sh", *NEW, *BUCKET, "--max-restarts=0", "--delete")
    assert done.returncode == 42
    assert "the TPU was taken away once more after 0 restarts (--max-restarts); the same command goes on" in done.stderr
    assert not (cloud.folder / "queue").exists()


def test_tpu_stops_all_hosts_when_one_fails(cloud):
    cloud.write(ends_0=["deaf"], ends_1=[3], grant=["ACTIVE"])
    done = cloud.run("tpu_pod.sh", *NEW, *BUCKET)
    assert done.returncode == 3
    assert "error: failed with exit code 3\n" in done.stderr
    assert re.search(r"^\S+: training 1$", done.stdout, re.MULTILINE)  # the end of its log
    for host in HOSTS:
        lock = cloud.folder / f"hosts/{host}/cvsa_jax/train.lock"
        assert cloud.run(f"flock --nonblock {lock} true").returncode == 0  # a training holds it as long as it lives
        assert trainings(cloud, host) == [host_training(host)]


def test_tpu_script_fails_when_a_host_cannot_be_set_up(cloud):
    cloud.stand_in(uv="exit 1")
    cloud.write(grant=["ACTIVE"])
    done = cloud.run("tpu_pod.sh", *NEW, *BUCKET)
    assert done.returncode == 1
    assert "error: failed with exit code 1\n" in done.stderr
    assert not any(trainings(cloud, host) for host in HOSTS)


def test_tpu_training_outlives_the_script_and_is_followed_again(cloud):
    cloud.write(ends_0=["until go"], ends_1=["until go"], grant=["ACTIVE"])
    process = cloud.start("tpu_pod.sh", *NEW, *BUCKET)
    until(lambda: (cloud.folder / "waiting").exists() and all(trainings(cloud, host) for host in HOSTS))
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1].endswith("The training goes on; the same command follows it again.\n")
    assert process.returncode == 130

    before = len(cloud.record())
    process = cloud.start("tpu_pod.sh", *NEW, *BUCKET)
    until(lambda: {"log", "wait"} <= {line.split()[-2] for line in cloud.record()[before:]})
    (cloud.folder / "go").touch()
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    assert out == "training 0\n"
    for host in HOSTS:
        assert trainings(cloud, host) == [host_training(host)]


def test_tpu_script_reconnects_to_a_running_training(cloud):
    cloud.write(ends_0=["until cut.over"], ends_1=["until cut.over"], grant=["ACTIVE"], cut=[])
    process = cloud.start("tpu_pod.sh", *NEW, *BUCKET)
    until(lambda: calls(cloud, "launch/tpu_host.sh wait") == 2)
    (cloud.folder / "cut.over").touch()
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 0, error
    assert "the connection was lost: restart 1 of at most 100\n" in error
    for host in HOSTS:
        assert trainings(cloud, host) == [host_training(host)]


def test_tpu_script_asks_again_after_a_failure_of_gcloud(cloud):
    cloud.write(ends_0=[0], ends_1=[0], grant=["ACTIVE"], offline=[])
    done = cloud.run("tpu_pod.sh", *NEW, *BUCKET)
    assert done.returncode == 0, done.stderr
    assert "ERROR: no network\nwaiting for cub: ? \n" in done.stderr
    # A failed question is no answer that the TPU is missing.
    assert calls(cloud, "create") == 1


def test_tpu_request_that_failed_is_an_error(cloud):
    cloud.write(queue=["FAILED"])
    done = cloud.run("tpu_pod.sh", *NEW, *BUCKET)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the request for cub failed; the reason: gcloud compute tpus queued-resources")


def test_tpu_script_needs_a_type_to_create_a_tpu(cloud):
    done = cloud.run("tpu_pod.sh", *TPU, *BUCKET)
    assert done.returncode == 2
    assert done.stderr == "error: there is no queued resource cub in z: give --type and --runtime to create it\n"


def test_tpu_dry_run(cloud):
    (cloud.repository / "maps").mkdir()
    shown = cloud.run("tpu_pod.sh", "--dry-run", *NEW, *TRAIN, "--data=gs://bucket/birds,maps", "--delete")

    def ssh(worker, command: str) -> str:
        return f"gcloud compute tpus tpu-vm ssh cub --worker={worker} '--command={command}' --zone=z"

    def host(worker, command: str) -> str:
        return ssh(worker, f"cd cvsa_jax && launch/tpu_host.sh {command}")

    assert cloud.plain(shown.stdout) == [
        "gcloud compute tpus queued-resources describe cub '--format=value(state.state)' --zone=z",
        "gcloud compute tpus queued-resources create cub --node-id=cub --accelerator-type=v6e-16 "
        "--runtime-version=v2-alpha-tpuv6e --spot --zone=z",
        ssh(
            "all",
            "if [ -e cvsa_jax ]; then cvsa_jax/launch/tpu_host.sh running --config=configs/folder.py:small "
            "--workdir=runs/x; else echo idle; fi",
        ),
        "tar --exclude=__pycache__ -czf SITE/cvsa_jax.0/code.tgz cvsa_jax configs launch setup.sh requirements.txt",
        "gcloud compute tpus tpu-vm scp SITE/cvsa_jax.0/code.tgz cub:cvsa_jax.tgz --worker=all --zone=z",
        ssh("all", "mkdir -p cvsa_jax && tar -xzf cvsa_jax.tgz -C cvsa_jax"),
        host("all", "setup"),
        host("all", "download gs://bucket/birds"),
        host("all", "missing maps"),
        "gcloud compute tpus tpu-vm scp maps cub:cvsa_jax/data/ --recurse --worker=all --zone=z",
        host("all", "copied maps"),
        host("all", "stop"),
        host("all", "start --config=configs/folder.py:small --workdir=runs/x"),
        host(0, "log"),
        host("all", "wait"),
        "gcloud compute tpus queued-resources delete cub --force --quiet --zone=z",
    ]
    assert shown.returncode == 0
    assert shown.stderr == ""
    assert cloud.record() == []


def test_tpu_refuses_a_second_training(cloud):
    cloud.write(ends_0=["hang"], ends_1=["hang"])
    first = cloud.start("tpu_pod.sh", *BUCKET, *NEW)
    until(lambda: (cloud.folder / "waiting").exists())
    first.terminate()
    first.communicate(timeout=60)
    other = cloud.run("tpu_pod.sh", "--config=configs/cub.py", "--workdir=runs/y", *NEW, "--delete")
    assert other.returncode == 2
    assert "error: another training runs on cub: --config=configs/folder.py:small --workdir=gs://bucket" in other.stderr
    assert calls(cloud, "delete") == 0
    cloud.run("gcloud compute tpus queued-resources delete cub")  # which ends the training


def test_tpu_refuses_two_data_sources_of_one_name(cloud):
    for folder in ("a", "b"):
        (cloud.repository / folder / "birds").mkdir(parents=True)
        (cloud.repository / folder / "birds" / f"{folder}.jpg").touch()
    cloud.write(ends_0=[0], ends_1=[0])
    assert cloud.run("tpu_pod.sh", *BUCKET, *NEW, "--data=a/birds").returncode == 0
    refused = cloud.run("tpu_pod.sh", *BUCKET, *NEW, "--data=b/birds")
    assert refused.returncode != 0
    assert "error: data/birds is a copy of a/birds, and not of b/birds: rename one of them" in refused.stderr
    for host in HOSTS:
        assert [file.name for file in (cloud.folder / f"hosts/{host}/cvsa_jax/data/birds").iterdir()] == ["a.jpg"]
