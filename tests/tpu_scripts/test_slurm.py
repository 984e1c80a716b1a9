"""The command lines that the SLURM scripts give to SLURM, and what the batch script does."""

import pytest

from tests.tpu_scripts.bench import HOSTILE, SCRIPTS, fields

JOB = str(SCRIPTS / "slurm" / "job.sh")
SUBMIT = ("--nodes", "2", "--gpus-per-node", "4", "--time", "1-12:00:00")


def submitted(bench, words, command=("train",), here=None):
    """The words of sbatch after submitting `command`, without those that are always the same."""
    printed = bench.works("slurm/launch.sh", "run", *SUBMIT, *words, "--", *command, does="echo 77")
    assert "submitted as job 77" in printed
    (call,) = bench.calls()
    record = fields(bench.state / "slurm" / "run")
    assert record.keys() == {"token", "created", "job", "log_dir"}
    logs = here or f"{bench.root / 'here'}"
    assert (record["job"], record["log_dir"]) == ("77", str(logs))
    comment = f"--comment=attnjax_token={record['token']}"
    assert call[:4] == ["sbatch", "--parsable", "--job-name=run", comment]
    i = call.index(JOB)
    middle = ["--gpus-per-node=4", "--time=1-12:00:00", "--requeue", "--signal=B:TERM@120"]
    assert call[4] == "--nodes=2"
    assert call[6:12] == [*middle, "--open-mode=append", f"--output={logs}/%x-%j.log"]
    assert call[i + 1] == f"{logs}/%x-%j-%t.log"
    return call[5], call[12:i], call[i + 2 :]


def test_one_process_per_gpu_or_node(bench):
    tasks, extra, rest = submitted(bench, [])
    assert (tasks, extra, rest) == ("--ntasks-per-node=4", [], ["", "0", "train"])
    (bench.state / "slurm" / "run").unlink()
    words = ["--one-process-per", "node", "--restarts", "3", "--partition=gpu", "--account=me"]
    words += ["--constraint=h100", "--cpus-per-task=8", "--mem=0"]
    tasks, extra, rest = submitted(bench, words)
    assert tasks == "--ntasks-per-node=1"
    assert extra == [*words[4:]]
    # Under SLURM jax would use one GPU of the node, so it is told of all.
    assert rest == ["0,1,2,3", "3", "train"]


def test_training_commands_look_for_the_other_processes(bench):
    command = ("/shared/venv/bin/python", "-m", "train.text_classification", "--run-dir", "/r")
    assert submitted(bench, [], command)[2] == ["", "0", *command, "--distributed", "auto"]


@pytest.mark.parametrize("word", [w for w in HOSTILE if w != "\\" and "\n" not in w])
def test_words_pass_as_data(bench, word):
    logs = bench.root / "here" / word
    command = ("echo", word, "", "--", "--dry-run")
    words = [f"--log-dir={word}", f"--partition={word}", f"--account={word}"]
    _, extra, rest = submitted(bench, words, command, here=logs)
    assert extra == [f"--partition={word}", f"--account={word}"]
    assert rest == ["", "0", *command]
    assert logs.is_dir()
    bench.works("slurm/watch.sh", "run")
    assert len(bench.calls()) == 1


def test_launch_rejects(bench):
    job = ("--", "train")
    for option in ("nodes", "gpus-per-node", "time", "restarts"):
        for word in (*HOSTILE, "-1", "a[$(touch pwned)]"):
            words = ("run", *SUBMIT, f"--{option}={word}", *job)
            bench.refuses("slurm/launch.sh", *words, says=f"--{option} .* not allowed")
    for option in ("nodes", "gpus-per-node", "time"):
        words = ("run", *SUBMIT, f"--{option}=", *job)
        bench.refuses("slurm/launch.sh", *words, says=f"--{option} is needed")
    for word in ("100%", "a\\b", "%j"):
        bench.refuses("slurm/launch.sh", "run", *SUBMIT, "--log-dir", word, *job, says="--log-dir")
    bench.refuses("slurm/launch.sh", "run", *SUBMIT, "--log-dir=a\nb", *job, says="not one line")
    words = ("run", *SUBMIT, "--one-process-per", "host", *job)
    bench.refuses("slurm/launch.sh", *words, says="gpu or node, not host")
    bench.refuses("slurm/launch.sh", "run", *SUBMIT, says="no command")


def test_a_failed_submission_keeps_its_comment(bench):
    done = bench.run("slurm/launch.sh", "run", *SUBMIT, "--", "train", does="exit 5")
    assert done.returncode == 5
    record = fields(bench.state / "slurm" / "run")
    assert f"attnjax_token={record['token']}" in done.stderr
    assert "job" not in record
    assert len(bench.calls()) == 1
    bench.refuses("slurm/cancel.sh", "run", code=1, says="has no job: refusing")


def test_the_cluster_is_no_part_of_the_job(bench):
    done = bench.run("slurm/launch.sh", "run", *SUBMIT, "--", "train", does="echo '78;big'")
    assert done.returncode == 0
    assert fields(bench.state / "slurm" / "run")["job"] == "78"


def test_an_answer_without_a_job_is_not_recorded(bench):
    done = bench.run("slurm/launch.sh", "run", *SUBMIT, "--", "train", does="echo Submitted 78")
    record = fields(bench.state / "slurm" / "run")
    assert (done.returncode, "job" in record) == (1, False)
    assert f"attnjax_token={record['token']}" in done.stderr


def test_watch(bench):
    logs = bench.root / "here" / "logs of it's"
    logs.mkdir()
    for i in range(2):
        (logs / f"run-77-{i}.log").write_text(f"one\ntwo\nthree {i}\n")
    (logs / "run-7.log").write_text("another's\n")
    bench.record("slurm", log_dir=logs)
    printed = bench.works("slurm/watch.sh", "run", "--lines=1")
    assert [line for line in printed.splitlines() if line.startswith(("one", "two", "three"))] == [
        *("three 0", "three 1")
    ]
    assert "another" not in printed
    squeue = ["squeue", "--jobs=77", "--states=all", "--format=%i %T %M %R"]
    assert bench.calls() == [squeue]
    # squeue forgets jobs; sacct, where there is one, does not.
    bench.works("slurm/watch.sh", "run", does='[ "${0##*/}" != squeue ]')
    sacct = ["sacct", "--jobs=77", "--format=JobID,State,ExitCode,Elapsed,NodeList"]
    assert bench.calls() == [squeue, sacct]
    assert bench.run("slurm/watch.sh", "run", does="exit 3").returncode == 3


SRUN = ["srun", "--kill-on-bad-exit=1", "--open-mode=append"]


@pytest.mark.parametrize(
    ("code", "restarts", "runs"),
    [*((code, 3, 1) for code in (0, 2, 3, 4)), (1, 0, 1), (75, 2, 3), (137, 1, 2), (143, 1, 2)],
)
def test_the_batch_script_restarts_the_step(bench, code, restarts, runs):
    done = bench.shell([JOB, "/l/%t", "", str(restarts), "train", *HOSTILE], does=f"exit {code}")
    assert done.returncode == code
    assert bench.calls() == [[*SRUN, "--output=/l/%t", "train", *HOSTILE]] * runs
    assert done.stdout.count("starting again") == runs - 1


def test_the_batch_script_names_the_devices(bench):
    does = 'echo "devices ${JAX_LOCAL_DEVICE_IDS-none}"'
    assert bench.shell([JOB, "l", "0,1", "0", "x"], does=does).stdout == "devices 0,1\n"
    assert bench.shell([JOB, "l", "", "0", "x"], does=does).stdout == "devices none\n"


def test_the_batch_script_lets_the_step_save_before_the_time_limit(bench):
    """SLURM signals the batch script alone; it asks the step to end, and restarts nothing."""
    does = """
case ${0##*/} in
  srun)
    kill -TERM "$PPID"
    until [ -e asked ]; do sleep 0.01; done
    sleep 0.2
    echo saved
    exit 143
    ;;
  scancel) touch asked ;;
esac
"""
    words = ["env", "SLURM_JOB_ID=77", JOB, "l", "", "5", "x"]
    done = bench.shell(words, does=does)
    assert (done.returncode, done.stdout) == (143, "saved\n")
    names = [[*SRUN, "--output=l", "x"], ["scancel", "--signal=TERM", "77"]]
    assert bench.calls() == names
