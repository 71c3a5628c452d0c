"""What a step warns of reaches the person who started the build, although the step's own words are in its log."""

from tests.conftest import copy_checkout, run

DIVERGING = "bases: {world: {texts: 100, batch_size: 10, learning_rate: 2, warmup_ratio: 0, schedule: constant}}\n"


def test_a_base_that_diverges_is_warned_of_at_the_end_of_the_build(tmp_path):
    checkout = copy_checkout(tmp_path / "ouroboros")
    (checkout / "diverging.yaml").write_text(DIVERGING)
    command = ("snakemake", "results/tiny/base/world/model", "--configfile", "diverging.yaml")
    done = run(checkout, *command)
    told = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert told[0].startswith("warning: results/tiny/base/world/model.json: the loss ended at ")
    # Nothing ran, so there is nothing to warn of; nor is there where the result is accepted as it is.
    for again in (command, (*command, "--touch")):
        assert "warning: results" not in run(checkout, *again).stderr
