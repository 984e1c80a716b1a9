"""The worked examples of tpu_scripts/README.md, run from the first line to the last."""

import re
import shutil

from tests.tpu_scripts.bench import SCRIPTS

# What the services would answer; a label or comment is the one that the creation before it gave.
SERVICES = r"""
case "$*" in
  *labels=attnjax_token=*) echo "$*" | grep -o '[0-9a-f]\{32\}' >token ;;
  *comment=attnjax_token=*) echo "$*" | grep -o '[0-9a-f]\{32\}' >token; echo 77 ;;
  *create*filename=-*) grep -o '[0-9a-f]\{32\}' "$CALLS/$n/stdin" >token ;;
  *labels.attnjax_token*) cat token ;;
  *format=%k*) echo "attnjax_token=$(cat token)" ;;
  *state.state*) echo ACTIVE ;;
  *networkEndpoints*) echo 2 ;;
  *--output=name*) echo pod/worker-0 ;;
  *pack.sh* | *' tar '*) tar -czf - -T /dev/null ;;
esac
"""


def test_the_worked_examples_run(bench):
    text = (SCRIPTS / "README.md").read_text()
    tpu, slurm, kubernetes = re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    here = bench.root / "here"
    shutil.copytree(SCRIPTS, here / "tpu_scripts")
    local = slurm.replace("/shared/logs", "logs")  # the only folder that is made where it runs
    for block in (tpu, f"cd tpu_scripts\n{local}", f"cd tpu_scripts\n{kubernetes}"):
        done = bench.shell(["bash", "-euc", block], does=SERVICES)
        assert done.returncode == 0, done.stderr
        assert bench.calls()
    assert not [path for path in bench.state.rglob("*") if path.is_file()], "something was left"
    assert (here / "tpu_scripts" / "results" / "run1-1").is_dir()


def test_every_script_is_in_the_table():
    text = (SCRIPTS / "README.md").read_text()
    named = set(re.findall(r"`([\w/]+\.(?:sh|py))`", text))
    files = [*SCRIPTS.rglob("*.sh"), *SCRIPTS.rglob("*.py")]
    assert named == {str(f.relative_to(SCRIPTS)) for f in files if f.parent.name != "remote"}
