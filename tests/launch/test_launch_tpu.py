"""tpu_pod.sh and tpu_host.sh on a stand-in for Google Cloud, whose hosts are folders."""

import itertools
import re
import shutil
import signal
import time

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
ARGUMENTS = "--config=configs/folder.py:small --workdir=gs://bucket/runs/x '--config.views.source_area=(0.2, 0.3)'"
QUEUE = "gcloud compute tpus queued-resources"
LOOK = f"{QUEUE} describe cub --format=value(state.state) --zone=z"
LOOK_READY = [LOOK, "gcloud compute tpus tpu-vm describe cub --format=value(state) --zone=z"]
CREATE = f"{QUEUE} create cub --node-id=cub --accelerator-type=v6e-16 --runtime-version=v2-alpha-tpuv6e --spot --zone=z"
DELETE = f"{QUEUE} delete cub --force --quiet --zone=z"
RUNNING = (
    "gcloud compute tpus tpu-vm ssh cub --worker=all --command=if [ -e cvsa_jax ]; "
    f"then cvsa_jax/launch/tpu_host.sh running {ARGUMENTS}; else echo idle; fi --zone=z"
)


def on(worker, command: str) -> str:
    return (
        f"gcloud compute tpus tpu-vm ssh cub --worker={worker} "
        f"--command=cd cvsa_jax && launch/tpu_host.sh {command} --zone=z"
    )


COPY = [
    "gcloud compute tpus tpu-vm scp SITE/cvsa_jax.0/code.tgz cub:cvsa_jax.tgz --worker=all --zone=z",
    "gcloud compute tpus tpu-vm ssh cub --worker=all "
    "--command=mkdir -p cvsa_jax && tar -xzf cvsa_jax.tgz -C cvsa_jax --zone=z",
    on("all", "setup"),
]
START = [on("all", "stop"), on("all", f"start {ARGUMENTS}")]
FOLLOW = [on(0, "log"), on("all", "wait")]
INSTALL_TPU = [
    "uv venv --quiet --python >=3.11,<3.14 .venv",
    "uv pip install --quiet --python .venv/bin/python -r launch/requirements-tpu.txt",
]
MOUNT = "gcsfuse --implicit-dirs --rename-dir-limit=10000 bucket ~/gcs/bucket"


def host_training(host) -> str:
    return (
        "JAX_PLATFORMS=tpu,cpu python -m cvsa_jax.main --config=configs/folder.py:small "
        f"--workdir=SITE/hosts/{host}/gcs/bucket/runs/x --config.views.source_area=(0.2, 0.3)"
    )


@pytest.fixture
def cloud(site):
    if not (shutil.which("flock") and shutil.which("setsid")):
        pytest.skip("the hosts of a TPU run Linux")
    site.stand_in(gcloud=GCLOUD, uv=UV, gcsfuse=GCSFUSE, mountpoint=MOUNTPOINT)
    site.write(grant=["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"])
    return site


def gcloud_record(site) -> list[str]:
    """In order, but for the two that start side by side."""
    lines = site.record()
    for k, (one, other) in enumerate(itertools.pairwise(lines)):
        if [other, one] == FOLLOW:
            lines[k : k + 2] = FOLLOW
    return lines


def test_tpu_creates_trains_and_deletes(cloud):
    cloud.write(ends_0=[0], ends_1=[0])
    done = cloud.run("tpu_pod.sh", *NEW, *BUCKET, "--delete")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "training 0\n"  # the log of the first host
    assert done.stderr.splitlines() == ["waiting for cub: WAITING_FOR_RESOURCES ", "waiting for cub: PROVISIONING "]
    assert gcloud_record(cloud) == [
        LOOK,
        CREATE,
        LOOK,
        LOOK,
        *LOOK_READY,
        RUNNING,
        *COPY,
        *START,
        *FOLLOW,
        DELETE,
    ]
    for host in "01":
        assert cloud.record(host) == [*INSTALL_TPU, MOUNT, host_training(host)]
    assert not list(cloud.folder.glob("cvsa_jax.*"))


def test_tpu_that_exists_is_used_and_kept_and_data_is_copied_once(cloud):
    cloud.run("gcloud compute tpus queued-resources create cub")
    (cloud.folder / "record").unlink()
    (cloud.repository / "maps").mkdir()
    cloud.write(ends_0=[0, 0], ends_1=[0, 0], queue=["ACTIVE"])
    command = ("tpu_pod.sh", *TPU, *BUCKET, "--data=gs://bucket/birds,maps")
    done = cloud.run(*command)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == (
        "cub still exists and is billed; delete it with: "
        "gcloud compute tpus queued-resources delete cub --zone=z --force"
    )
    birds, maps = on("all", "download gs://bucket/birds"), on("all", "missing maps")
    first = [
        *LOOK_READY,
        RUNNING,
        *COPY,
        birds,
        maps,
        "gcloud compute tpus tpu-vm scp maps cub:cvsa_jax/data/ --recurse --worker=all --zone=z",
        on("all", "copied maps"),
        *START,
        *FOLLOW,
    ]
    assert gcloud_record(cloud) == first

    assert cloud.run(*command).returncode == 0
    assert gcloud_record(cloud)[len(first) :] == [*LOOK_READY, RUNNING, *COPY, birds, maps, *START, *FOLLOW]
    for host in "01":
        assert cloud.record(host) == [
            *INSTALL_TPU,
            "gcloud storage cp gs://bucket/birds data/ --recursive --no-clobber",
            MOUNT,
            host_training(host),
            INSTALL_TPU[1],
            host_training(host),
        ]
        assert (cloud.folder / f"hosts/{host}/cvsa_jax/data/maps").is_dir()


def test_tpu_starts_an_interrupted_training_again(cloud):
    cloud.write(ends_0=[42, 0], ends_1=[42, 0], grant=["ACTIVE"])
    done = cloud.run("tpu_pod.sh", *NEW, *BUCKET)
    assert done.returncode == 0, done.stderr
    assert "interrupted: restart 1 of at most 100\n" in done.stderr
    again = [*LOOK_READY, RUNNING, *COPY, *START, *FOLLOW]
    assert gcloud_record(cloud) == [LOOK, CREATE, *again, *again]
    for host in "01":
        assert cloud.record(host) == [*INSTALL_TPU, MOUNT, host_training(host), INSTALL_TPU[1], host_training(host)]


def test_tpu_that_was_taken_away_is_asked_for_again(cloud):
    cloud.write(ends_0=["taken", 0], ends_1=["hang", 0], grant=["ACTIVE"])
    done = cloud.run("tpu_pod.sh", *NEW, *BUCKET)
    assert done.returncode == 0, done.stderr
    assert "the TPU was taken away: restart 1 of at most 100\n" in done.stderr
    life = [*LOOK_READY, RUNNING, *COPY, *START, *FOLLOW]
    assert gcloud_record(cloud) == [
        LOOK,
        CREATE,
        *life,
        on("all", "stop"),
        LOOK,
        LOOK,
        DELETE,
        LOOK,
        CREATE,
        *life,
    ]
    for host in "01":
        once = [*INSTALL_TPU, MOUNT, host_training(host)]
        assert cloud.record(host) == [*once, *once]


def test_tpu_that_is_taken_away_too_often(cloud):
    cloud.write(ends_0=["taken"], ends_1=["taken"], grant=["ACTIVE"])
    done = cloud.run("tpu_pod.sh", *NEW, *BUCKET, "--max-restarts=0", "--delete")
    assert done.returncode == 42
    assert "the TPU was taken away once more after 0 restarts (--max-restarts); the same command goes on" in done.stderr
    assert gcloud_record(cloud)[-1] == DELETE


def test_tpu_stops_all_hosts_when_one_fails(cloud):
    cloud.write(ends_0=["deaf"], ends_1=[3], grant=["ACTIVE"])
    before = time.monotonic()
    done = cloud.run("tpu_pod.sh", *NEW, *BUCKET, "--delete")
    assert done.returncode == 3
    assert time.monotonic() - before < 20  # the other would run for 30
    assert "error: failed with exit code 3\n" in done.stderr
    assert re.search(r"^\S+: training 1$", done.stdout, re.MULTILINE)  # the end of its log
    assert gcloud_record(cloud) == [
        LOOK,
        CREATE,
        *LOOK_READY,
        RUNNING,
        *COPY,
        *START,
        *FOLLOW,
        on("all", "stop"),
        *LOOK_READY,
        DELETE,
    ]


def test_tpu_gives_up_when_a_host_cannot_be_set_up(cloud):
    cloud.stand_in(uv="exit 1")
    cloud.write(grant=["ACTIVE"])
    done = cloud.run("tpu_pod.sh", *NEW, *BUCKET)
    assert done.returncode == 1
    assert gcloud_record(cloud) == [LOOK, CREATE, *LOOK_READY, RUNNING, *COPY, *LOOK_READY]


def test_tpu_training_outlives_the_script_and_is_followed_again(cloud):
    cloud.write(ends_0=["until go"], ends_1=["until go"], grant=["ACTIVE"])
    process = cloud.start("tpu_pod.sh", *NEW, *BUCKET)
    until(lambda: FOLLOW[1] in cloud.record() and cloud.record("0")[-1:] == [host_training("0")])
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20)[1].endswith("The training goes on; the same command follows it again.\n")
    assert process.returncode == 130

    before = len(cloud.record())
    process = cloud.start("tpu_pod.sh", *NEW, *BUCKET)
    until(lambda: set(FOLLOW) <= set(cloud.record()[before:]))
    (cloud.folder / "go").touch()
    out, error = process.communicate(timeout=20)
    assert process.returncode == 0, error
    assert out == "training 0\n"
    assert gcloud_record(cloud)[before:] == [*LOOK_READY, RUNNING, *FOLLOW]
    for host in "01":
        assert cloud.record(host) == [*INSTALL_TPU, MOUNT, host_training(host)]


def test_tpu_connects_again(cloud):
    cloud.write(ends_0=["until cut.over"], ends_1=["until cut.over"], grant=["ACTIVE"], cut=[])
    process = cloud.start("tpu_pod.sh", *NEW, *BUCKET)
    until(lambda: cloud.record().count(FOLLOW[1]) == 2)
    (cloud.folder / "cut.over").touch()
    error = process.communicate(timeout=20)[1]
    assert process.returncode == 0, error
    assert "the connection was lost: restart 1 of at most 100\n" in error
    assert gcloud_record(cloud) == [
        LOOK,
        CREATE,
        *LOOK_READY,
        RUNNING,
        *COPY,
        *START,
        *FOLLOW,
        *LOOK_READY,
        *LOOK_READY,
        RUNNING,
        *FOLLOW,
    ]


def test_tpu_does_not_take_a_failing_gcloud_for_a_missing_tpu(cloud):
    cloud.write(ends_0=[0], ends_1=[0], grant=["ACTIVE"], offline=[])
    done = cloud.run("tpu_pod.sh", *NEW, *BUCKET)
    assert done.returncode == 0, done.stderr
    assert "ERROR: no network\nwaiting for cub: ? \n" in done.stderr
    assert gcloud_record(cloud)[:4] == [LOOK, LOOK, CREATE, LOOK]


def test_tpu_request_that_failed_is_named(cloud):
    cloud.write(queue=["FAILED"])
    done = cloud.run("tpu_pod.sh", *NEW, *BUCKET)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the request for cub failed; the reason: gcloud compute tpus queued-resources")
    assert gcloud_record(cloud) == [LOOK]


def test_tpu_that_does_not_exist_needs_a_type(cloud):
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
        f"{QUEUE} describe cub '--format=value(state.state)' --zone=z",
        CREATE,
        ssh(
            "all",
            "if [ -e cvsa_jax ]; then cvsa_jax/launch/tpu_host.sh running --config=configs/folder.py:small "
            "--workdir=runs/x; else echo idle; fi",
        ),
        "tar --exclude=__pycache__ -czf SITE/cvsa_jax.0/code.tgz cvsa_jax configs launch setup.sh requirements.txt",
        COPY[0],
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
        DELETE,
    ]
    assert shown.returncode == 0
    assert shown.stderr == ""
    assert cloud.record() == []


def test_tpu_does_not_follow_another_training(cloud):
    cloud.write(ends_0=["hang"], ends_1=["hang"])
    first = cloud.start("tpu_pod.sh", *BUCKET, *NEW)
    until(lambda: (cloud.folder / "waiting").exists())
    first.terminate()
    first.communicate(timeout=20)
    other = cloud.run("tpu_pod.sh", "--config=configs/cub.py", "--workdir=runs/y", *NEW, "--delete")
    assert other.returncode == 2
    assert "error: another training runs on cub: --config=configs/folder.py:small --workdir=gs://bucket" in other.stderr
    assert DELETE not in cloud.record()
    cloud.run("gcloud compute tpus queued-resources delete cub")  # which ends the training


def test_tpu_does_not_mix_two_sources_of_one_name(cloud):
    for folder in ("a", "b"):
        (cloud.repository / folder / "birds").mkdir(parents=True)
        (cloud.repository / folder / "birds" / f"{folder}.jpg").touch()
    cloud.write(ends_0=[0], ends_1=[0])
    assert cloud.run("tpu_pod.sh", *BUCKET, *NEW, "--data=a/birds").returncode == 0
    refused = cloud.run("tpu_pod.sh", *BUCKET, *NEW, "--data=b/birds")
    assert refused.returncode != 0
    assert "error: data/birds is a copy of a/birds, and not of b/birds: rename one of them" in refused.stderr
    for host in (0, 1):
        assert [file.name for file in (cloud.folder / f"hosts/{host}/cvsa_jax/data/birds").iterdir()] == ["a.jpg"]
